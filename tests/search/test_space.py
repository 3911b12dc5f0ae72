"""Values → recipe: pure, total, in mergekit's form."""

from collections.abc import Callable
from typing import Any

import pytest
from coordinates import draw_values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merge_core.checkpoint import Checkpoint
from merge_core.plan import compile_plan
from merge_core.recipe import from_dict, to_dict
from search.space import METHOD, Choice, SearchSpace, tensor_groups

Read = Callable[[dict[str, Any]], SearchSpace]

EVERYTHING = {
    "merge_method": {"choice": ["linear", "task_arithmetic", "ties", "dare_ties"]},
    "base_model": "base",
    "models": [
        {
            "model": "a",
            "parameters": {
                "weight": {"range": [0.1, 1.5], "by": ["self_attn", "mlp", "*"], "knots": 3},
                "density": {"range": [0.05, 1.0]},
            },
        },
        {"model": "b", "parameters": {"weight": {"range": [0.01, 1], "log": True}}},
        {"model": "base", "parameters": {"weight": 0.5}},
    ],
    "parameters": {
        "density": {"choice": [0.2, 0.5, 1.0]},
        "lambda": {"range": "auto"},
        "normalize": {"choice": [True, False]},
    },
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def space(read_space: Read) -> SearchSpace:
    return read_space(EVERYTHING)


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_value_gives_a_recipe_that_can_be_merged(
    space: SearchSpace, checkpoints: dict[str, Checkpoint], data: st.DataObject
):
    values = draw_values(space, data)
    recipe = space.decode(values)
    assert compile_plan(recipe, checkpoints).depth == 3
    assert from_dict(to_dict(recipe)) == recipe
    assert space.decode(values).fingerprint == recipe.fingerprint


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_different_values_give_different_recipes(space: SearchSpace, data: st.DataObject):
    one, other = draw_values(space, data), draw_values(space, data)
    if one != other:
        assert space.decode(one) != space.decode(other)


def test_knots_become_a_gradient_and_groups_become_filters(space: SearchSpace):
    start = dict(space.starts()[1])
    for group in ("self_attn", "mlp", "*"):
        start |= {f"a.weight[{group}]@{knot}": 0.1 * (knot + 1) for knot in range(3)}
    (first, *_) = to_dict(space.decode(start))["models"]
    gradient = pytest.approx([0.1, 0.2, 0.3])
    assert first["parameters"]["weight"] == [
        {"value": gradient, "filter": "self_attn"},
        {"value": gradient, "filter": "mlp"},
        {"value": gradient},
    ]


def test_knots_without_groups_are_a_plain_gradient(read_space: Read):
    hole = {"range": [0, 1], "knots": 2}
    space = read_space({"merge_method": "linear", "models": ["a"], "parameters": {"weight": hole}})
    recipe = space.decode({"weight@0": 0.25, "weight@1": 0.75})
    assert to_dict(recipe)["parameters"] == {"weight": [0.25, 0.75]}


def test_a_gradient_reaches_the_layers(read_space: Read, checkpoints: dict[str, Checkpoint]):
    hole = {"range": [0, 1], "knots": 2, "by": ["mlp", "*"]}
    space = read_space({"merge_method": "linear", "models": ["a"], "parameters": {"weight": hole}})
    values = {
        f"weight[{g}]@{k}": v
        for g, k, v in [("mlp", 0, 0.0), ("mlp", 1, 1.0), ("*", 0, 0.5), ("*", 1, 0.5)]
    }
    plan = compile_plan(space.decode(values), checkpoints, judge=False)  # the first sum is zero
    weights = {step.out: dict(step.params)["weight"] for step in plan.steps}
    assert [weights[f"model.layers.{n}.mlp.up_proj.weight"] for n in range(3)] == [
        (0.0,),
        (0.5,),
        (1.0,),
    ]
    assert weights["model.layers.2.self_attn.q_proj.weight"] == (0.5,)
    assert weights["lm_head.weight"] == (0.5,)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_what_a_method_lacks_is_left_out(space: SearchSpace, method: str):
    start = next(values for values in space.starts() if values[METHOD] == method)
    recipe = to_dict(space.decode(start))
    text = str(recipe)
    assert ("density" in text) == (method == "ties")
    assert ("lambda" in text) == (method != "linear")
    assert "lambda" not in start or method != "linear"


def test_starts_lie_inside_the_ranges_and_cover_every_method(space: SearchSpace):
    starts = space.starts()
    assert {values[METHOD] for values in starts} == set(space.methods)
    for values in starts:
        active = space.active(values)
        assert set(values) == {d.name for d in active}
        for d in active:
            value = values[d.name]
            inside = value in d.options if isinstance(d, Choice) else d.low <= value <= d.high
            assert inside, d.name


@pytest.mark.parametrize(("low", "high", "inside"), [(0.6, 0.9, (0.6, 0.9)), (1.2, 2.0, (1.2,))])
def test_a_range_without_the_usual_values_starts_at_its_edge(
    read_space: Read, low: float, high: float, inside: tuple[float, ...]
):
    hole = {"range": [low, high]}
    parameters = {"weight": hole, "normalize": False}  # else all equal weights are one model
    space = read_space({"merge_method": "linear", "models": ["a", "b"], "parameters": parameters})
    assert tuple(values["weight"] for values in space.starts())[:2] == inside


def test_starts_begin_with_known_recipes(read_space: Read):
    """The base, the parents, their average, task arithmetic at 0.4; then usual weights."""
    hole = {"weight": {"range": [0.0, 1.5]}}
    models = [{"model": name, "parameters": hole} for name in ("a", "b")]
    space = read_space({"merge_method": "task_arithmetic", "base_model": "base", "models": models})
    points = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.4, 0.4), (1.0, 1.0)]
    assert [tuple(values.values()) for values in space.starts()] == points


def test_starts_are_all_different(read_space: Read):
    space = read_space({"merge_method": "slerp", "base_model": "base", "models": ["a"]})
    assert len({space.decode(values).fingerprint for values in space.starts()}) == len(
        space.starts()
    )


def test_groups_are_listed_for_the_check(space: SearchSpace):
    assert list(tensor_groups(space)) == ["self_attn", "mlp"]


def test_the_description_tells_spaces_apart(space: SearchSpace, read_space: Read):
    other = EVERYTHING | {
        "parameters": EVERYTHING["parameters"] | {"lambda": {"range": [0.1, 1.9]}}
    }
    assert space.describe() == read_space(EVERYTHING).describe()
    assert space.describe() != read_space(other).describe()
