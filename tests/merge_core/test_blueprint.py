"""Which tensor is made of which: several stacks, outer tensors, tied heads, kinds of layers."""

from dataclasses import replace

import pytest
from headers import LAYER, OUTER, checkpoint, linear, ranged, seq2seq, values

from merge_core.errors import RecipeError
from merge_core.geometry import TensorRef
from merge_core.plan import compile_plan
from merge_core.recipe import from_dict


def planned(recipe, **more):
    return compile_plan(from_dict(recipe), {name: seq2seq(name, **more) for name in "ab"})


def test_models_are_merged_stack_by_stack():
    plan = planned(linear())
    assert plan.depth == 5
    assert len(plan.steps) == 5 * len(LAYER) + 4
    assert {step.inputs[1].name for step in plan.steps} == {step.out for step in plan.steps}


def test_modules_have_slices_of_their_own():
    plan = planned(
        {
            "merge_method": "passthrough",
            "modules": {
                "encoder": {
                    "slices": [{"sources": ranged(a=[0, 2])}, {"sources": ranged(b=[1, 2])}]
                },
                "decoder": {"models": ["b"]},
            },
        }
    )
    origin = {step.out: step.inputs[0] for step in plan.steps}
    assert origin["encoder.block.2.attn.weight"] == TensorRef("b", "encoder.block.1.attn.weight")
    assert origin["decoder.block.2.attn.weight"].parent == "b"
    assert origin["shared.weight"].parent == "a"
    assert origin["encoder.norm.weight"].parent == "b"
    assert plan.config["num_layers"] == plan.config["num_decoder_layers"] == 3
    assert plan.depth == 6


def test_source_before_slice_before_module_before_recipe():
    source = {"model": "a", "layer_range": [0, 2], "parameters": {"scale": 1}}
    plan = planned(
        {
            "merge_method": "passthrough",
            "modules": {
                "encoder": {"slices": [{"sources": [source], "parameters": {"scale": 2}}]},
                "decoder": {
                    "slices": [
                        {"sources": ranged(a=[0, 1]), "parameters": {"scale": 2}},
                        {"sources": ranged(a=[1, 3])},
                    ],
                    "parameters": {"scale": {"filter": "attn", "value": 3}},
                },
            },
            "parameters": {"scale": 4},
        }
    )
    found = {name: value[0] for name, value in values(plan, "scale").items()}
    assert found["encoder.block.0.attn.weight"] == 1
    assert found["decoder.block.0.attn.weight"] == 2
    assert found["decoder.block.1.attn.weight"] == 3
    assert found["decoder.block.1.mlp.up.weight"] == 4


def compiled(recipe):
    return compile_plan(from_dict(recipe), {m: checkpoint(m) for m in ("base", "a", "b")})


def test_the_only_stack_is_the_default_module():
    plan = compiled({"merge_method": "linear", "modules": {"default": MODULE}})
    assert plan.steps == compiled(linear()).steps


MODULE = {"models": ["a", "b"], "parameters": {"weight": 1}}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            {"slices": [{"sources": ranged(a=[0, 2])}]},
            r"slices: model 'a' has several stacks of layers, encoder \(2 layers\), decoder \(3 lay"
            r"ers\); give slices to each: modules: {encoder: {slices: …}, decoder: {models: …}}",
        ),
        ({"modules": {"encoder": MODULE}}, "modules: 'decoder' of 'a' is missing; give models or"),
        ({"modules": {"default": MODULE}}, "modules: 'default' is no part of 'a'; it has encoder,"),
        (
            {"modules": {"encoder": MODULE, "decoder": MODULE | {"parameters": {"wait": 1}}}},
            "modules.decoder.parameters: merge_method 'linear' has no parameter 'wait'; did you",
        ),
        (
            {
                "modules": {
                    "encoder": MODULE,
                    "decoder": {"slices": [{"sources": ranged(a=[2, 4])}]},
                }
            },
            r"modules.decoder.slices\[0\]: layer_range \[2, 4\) of 'a' reaches past its 3 layers",
        ),
    ],
)
def test_modules_that_do_not_fit(recipe, message):
    with pytest.raises(RecipeError, match=message):
        planned({"merge_method": "linear"} | recipe)


# Slices without layers: they say whose embeddings or head it is.


def test_a_slice_without_layers_gives_embeddings_or_head():
    slices = [{"sources": ranged(**{m: cut})} for m, cut in (("b", [0, 0]), ("base", [0, 4]))]
    last = {"sources": ranged(a=[4, 4], b=[2, 2]), "parameters": {"weight": 0.5}}
    recipe = {"merge_method": "linear", "slices": [*slices, last], "parameters": {"weight": 1}}
    plan = compiled(recipe)
    origin = {step.out: [ref.parent for ref in step.inputs] for step in plan.steps}
    assert origin["embed_tokens.weight"] == ["b"]
    assert origin["norm.weight"] == origin["lm_head.weight"] == ["a", "b"]
    assert values(plan, "weight")["lm_head.weight"] == (0.5, 0.5)
    assert {origin[name][0] for name in origin if name.startswith("layers")} == {"base"}
    assert plan.depth == 4


def test_slices_without_any_layer_are_refused():
    with pytest.raises(RecipeError, match="slices: they have no layers; give a longer layer_range"):
        compiled({"merge_method": "passthrough", "slices": [{"sources": ranged(a=[2, 2])}]})


# Heads that are the embeddings.

HEADLESS = {name: shape for name, shape in OUTER.items() if name != "lm_head.weight"}


@pytest.mark.parametrize(("one", "other"), [("a", "b"), ("b", "a")])
def test_a_tied_head_is_its_embeddings_where_another_has_its_own(one, other):
    parents = {one: checkpoint(one, outer=HEADLESS), other: checkpoint(other)}
    plan = compile_plan(from_dict(linear()), parents)
    head = next(step for step in plan.steps if step.out == "lm_head.weight")
    names = {one: "embed_tokens.weight", other: "lm_head.weight"}
    assert head.inputs == tuple(TensorRef(name, names[name]) for name in "ab")
    assert plan.config["tie_word_embeddings"] is False


def test_heads_that_are_all_tied_stay_tied():
    tied = {"tie_word_embeddings": True}
    parents = {"a": checkpoint("a", outer=HEADLESS, config=tied), "b": checkpoint("b", config=tied)}
    for names in ("ab", "ba"):
        plan = compile_plan(from_dict(linear() | {"models": list(names)}), parents)
        assert "lm_head.weight" not in {step.out for step in plan.steps}
        assert plan.config["tie_word_embeddings"] is True


def test_encoder_decoders_scale_a_tied_head_differently():
    more = {"is_encoder_decoder": True, "tie_word_embeddings": True}
    tied, untied = (more | {"tie_word_embeddings": tie} for tie in (True, False))
    parents = {"a": checkpoint("a", config=tied), "b": checkpoint("b", config=untied)}
    with pytest.raises(
        RecipeError, match=r"'a' ties its head .* 'b' does not, and encoder-decoder"
    ):
        compile_plan(from_dict(linear()), parents)


def test_layers_of_several_kinds_keep_their_places():
    def odd(name, **config):
        opened = checkpoint(name, config=config)
        del opened.tensors["layers.0.attn.weight"]
        return replace(opened, layers={})

    recipe = {"merge_method": "passthrough"}
    for cut, fits in (([0, 4], True), ([0, 3], True), ([1, 4], False)):
        data = recipe | {"slices": [{"sources": ranged(a=cut)}]}
        parents = {"a": replace(odd("a"), layers={None: tuple(OUTER)})}
        if fits:
            assert compile_plan(from_dict(data), parents).depth == cut[1]
            continue
        with pytest.raises(
            RecipeError,
            match=r"layer 0 of the output has other tensors than 'a' has there, and no list",
        ):
            compile_plan(from_dict(data), parents)
        stated = replace(odd("a", layer_types=list("xyyy")), layers={None: tuple(OUTER)})
        assert compile_plan(from_dict(data), {"a": stated}).config["layer_types"] == list("yyy")


def test_a_plan_is_kept_by_structure_and_its_values_are_not():
    parents = {name: checkpoint(name) for name in "ab"}
    one, two = (
        compile_plan(from_dict(linear() | {"parameters": {"weight": weight}}), parents)
        for weight in (0.25, 0.5)
    )
    assert values(one, "weight")["norm.weight"] == (0.25, 0.25)
    assert values(two, "weight")["norm.weight"] == (0.5, 0.5)
    assert one.steps[0].inputs is two.steps[0].inputs
