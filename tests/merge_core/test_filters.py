"""Filters that are part of no name are told, with the nearest part; others are not."""

import pytest
from headers import LAYER, checkpoint, linear

from merge_core.filters import silent_filters, tensor_names
from merge_core.plan import compile_plan
from merge_core.recipe import from_dict

EXPERTS = {"attn.weight": (4, 4)} | {
    f"moe.experts.{i}.w{j}.weight": (4, 4) for i in "01" for j in "12"
}


FIRST = "'layers.0.moe.experts.0.w1.weight'"
ONE_BY_ONE = "one by one, by the names in the files, such as"


def told(recipe, layer=LAYER):
    parents = {name: checkpoint(name, layer=layer) for name in ("base", "a", "b")}
    read = from_dict(recipe)
    return silent_filters(read, tensor_names([compile_plan(read, parents)]))


def filtered(*texts):
    return [*({"filter": text, "value": 0.9} for text in texts), {"value": 0.5}]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("mpl", "did you mean 'mlp'?"),
        ("mlp.upp", "did you mean 'mlp.up'?"),
        ("layers.4", "did you mean 'layers.3'?"),
        ("xyzzy", "a name is such as 'layers.3.mlp.up.weight'"),
    ],
)
def test_a_filter_without_a_tensor_gets_the_nearest(text, hint):
    recipe = linear() | {"parameters": {"weight": filtered("attn", text)}}
    assert told(recipe) == (
        f"parameters.weight: filter '{text}' is part of no tensor's name: {hint}",
    )


def test_every_place_is_looked_at_and_named():
    def cut(first, last, **of_a):
        ranges = [{"model": m, "layer_range": [first, last]} for m in ("a", "b")]
        return {"sources": [ranges[0] | of_a, ranges[1]]}

    recipe = {
        "merge_method": "linear",
        "slices": [
            cut(0, 2, parameters={"weight": filtered("one", "layers.3")}),
            cut(2, 4) | {"parameters": {"weight": filtered("two")}, "scale": filtered("three")},
        ],
        "parameters": {"weight": filtered("four", "layers.0")},
    }
    places = [line.partition(":")[0] for line in told(recipe)]
    assert places == [
        "parameters.weight",
        "parameters of model 'a'.weight",
        "slices[1].parameters.weight",
        "slices[1].scale",
    ]


def test_a_filter_may_mean_another_document():
    read = from_dict(linear() | {"parameters": {"weight": filtered("mpl")}})
    assert silent_filters(read, {"layers.0.mpl.weight"}) == ()


def test_experts_are_known_by_the_names_in_the_files():
    recipe = linear() | {"parameters": {"weight": filtered("mlp", "experts.1", "down_proj")}}
    one, other = told(recipe, EXPERTS)
    assert "filter 'mlp'" in one
    assert "filter 'down_proj'" in other
    assert one.endswith(f": experts are merged {ONE_BY_ONE} {FIRST}")
    (close,) = told(linear() | {"parameters": {"weight": filtered("attm")}}, EXPERTS)
    assert close.endswith(f": did you mean 'attn'? (experts are merged {ONE_BY_ONE} {FIRST})")
