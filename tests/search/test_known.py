"""Known recipes as points of a space."""

from collections.abc import Callable
from typing import Any

import pytest

from merge_core.canonical import canonical
from merge_core.checkpoint import Checkpoint
from merge_core.recipe import from_dict
from search.baselines import ARITHMETIC, AVERAGE, TIES, baselines, parent_recipe
from search.holes import build_space
from search.known import encode, fingerprint, known_names
from search.space import SearchSpace

Read = Callable[[dict[str, Any]], SearchSpace]
WEIGHT: dict[str, Any] = {"weight": {"range": [0, 1.5]}}
DENSITY: dict[str, Any] = {"density": {"range": [0.05, 1.0]}}


def over(method: Any, hole: dict[str, Any], **changes: Any) -> dict[str, Any]:
    models = [{"model": m, "parameters": hole} for m in "ab"]
    return {"merge_method": method, "base_model": "base", "models": models} | changes


CASES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "task arithmetic": (over("task_arithmetic", WEIGHT), {"base", "a", "b", AVERAGE, ARITHMETIC}),
    "ties": (over("ties", WEIGHT | DENSITY), {"base", "a", "b", TIES}),
    "both": (
        over({"choice": ["ties", "task_arithmetic"]}, WEIGHT | DENSITY),
        {"base", "a", "b", AVERAGE, ARITHMETIC, TIES},
    ),
    "by groups over depth": (
        over("task_arithmetic", {"weight": {"range": [0, 1.5], "by": ["mlp", "*"], "knots": 3}}),
        {"base", "a", "b", AVERAGE, ARITHMETIC},
    ),
    "a prior": (
        over("dare_ties", {"weight": {"range": [0, 1], "prior": {"mean": 0.5, "sd": 0.2}}}),
        {"base", "a", "b"},
    ),
    "no room": (over("task_arithmetic", {"weight": {"range": [0.45, 0.9]}}), {AVERAGE}),
    "another density": (over("ties", {"weight": 1.0, "density": {"range": [0.3, 1]}}), set()),
    "a simplex": (
        {
            "merge_method": "linear",
            "models": ["a", "b"],
            "parameters": {"weight": {"simplex": True}},
        },
        {"a", "b", AVERAGE},
    ),
    "slerp": ({"merge_method": "slerp", "base_model": "a", "models": ["a", "b"]}, {"a", "b"}),
    "nuslerp": ({"merge_method": "nuslerp", "models": ["a", "b"]}, {"a", "b"}),
    "normalised or not": (
        over(
            "task_arithmetic",
            {"weight": {"range": [0.4, 2]}},
            parameters={"normalize": {"choice": [False, True]}},
        ),
        {AVERAGE, ARITHMETIC},
    ),
    "a model": (
        {
            "merge_method": "passthrough",
            "models": [{"model": {"choice": ["a", "b"]}}],
        },
        {"a", "b"},
    ),
    "recipes": (
        {
            "choice": [
                {"merge_method": "slerp", "base_model": "a", "models": ["a", "b"]},
                over("task_arithmetic", WEIGHT),
            ]
        },
        {"a", "b", "base", AVERAGE},
    ),
    "slices": (
        {
            "merge_method": "task_arithmetic",
            "base_model": "base",
            "slices": [
                {
                    "sources": [
                        {"model": m, "layer_range": cut, "parameters": WEIGHT} for m in "ab"
                    ]
                    + [{"model": "base", "layer_range": cut}]
                }
                for cut in ([0, 1], [1, 3])
            ],
        },
        {"base", "a", "b", AVERAGE, ARITHMETIC},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_known_recipes_are_found_where_the_space_has_them(read_space: Read, case: str):
    recipe, contained = CASES[case]
    space = read_space(recipe)
    found = {
        name: values
        for name, known in baselines(space).items()
        if (values := encode(space, known)) is not None
    }
    assert set(found) == contained
    for name, values in found.items():
        assert fingerprint(space.decode(values)) == canonical(baselines(space)[name]).fingerprint
        assert set(values) == {d.name for d in space.active(values)}


@pytest.mark.parametrize("case", CASES)
def test_starts_are_different_models_and_begin_with_the_known_ones(read_space: Read, case: str):
    space = read_space(CASES[case][0])
    starts = [fingerprint(space.decode(values)) for values in space.starts()]
    assert len(set(starts)) == len(starts)
    known = [canonical(recipe).fingerprint for recipe in baselines(space).values()]
    inside = [one for one in known if one in starts]
    if "prior" not in case:  # whose mean comes first
        assert set(starts[: len(inside)]) == set(inside)


def test_per_layer(checkpoints: dict[str, Checkpoint]):
    recipe = over("task_arithmetic", {"weight": {"range": [0, 1], "per": "layer"}})
    space = build_space(recipe, ("base", "a", "b"), [], checkpoints)
    values = encode(space, parent_recipe("a"))
    assert values == {f"{m}.weight@{n}": float(m == "a") for m in "ab" for n in range(3)}


def test_any_flat_recipe_can_be_asked_for(read_space: Read):
    space = read_space(over("ties", WEIGHT | DENSITY))
    own = {"weight": 0.75, "density": 0.25}
    data = over("ties", own)
    values = encode(space, from_dict(data))
    assert values is not None
    assert canonical(space.decode(values)) == canonical(from_dict(data))
    assert encode(space, from_dict(over("ties", own | {"weight": [0, 1]}))) is None


def test_a_candidate_that_is_a_known_recipe_is_known_by_name(read_space: Read):
    space = read_space(over("task_arithmetic", WEIGHT))
    known = known_names(space)
    names = [known.get(fingerprint(space.decode(values))) for values in space.starts()]
    assert names == ["base", "a", "b", AVERAGE, ARITHMETIC, None]
