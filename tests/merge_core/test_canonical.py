"""Recipes that make the same model have one canonical form; those that don't have two."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merge_core.apply import Workbench, apply
from merge_core.canonical import canonical
from merge_core.checkpoint import open_checkpoint
from merge_core.parents import Parents
from merge_core.plan import compile_plan
from merge_core.recipe import Recipe, from_dict, to_dict
from merge_core.registry import Base, find_method

TOLERANCE = 2e-6  # of the largest input element
FAMILY = ("task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "breadcrumbs_ties")
Merge = Callable[[Recipe], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def merge(family: Callable[[str], Path]) -> Merge:
    folder = family("llama")
    opened = {name: open_checkpoint(folder / name, name) for name in ("base", "a", "b")}
    parents = Parents(opened, torch.device("cpu"))

    def merged(recipe: Recipe) -> dict[str, torch.Tensor]:
        plan = compile_plan(recipe, parents.checkpoints)
        slots = {step.out: torch.empty(step.shape, dtype=torch.float32) for step in plan.steps}
        apply(plan, Workbench(parents, slots))
        return slots

    return merged


def assert_same(merge: Merge, one: Recipe, other: Recipe, *, bits: bool = False) -> None:
    left, right = merge(one), merge(other)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        if bits:
            assert torch.equal(tensor, right[name]), name
        largest = max(float(tensor.abs().max()), 1.0)
        assert float((tensor - right[name]).abs().max()) <= TOLERANCE * largest, name


def recipe(method: str, sources: Any = None, **parameters: Any) -> Recipe:
    base = {} if method in ("linear", "passthrough") else {"base_model": "base"}
    models = sources if sources is not None else ["a", "b"]
    return from_dict({"merge_method": method, "models": models, "parameters": parameters} | base)


def sources(**weights: Any) -> list[dict[str, Any]]:
    return [{"model": m, "parameters": {"weight": w}} for m, w in weights.items()]


LINEAR = {"normalize": False}
FLAT: dict[str, tuple[Recipe, Recipe]] = {
    "equal gradients": (recipe("linear", weight=[0.5, 0.5, 0.5]), recipe("linear", weight=0.5)),
    "equal groups": (
        recipe("ties", weight=[{"filter": "mlp", "value": 0.3}, {"value": 0.3}]),
        recipe("ties", weight=0.3),
    ),
    "a hidden filter": (
        recipe("ties", weight=[{"value": 0.3}, {"filter": "mlp", "value": 0.9}]),
        recipe("ties", weight=0.3),
    ),
    "a filter inside of another": (
        recipe(
            "linear",
            weight=[
                {"filter": "mlp", "value": 0.3},
                {"filter": "mlp.up", "value": 0.9},
                {"value": 0.5},
            ],
        ),
        recipe("linear", weight=[{"filter": "mlp", "value": 0.3}, {"value": 0.5}]),
    ),
    "defaults": (
        recipe("ties", weight=0.3, density=1.0, normalize=True, int8_mask=True),
        recipe("ties", weight=0.3),
    ),
    "where it is said": (recipe("ties", sources(a=0.3, b=0.3)), recipe("ties", weight=0.3)),
    "one-hot linear": (recipe("linear", sources(a=1, b=0)), recipe("passthrough", ["a"])),
    "slerp's beginning": (recipe("slerp", ["a"], t=0.0), recipe("passthrough", ["base"])),
    "slerp's end": (recipe("slerp", ["a"], t=1.0), recipe("passthrough", ["a"])),
    "dare that drops nothing": (
        recipe("dare_linear", weight=0.3, rescaling="density"),
        recipe("task_arithmetic", weight=0.3),
    ),
    "della that drops nothing": (
        recipe("della", weight=0.3, epsilon=0.1),
        recipe("ties", weight=0.3),
    ),
    "breadcrumbs that drop nothing": (
        recipe("breadcrumbs_ties", weight=0.3, gamma=0.05, normalize=True),
        recipe("ties", weight=0.3),
    ),
    "ties of one parent": (
        recipe("ties", ["a"], weight=0.3, normalize=False),
        recipe("task_arithmetic", ["a"], weight=0.3),
    ),
    "nothing is the base": (
        recipe("ties", weight=0.0, density=0.2),
        recipe("passthrough", ["base"]),
    ),
    "lambda 0 is the base": (
        recipe("della", weight=0.5, density=0.5, **{"lambda": 0.0}),
        recipe("passthrough", ["base"]),
    ),
}
NEAR: dict[str, tuple[Recipe, Recipe]] = {
    "a sum of one is linear": (
        recipe("task_arithmetic", sources(a=0.3, b=0.7)),
        recipe("linear", sources(a=0.3, b=0.7)),
    ),
    "the base has the rest": (
        recipe("task_arithmetic", sources(a=0.3, b=0.4)),
        recipe("linear", sources(base=0.3, a=0.3, b=0.4)),
    ),
    "a factor cancels": (
        recipe("linear", sources(a=0.3, b=0.6)),
        recipe("linear", sources(b=2.0, a=1.0)),
    ),
    "a factor cancels in ties": (
        recipe("ties", sources(a=0.3, b=0.6), density=0.4),
        recipe("ties", sources(a=1.0, b=2.0), density=0.4),
    ),
    "lambda": (
        recipe("task_arithmetic", sources(a=0.6, b=0.3), **{"lambda": 0.5}),
        recipe("task_arithmetic", sources(a=0.3, b=0.15)),
    ),
    "lambda of normalised weights": (
        recipe("task_arithmetic", sources(a=2, b=2), normalize=True, **{"lambda": 0.6}),
        recipe("task_arithmetic", sources(a=0.3, b=0.3)),
    ),
    "lambda with signs": (
        recipe("ties", sources(a=0.6, b=0.4), density=0.3, normalize=False, **{"lambda": 0.5}),
        recipe("ties", sources(a=0.3, b=0.2), density=0.3, normalize=False),
    ),
    "no weight": (
        recipe("ties", sources(a=0.3, b=0), density=0.4),
        recipe("ties", ["a"], weight=0.3, density=0.4),
    ),
    "a parent is itself": (
        recipe("task_arithmetic", sources(a=1.0, b=0.0)),
        recipe("passthrough", ["a"]),
    ),
    "one weight cancels": (
        recipe("ties", ["a"], weight=0.3, density=0.5),
        recipe("ties", ["a"], weight=1.2, density=0.5),
    ),
    "dare of one parent": (
        recipe("dare_ties", ["a"], weight=0.3, density=0.5),
        recipe("dare_linear", ["a"], weight=0.3, density=0.5),
    ),
    "normalised dare": (
        recipe("dare_linear", sources(a=1, b=3), density=0.5, normalize=True),
        recipe("dare_linear", sources(a=0.25, b=0.75), density=0.5),
    ),
    "nuslerp's shares": (
        recipe("nuslerp", sources(a=1.0, b=3.0)),
        recipe("nuslerp", sources(a=0.25, b=0.75)),
    ),
    "nuslerp's end": (recipe("nuslerp", sources(a=0.0, b=0.5)), recipe("passthrough", ["b"])),
}


@pytest.mark.parametrize("case", FLAT)
def test_recipes_of_the_same_numbers(merge: Merge, case: str):
    one, other = FLAT[case]
    assert canonical(one).fingerprint == canonical(other).fingerprint
    assert_same(merge, one, other, bits=True)


@pytest.mark.parametrize("case", NEAR)
def test_recipes_of_the_same_model(merge: Merge, case: str):
    one, other = NEAR[case]
    assert canonical(one).fingerprint == canonical(other).fingerprint
    assert_same(merge, one, other)


OTHER: dict[str, tuple[Recipe, Recipe]] = {
    "another weight": (recipe("linear", sources(a=1, b=2)), recipe("linear", sources(a=1, b=3))),
    "a gradient": (recipe("linear", weight=[0.2, 0.8, 0.5]), recipe("linear", weight=0.5)),
    "a factor that counts": (
        recipe("linear", sources(a=0.3, b=0.6), **LINEAR),
        recipe("linear", sources(a=1.0, b=2.0), **LINEAR),
    ),
    "another density": (
        recipe("ties", weight=0.3, density=0.4),
        recipe("ties", weight=0.3, density=0.5),
    ),
    "signs": (recipe("ties", weight=0.5), recipe("task_arithmetic", weight=0.5, normalize=True)),
    "a mask's place": (
        recipe("dare_linear", sources(a=0.0, b=0.5), density=0.5),
        recipe("dare_linear", ["b"], weight=0.5, density=0.5),
    ),
    "a negative lambda with signs": (
        recipe("ties", weight=0.5, normalize=False, **{"lambda": -1.0}),
        recipe("ties", weight=-0.5, normalize=False),
    ),
    "an arc": (recipe("slerp", ["a"], t=0.5), recipe("linear", sources(a=0.5, base=0.5))),
}


@pytest.mark.parametrize("case", OTHER)
def test_recipes_of_different_models(case: str):
    one, other = OTHER[case]
    assert canonical(one).fingerprint != canonical(other).fingerprint


def slices(*cuts: tuple[int, int], weight: Any = 0.5, method: str = "linear") -> Recipe:
    models = ("a", "b") if method == "linear" else ("a", "b", "base")
    parts = [{"sources": [{"model": m, "layer_range": list(cut)} for m in models]} for cut in cuts]
    base = {} if method == "linear" else {"base_model": "base"}
    data = {"merge_method": method, "slices": parts, "parameters": {"weight": weight}}
    return from_dict(data | base)


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_slices_that_go_on_are_one(merge: Merge, method: str):
    cut, whole = slices((0, 1), (1, 3), method=method), slices((0, 3), method=method)
    assert canonical(cut) == canonical(whole)
    assert_same(merge, cut, whole, bits=True)


def test_a_slice_of_all_layers_is_the_whole(merge: Merge):
    cut, whole = slices((0, 1), (1, 3), method="ties"), recipe("ties", weight=0.5)
    assert canonical(cut, 3) == canonical(whole, 3) == canonical(whole)
    assert canonical(cut, 4) == canonical(cut) != canonical(whole)
    assert_same(merge, cut, whole, bits=True)


def test_slices_with_a_gradient_or_a_gap_are_several():
    assert canonical(slices((0, 1), (1, 3), weight=[0, 1])).slices[1:]
    assert canonical(slices((0, 1), (2, 3))).slices[1:]
    assert canonical(slices((0, 2), (1, 3))).slices[1:]


def factored(*scales: Any, cuts: Any = ((0, 1), (1, 3))) -> Recipe:
    data = to_dict(slices(*cuts))
    for part, scale in zip(data["slices"], scales, strict=True):
        part["scale"] = scale
    return from_dict(data)


FACTORS: dict[str, tuple[Recipe, Recipe]] = {
    "one": (factored(1.0, {"filter": "mlp", "value": 1}), slices((0, 3))),
    "equal factors": (factored(0.8, 0.8), factored(0.8, cuts=((0, 3),))),
    "equal groups": (
        factored([{"filter": "mlp", "value": 0.8}, {"value": 0.8}], 0.9),
        factored(0.8, 0.9),
    ),
    "a hidden filter": (
        factored([{"filter": "mlp", "value": 0.8}, {"filter": "mlp.up", "value": 0.5}], 0.9),
        factored({"filter": "mlp", "value": 0.8}, 0.9),
    ),
    "digits that do not count": (factored(0.1 + 0.2, 0.9), factored(0.3, 0.9)),
}


@pytest.mark.parametrize("case", FACTORS)
def test_factors_of_the_same_numbers(merge: Merge, case: str):
    one, other = FACTORS[case]
    assert canonical(one, 3).fingerprint == canonical(other, 3).fingerprint
    assert_same(merge, one, other)


def test_factors_that_differ_make_other_models(merge: Merge):
    """Of the number, of its tensors, of its slice, and beside a factor that a weight has."""
    models = [
        slices((0, 1), (1, 3)),
        factored(0.8, 0.8),
        factored(0.8, 0.9),
        factored(0.9, 0.8),
        factored({"filter": "mlp", "value": 0.8}, 0.8),
        factored([{"filter": "mlp", "value": 1.0}, {"value": 0.8}], 0.8),
    ]
    assert len({canonical(model, 3).fingerprint for model in models}) == len(models)
    for one, other in itertools.combinations(map(merge, models), 2):
        assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())
    alone = [factored(0.5, cuts=((0, 3),)), slices((0, 3), weight=0.5)]
    assert canonical(alone[0], 3).fingerprint != canonical(alone[1], 3).fingerprint


number = st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.7, 1.0, 1.5])
value = st.one_of(
    number,
    number.map(lambda w: [w, w]),
    st.lists(number, min_size=2, max_size=3),
    st.tuples(number, number).map(lambda w: [{"filter": "mlp", "value": w[0]}, {"value": w[1]}]),
)
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "normalize": st.booleans(),
    "rescale": st.booleans(),
    "lambda": number,
    "density": st.sampled_from([0.5, 1.0, [1.0, 1.0], [0.5, 1.0]]),
    "gamma": st.sampled_from([0.01, 0.2]),
    "epsilon": st.sampled_from([0.1, 0.2]),
    "t": st.sampled_from([0.0, 0.5, 1.0, [0.0, 1.0]]),
    "scale": number,
    "int8_mask": st.booleans(),
    "nuslerp_flatten": st.booleans(),
}


@st.composite
def recipes(draw: st.DrawFn, method: str) -> Recipe:
    """Any merge of two or three models with a method, with numbers that often coincide."""
    found = find_method(method)
    known = {p.name for p in found.parameters}
    models = ["a", "b"] if found.inputs[1] != 1 else ["a"]
    if found.base is Base.ENDPOINT:
        models = ["a", "base"]
    entries: list[dict[str, Any]] = [{"model": m} for m in models[: draw(st.integers(1, 2))]]
    if len(entries) < found.inputs[0]:
        entries = [{"model": m} for m in models]
    for entry in entries:
        own = {name: draw(value) for name in known & {"weight"}}
        own |= {name: draw(OPTIONS[name]) for name in known & {"density"} if draw(st.booleans())}
        if own:
            entry["parameters"] = own
    shared = [p.name for p in found.parameters if not p.per_parent or p.name == "epsilon"]
    chosen = [name for name in shared if name in OPTIONS and draw(st.booleans())]
    outer = {name: draw(OPTIONS[name]) for name in chosen}
    outer |= {"t": draw(OPTIONS["t"])} if "t" in known else {}
    data: dict[str, Any] = {"merge_method": method, "models": entries, "parameters": outer}
    if method not in ("passthrough", "linear"):
        data["base_model"] = "base"
    if draw(st.booleans()):
        for entry in entries:
            entry["layer_range"] = [0, 3]
        if method not in ("passthrough", "linear") and "base" not in models:
            entries.append({"model": "base", "layer_range": [0, 3]})
        data["slices"] = [{"sources": data.pop("models")}]
        if method != "passthrough" and draw(st.booleans()):
            data["slices"][0]["scale"] = draw(value.filter(lambda one: not plain_list(one)))
    return from_dict(data)


def plain_list(one: Any) -> bool:
    return isinstance(one, list) and not isinstance(one[0], dict)


WEIGHTED = ("linear", "passthrough", "slerp", "nuslerp", *FAMILY)


@pytest.mark.parametrize("method", WEIGHTED)
@given(data=st.data())
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_canonical_form_makes_the_same_model(merge: Merge, method: str, data: st.DataObject):
    """And is its own canonical form, and can be written and read."""
    drawn = data.draw(recipes(method))
    form = canonical(drawn)
    assert canonical(form) == form
    assert from_dict(to_dict(form)).fingerprint == form.fingerprint
    try:
        merge(drawn)
    except Exception as error:  # weights that sum to nothing, probabilities above one
        with pytest.raises(type(error)):
            merge(form)
        return
    assert_same(merge, drawn, form)


def test_what_computes_as_mergekit_does_is_only_written_in_one_way():
    data = {"merge_method": "linear", "models": sources(a=1, b=0), "compat": "mergekit"}
    assert len(canonical(from_dict(data)).slices[0].sources) == 2
    flat = data | {"models": sources(a=[1, 1], b=0)}
    assert canonical(from_dict(flat)) == canonical(from_dict(data))


def test_numbers_that_differ_by_rounding_are_the_same():
    one, other = (recipe("linear", sources(a=w, b=0.7)) for w in (0.1 + 0.2, 0.3))
    assert one.fingerprint != other.fingerprint
    assert canonical(one).fingerprint == canonical(other).fingerprint


def test_the_dtype_is_the_outputs():
    plain = to_dict(recipe("linear", weight=0.5))
    forms = [
        canonical(from_dict(plain | dtypes))
        for dtypes in (
            {"dtype": "float32", "out_dtype": "bfloat16"},
            {"dtype": "float64", "out_dtype": "bfloat16"},
            {"out_dtype": "bfloat16"},
            {"dtype": "bfloat16"},
        )
    ]
    assert forms[0] == forms[1] == forms[2] != forms[3]
