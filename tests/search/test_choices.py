"""Parts of recipes to choose from: dimensions that exist only under a choice."""

from collections.abc import Callable
from typing import Any

import pytest
from coordinates import draw_values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merge_core.checkpoint import Checkpoint
from merge_core.plan import compile_plan
from merge_core.recipe import from_dict, to_dict
from search.holes import build_space
from search.space import SearchSpace

Read = Callable[[dict[str, Any]], SearchSpace]
WEIGHT = {"weight": {"range": [0.1, 1.0]}}
TIES = {
    "merge_method": {"choice": ["ties", "dare_ties"]},
    "base_model": "base",
    "models": [{"model": m, "parameters": WEIGHT | {"density": 0.5}} for m in "ab"],
}
SLERP = {"merge_method": "slerp", "base_model": "a", "models": ["a", "b"]}
SPAN = {"layer_range": [0, 3]}
SHAPES: dict[str, dict[str, Any]] = {
    "recipes": {"choice": [TIES, SLERP], "dtype": "float32"},
    "named recipes": {"choice": {"first": TIES, "second": TIES}, "start": "second"},
    "a model": {
        "merge_method": "linear",
        "models": [
            {"model": {"choice": ["a", "b"]}, "parameters": WEIGHT},
            {"model": "base", "parameters": WEIGHT},
        ],
    },
    "a source": {
        "merge_method": "linear",
        "models": [
            {"choice": ["a", {"model": "b", "parameters": WEIGHT}]},
            {"model": "base", "parameters": WEIGHT},
        ],
    },
    "sources": {
        "merge_method": "linear",
        "slices": [
            {
                "sources": {
                    "choice": {
                        "one": [{"model": "a", **SPAN}],
                        "two": [{"model": "a", **SPAN}, {"model": "b", **SPAN}],
                    }
                }
            }
        ],
    },
    "slices": {
        "merge_method": "passthrough",
        "slices": {
            "choice": {
                "whole": [{"sources": [{"model": "a", **SPAN}]}],
                "cut": [
                    {"sources": [{"model": {"choice": ["a", "b"]}, "layer_range": [0, 1]}]},
                    {"sources": [{"model": "b", "layer_range": [1, 3]}]},
                ],
            }
        },
    },
    "a slice": {
        "merge_method": "slerp",
        "slices": [
            {
                "choice": {
                    pair: {
                        "sources": [{"model": m, **SPAN} for m in pair.split("-")],
                        "base_model": pair.split("-")[0],
                    }
                    for pair in ("a-b", "a-base", "b-base")
                }
            }
        ],
    },
    "parameters": {
        "merge_method": {"choice": ["linear", "task_arithmetic"]},
        "base_model": "base",
        "models": [
            {"model": "a", "parameters": {"choice": {"flat": WEIGHT, "deep": {"weight": [0, 1]}}}},
            {"model": "b", "parameters": WEIGHT},
            {"model": "base", "parameters": {"weight": 1.0}},
        ],
    },
    "values": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [
            {"model": "a", "parameters": {"weight": {"choice": [0.5, [0, 1], {"range": [0, 1]}]}}},
            {
                "model": "b",
                "parameters": {"weight": {"choice": {"off": 0.0, "on": WEIGHT["weight"]}}},
            },
        ],
    },
    "values a method lacks": {
        "merge_method": {"choice": ["task_arithmetic", "ties"]},
        "base_model": "base",
        "models": ["a"],
        "parameters": {"density": {"choice": {"all": 1.0, "few": {"range": [0.1, 0.5]}}}},
    },
}
NAMES = {
    "recipes": [
        *("recipe", "option0.merge_method", "option0.a.weight", "option0.b.weight", "option1.t")
    ],
    "named recipes": [
        *("recipe", "first.merge_method", "first.a.weight", "first.b.weight"),
        *("second.merge_method", "second.a.weight", "second.b.weight"),
    ],
    "a model": ["model0", "model0.weight", "base.weight"],
    "a source": ["model0", "model0.a.weight", "model0.b.weight", "base.weight"],
    "sources": [
        *("slice0.sources", "slice0.sources.one.a.weight", "slice0.sources.two.a.weight"),
        "slice0.sources.two.b.weight",
    ],
    "slices": ["slices", "slices.cut.slice0.model0"],
    "a slice": ["t", "slice0"],
    "parameters": ["merge_method", "a.parameters", "a.parameters.flat.weight", "b.weight"],
    "values": ["a.weight", "a.weight.option2", "b.weight", "b.weight.on"],
    "values a method lacks": ["merge_method", "a.weight", "density", "density.few"],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_names_are_short_and_tell_the_choice(read_space: Read, shape: str):
    names = [d.name for d in read_space(SHAPES[shape]).dimensions]
    assert sorted(names) == sorted(NAMES[shape])


@pytest.mark.parametrize("shape", SHAPES)
@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_value_gives_a_recipe_that_can_be_merged(
    read_space: Read, checkpoints: dict[str, Checkpoint], shape: str, data: st.DataObject
):
    space = read_space(SHAPES[shape])
    values = draw_values(space, data)
    recipe = space.decode(values)
    assert compile_plan(recipe, checkpoints, judge=False).depth == 3
    assert from_dict(to_dict(recipe)) == recipe
    assert set(values) == {d.name for d in space.active(values)}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_option_is_probed_and_choices_come_before_what_they_decide(
    read_space: Read, shape: str
):
    space = read_space(SHAPES[shape])
    probes = list(space.probes())
    for at, dimension in enumerate(space.dimensions):
        assert {name for name, _ in dimension.under} <= {d.name for d in space.dimensions[:at]}
        for option in getattr(dimension, "options", ()):
            assert any(values.get(dimension.name) == option for values in probes)
    assert all(values in [dict(v) for v in space.starts()] for values in space.starts())


def test_what_is_not_chosen_is_not_asked_for(read_space: Read):
    space = read_space(SHAPES["recipes"])
    (slerp,) = (v for v in space.starts() if v["recipe"] == "option1" and v["option1.t"] == 0.5)
    assert set(slerp) == {"recipe", "option1.t"}
    assert space.method(slerp) == "slerp"
    assert space.decode(slerp).dtype == "float32"
    assert space.methods == ("ties", "dare_ties", "slerp")


def test_a_study_may_say_which_is_tried_first(read_space: Read):
    space = read_space(SHAPES["named recipes"])
    assert space.starts()[0]["recipe"] == "second"
    method = {"choice": ["task_arithmetic", "ties"], "start": "ties"}
    first = read_space(TIES | {"merge_method": method}).starts()[0]
    assert first["merge_method"] == "ties"


def test_all_models_of_all_options_are_known(read_space: Read):
    space = read_space(SHAPES["a source"])
    assert space.models == ("a", "b", "base")
    assert read_space(SHAPES["recipes"]).everyone().models == ("a", "b", "base")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"choice": ["a"]}}, ".models[0].model.choice: expected two or more, as a li"),
        ({"model": {"choice": ["a", "x"]}}, ".models[0].model.choice[1]: 'x' is not under 'mode"),
        ({"model": {"choice": ["a", "b"]}}, ".models[1]: 'b' may be chosen here and in [0], but"),
        ({"model": {"choice": ["a", "base"]}}, ".models[0]: 'base' is the base model; leave it o"),
        ({"model": {"choice": ["a", "a"], "strat": 1}}, ".models[0].model.strat: unknown key; did"),
        (
            {"model": "a", "parameters": {"choice": [1, 2]}},
            ".models[0].parameters.choice[0]: expec",
        ),
        (
            {"model": "a", "parameters": {"weight": {"choice": [0.5, {"range": [1, 0]}]}}},
            ".models[0].parameters.weight.choice[1].range: expected [low, high]",
        ),
        (
            {"model": "a", "parameters": {"weight": {"choice": [0.5, 0.6], "start": 0.7}}},
            ".models[0].parameters.weight.start: 0.7 is none of 0.5, 0.6",
        ),
        (
            {"model": "a", "parameters": {"weight": {"choice": [0.5, 0.5]}}},
            ".models[0].parameters.weight.choice: each value once",
        ),
    ],
)
def test_a_mistake_in_a_choice(changes: dict[str, Any], message: str):
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [changes, {"model": "b", "parameters": WEIGHT}],
    }
    found: list[str] = []
    build_space(recipe, ("base", "a", "b"), found)
    assert any(line.startswith(f"recipe{message}") for line in found), found


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"choice": [TIES]}, "recipe.choice: expected two or more, as a list or by name"),
        ({"choice": [TIES, 7]}, "recipe.choice[1]: expected a recipe"),
        ({"choice": [TIES, SLERP], "models": ["a"]}, "recipe.models: unknown key; known: choice"),
        ({"choice": [TIES, SLERP | {"dtype": "float32"}]}, "recipe.choice[1].dtype: unknown key"),
        ({"choice": [TIES, SLERP], "start": "x"}, "recipe.start: 'x' is none of option0, option1"),
        (
            {"choice": [TIES, {"choice": [SLERP, TIES]}]},
            "recipe.choice[1]: a choice of recipes can't stand in another; list all in one",
        ),
        ({"choice": [TIES, {"merge_method": "slerp"}]}, "recipe.choice[1]: give exactly one of"),
    ],
)
def test_a_mistake_in_a_choice_of_recipes(recipe: dict[str, Any], message: str):
    found: list[str] = []
    build_space(recipe, ("base", "a", "b"), found)
    assert any(line.startswith(message) for line in found), found
