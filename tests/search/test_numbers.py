"""Numbers of holes: whole ones, starts, priors, weights that sum to one, steps over depth."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, truncnorm

from merge_core.checkpoint import Checkpoint
from merge_core.plan import compile_plan
from merge_core.recipe import to_dict
from search.dimensions import Prior, Real, Whole
from search.holes import build_space
from search.space import SearchSpace, broken, unbroken

Read = Callable[[dict[str, Any]], SearchSpace]
unit = st.floats(0, 1)


def arithmetic(hole: Any, **changes: Any) -> dict[str, Any]:
    models = [{"model": m, "parameters": {"weight": hole}} for m in "ab"]
    return {"merge_method": "task_arithmetic", "base_model": "base", "models": models} | changes


def shared(hole: Any, models: Any = ("a", "b"), method: Any = "task_arithmetic") -> dict[str, Any]:
    parameters = {"weight": hole}
    recipe = {"merge_method": method, "models": list(models), "parameters": parameters}
    return recipe | ({} if method == "linear" else {"base_model": "base"})


def mistakes_of(recipe: dict[str, Any], parents: Any = None) -> list[str]:
    found: list[str] = []
    build_space(recipe, ("base", "a", "b"), found, parents)
    return found


def weights(space: SearchSpace, values: Any) -> list[Any]:
    return [source["parameters"]["weight"] for source in to_dict(space.decode(values))["models"]]


def test_whole_numbers(read_space: Read):
    hole = {"range": [1, 8], "integer": True, "start": 3}
    recipe = {"merge_method": "karcher", "models": ["a", "b"], "parameters": {"max_iter": hole}}
    space = read_space(recipe)
    assert space.dimensions == (Whole("max_iter", 1, 8, False, ("karcher",), "max_iter", (), 3),)
    assert space.starts()[0] == {"max_iter": 3}
    assert to_dict(space.decode({"max_iter": 5}))["parameters"] == {"max_iter": 5.0}


def test_a_start_is_tried_first_and_stays_in_the_usual_ones(read_space: Read):
    recipe = arithmetic({"range": [0, 2]})
    recipe["models"][0]["parameters"]["weight"] = {"range": [0, 2], "start": 0.6}
    starts = read_space(recipe).starts()
    assert starts[0]["a.weight"] == 0.6
    assert {values["a.weight"] for values in starts} == {0.0, 1.0, 0.5, 0.4, 0.6}
    assert {values["b.weight"] for values in starts if values["a.weight"] == 0.6} == {0.5, 1.0}


def test_a_prior_is_drawn_from_by_a_uniform_sampler(read_space: Read):
    hole = {"range": [0, 1.5], "prior": {"mean": 0.4, "sd": 0.3}}
    space = read_space(arithmetic(hole))
    (dimension, _) = space.dimensions
    assert isinstance(dimension, Real)
    assert (dimension.low, dimension.high, dimension.log) == (0.0, 1.0, False)
    drawn = [dimension.value(u) for u in np.random.default_rng(0).uniform(size=2000)]
    expected = truncnorm((0 - 0.4) / 0.3, (1.5 - 0.4) / 0.3, 0.4, 0.3)
    assert kstest(drawn, expected.cdf).pvalue > 0.01
    assert weights(space, space.starts()[0]) == pytest.approx([0.4, 0.4])


@given(unit, st.floats(-2, 2), st.floats(0.05, 5))
def test_a_prior_keeps_its_range_and_is_inverted(share: float, mean: float, sd: float):
    prior = Prior(mean, sd, -1.0, 1.0)
    assume(abs(mean) <= 1 + 5 * sd)  # farther ones are refused
    assert -1 <= prior.value(share) <= 1
    assert (prior.value(0), prior.value(1)) == (-1, 1)
    if abs(mean) < 1 + 3 * sd and 1e-6 < share < 1 - 1e-6:
        assert prior.share(prior.value(share)) == pytest.approx(share, abs=1e-5)


def test_the_start_of_a_prior_may_be_another_than_its_mean(read_space: Read):
    hole = {"range": [0, 1], "prior": {"mean": 0.4, "sd": 0.3}, "start": 0.9}
    space = read_space(arithmetic(hole))
    assert weights(space, space.starts()[0]) == pytest.approx([0.9, 0.9])


@given(st.lists(unit, min_size=1, max_size=6))
def test_a_broken_stick_sums_to_one_and_can_be_put_together(coordinates: list[float]):
    parts = broken(coordinates)
    assert sum(parts) == pytest.approx(1, abs=1e-12)
    assert min(parts) >= -1e-15
    assert broken(unbroken(parts)) == pytest.approx(parts, abs=1e-6)


@pytest.mark.parametrize("hot", range(3))
def test_a_model_can_get_everything(hot: int):
    one_hot = [float(i == hot) for i in range(3)]
    assert broken(unbroken(one_hot)) == one_hot


def test_uniform_coordinates_are_uniform_on_the_simplex():
    """Each weight of four is then Beta(1, 3), whichever place its model has."""
    drawn = np.array([broken(row) for row in np.random.default_rng(0).uniform(size=(2000, 3))])
    for column in drawn.T:
        assert kstest(column, "beta", args=(1, 3)).pvalue > 0.01


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_a_simplex_has_a_dimension_fewer_than_models(read_space: Read, method: str):
    models = ("a", "b", "base") if method == "linear" else ("a", "b")
    space = read_space(shared({"simplex": True}, models, method))
    assert [d.name for d in space.dimensions] == [f"{m}.weight" for m in models[:-1]]
    assert weights(space, space.starts()[0]) == pytest.approx([1 / len(models)] * len(models))
    assert sum(weights(space, dict.fromkeys([d.name for d in space.dimensions], 0.3))) == 1


def test_a_base_that_is_no_parent_takes_no_part(read_space: Read):
    method = {"choice": ["task_arithmetic", "linear"]}
    space = read_space(shared({"simplex": True}, ("base", "a", "b"), method))
    assert [d.name for d in space.dimensions] == ["merge_method", "a.weight"]
    assert weights(space, {"merge_method": "linear", "a.weight": 0.25}) == [0.0, 0.25, 0.75]


def test_a_simplex_by_groups_and_knots(read_space: Read):
    hole = {"simplex": True, "by": ["mlp", "*"], "knots": 2}
    space = read_space(shared(hole))
    assert [d.name for d in space.dimensions] == [
        *("a.weight[mlp]@0", "a.weight[mlp]@1", "a.weight[*]@0", "a.weight[*]@1")
    ]
    values = dict(zip([d.name for d in space.dimensions], [0.1, 0.2, 0.3, 0.4], strict=True))
    assert weights(space, values)[1] == [
        {"value": pytest.approx([0.9, 0.8]), "filter": "mlp"},
        {"value": pytest.approx([0.7, 0.6])},
    ]


@given(st.data())
@settings(max_examples=10, deadline=None)
@pytest.mark.parametrize(("per", "numbers"), [("layer", 3), (2, 2), (3, 1), (9, 1)])
def test_steps_over_depth_reach_each_layer_as_they_are(
    checkpoints: dict[str, Checkpoint], per: Any, numbers: int, data: st.DataObject
):
    found: list[str] = []
    recipe = arithmetic({"range": [0, 1], "per": per})
    space = build_space(recipe, ("base", "a", "b"), found, checkpoints)
    assert not found
    assert len(space.dimensions) == 2 * numbers
    values = space.draw(lambda _: data.draw(unit))
    own = [v for name, v in values.items() if name.startswith("a.")]
    plan = compile_plan(space.decode(values), checkpoints)
    for step in plan.steps:
        layer = next((int(part) for part in step.out.split(".") if part.isdigit()), 0)
        expected = own[layer // (1 if per == "layer" else per)]
        assert dict(step.params)["weight"][0] == pytest.approx(expected, abs=1e-12)


def test_steps_are_counted_in_their_slice(checkpoints: dict[str, Checkpoint]):
    source = {"parameters": {"weight": {"range": [0, 1], "per": "layer"}}, "layer_range": [1, 3]}
    first = {"layer_range": [0, 1], "parameters": {"weight": 1.0}}
    slices = [{"sources": [{"model": m} | part for m in "ab"]} for part in (first, source)]
    space = build_space({"merge_method": "linear", "slices": slices}, "ab", [], checkpoints)
    assert [d.name for d in space.dimensions] == [
        *("slice1.a.weight@0", "slice1.a.weight@1", "slice1.b.weight@0", "slice1.b.weight@1")
    ]


def test_roles_become_filters(checkpoints: dict[str, Checkpoint]):
    recipe = arithmetic({"range": [0, 1], "by": {"roles": ["attention", "norm", "*"]}})
    found: list[str] = []
    space = build_space(recipe, ("base", "a", "b"), found, checkpoints)
    assert not found
    numbers = {"attention": 0.1, "norm": 0.2, "*": 0.3}
    values = {f"{m}.weight[{role}]": n for m in "ab" for role, n in numbers.items()}
    for step in compile_plan(space.decode(values), checkpoints).steps:
        role = "norm" if "norm" in step.out else "attention" if "attn" in step.out else "*"
        assert dict(step.params)["weight"] == (numbers[role],) * 2
    every = arithmetic({"range": [0, 1], "by": "roles"})
    names = [d.name for d in build_space(every, ("base", "a", "b"), [], checkpoints).dimensions]
    assert names[:4] == [f"a.weight[{r}]" for r in ("attention", "mlp", "norm", "embedding")]


def test_a_range_lies_in_the_bounds_of_every_method_that_has_it():
    recipe = arithmetic(0.5)
    recipe["merge_method"] = {"choice": ["ties", "dare_ties"]}
    recipe["models"][0]["parameters"]["density"] = {"range": [10, 90]}
    found = mistakes_of(recipe)
    assert found == [
        f"recipe.models[0].parameters.density.range: 'density' of '{method}' must be from 0 to 1, "
        "got [10, 90]"
        for method in ("ties", "dare_ties")
    ]


SPANS: list[tuple[dict[str, Any], str]] = [
    ({"range": [0.5, 8], "integer": True}, ".range: expected whole numbers with integer: true"),
    ({"range": [1, 8], "integer": True, "start": 1.5}, ".start: expected a whole number"),
    ({"range": [1, 8], "integer": True, "knots": 2}, ": whole numbers can't be interpolated"),
    ({"range": [1, 8], "integer": 1}, ".integer: expected true or false, got 1"),
    ({"range": [0, 1], "start": 2}, ".start: expected a number from 0 to 1, got 2"),
    ({"range": [0, 1], "start": "x"}, ".start: expected a number from 0 to 1, got 'x'"),
    ({"range": [0, 1], "prior": 0.5}, ".prior: expected {mean: number, sd: number above 0}"),
    ({"range": [0, 1], "prior": {"mean": 0.5}}, ".prior: expected {mean: number, sd: number"),
    ({"range": [0, 1], "prior": {"mean": 0.5, "sd": 0}}, ".prior: expected {mean: number, sd"),
    ({"range": [0, 1], "prior": {"mean": 9, "sd": 1}}, ".prior: the range lies more than 5 sd"),
    (
        {"range": [0.1, 1], "log": True, "prior": {"mean": 0.5, "sd": 1}},
        ".prior: stands with neither 'log' nor 'integer'; leave one out",
    ),
    ({"simplex": True}, ": weights that sum to one stand beside the models, under 'parameters'"),
    ({"range": [0, 1], "per": "layer", "knots": 2}, ": 'knots' are interpolated and 'per' makes"),
    ({"range": [0, 1], "per": "block"}, ".per: expected 'layer', or of how many layers a block"),
    ({"range": [0, 1], "per": 0}, ".per: expected 'layer', or of how many layers a block is, got"),
    ({"range": [0, 1], "per": "layer"}, ".per: needs the models, to count their layers"),
    ({"range": [0, 1], "by": "roles"}, ".by: roles need the models, to read them from the ten"),
    ({"range": [0, 1], "by": {"role": ["mlp"]}}, ".by: expected parts of tensor names, 'roles'"),
    ({"range": [0, 1], "by": {"roles": ["mpl"]}}, ".by.roles: 'mpl' is no role; did you mean 'm"),
    ({"range": [0, 1], "by": {"roles": ["*", "mlp"]}}, ".by.roles: each role once"),
]


@pytest.mark.parametrize(("hole", "message"), SPANS)
def test_a_mistake_in_a_number(hole: dict[str, Any], message: str):
    recipe = arithmetic(0.5)
    recipe["models"][0]["parameters"]["weight"] = hole
    found = mistakes_of(recipe)
    assert found[0].startswith(f"recipe.models[0].parameters.weight{message}"), found
    assert len(found) == 1 or "knots" in message


def test_a_role_that_no_parent_has_is_a_mistake(checkpoints: dict[str, Checkpoint]):
    parents = {
        name: parent
        for name, parent in checkpoints.items()
        if "lm_head.weight" not in parent.tensors
    }
    hole = {"range": [0, 1], "by": {"roles": ["head", "*"]}}
    if parents:
        (found,) = set(mistakes_of(arithmetic(hole), parents))
        assert "no parent has a tensor of the role 'head'; leave it out" in found


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (shared({"simplex": 1}), ".parameters.weight.simplex: expected true, got 1"),
        (shared({"simplex": True, "log": True}), ".parameters.weight.log: no key of a simplex"),
        (shared({"simplex": True}, ["a"]), ".parameters.weight: a simplex needs two models or"),
        (
            shared({"simplex": True}) | {"parameters": {"lambda": {"simplex": True}}},
            ".parameters.lambda: is one value for all models, so it is no simplex",
        ),
        (
            shared({"simplex": True}, [{"model": "a", "parameters": {"weight": 1}}, "b"]),
            ".models[0].parameters.weight: is given by the simplex",
        ),
        (
            {
                "merge_method": "linear",
                "parameters": {"weight": {"simplex": True}},
                "slices": [{"sources": [{"model": m, "layer_range": [0, 3]} for m in "ab"]}],
            },
            ".slices: 'weight' sums to one over the models of one place",
        ),
    ],
)
def test_a_mistake_in_a_simplex(recipe: dict[str, Any], message: str):
    found = mistakes_of(recipe)
    assert any(line.startswith(f"recipe{message}") for line in found), found
