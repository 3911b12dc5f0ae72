"""What is tried first where the order of layers is searched, and its part of the budget."""

from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from headers import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tiny_study import study_dict, write_study

from search.baselines import ARITHMETIC, AVERAGE, TIES, baselines
from search.bench import check_study
from search.commands import RunOptions, run_study
from search.holes import build_space
from search.known import encode, fingerprint, known_names
from search.space import SearchSpace
from search.starts import starts_within
from search.study import open_study

SILENT = Console(file=StringIO())
DEPTH = 6
LAYER = {
    "self_attn.o_proj.weight": (4, 4),
    "mlp.up_proj.weight": (8, 4),
    "mlp.down_proj.weight": (4, 8),
}
PARENTS = {name: checkpoint(name, DEPTH, layer=LAYER) for name in ("base", "a", "b")}
HOLES = {"weight": {"range": [0.0, 1.5]}, "density": {"range": [0.05, 1.0]}}
MERGED = {
    "merge_method": {"choice": ["task_arithmetic", "ties"]},
    "base_model": "base",
    "models": [{"model": name, "parameters": HOLES} for name in "ab"],
}
EVERYTHING = {"base", "a", "b", AVERAGE, ARITHMETIC, TIES}
BOTH = ("choices", "numbers")


def read(slices: Mapping[str, Any], recipe: Mapping[str, Any] = MERGED) -> SearchSpace:
    mistakes: list[str] = []
    space = build_space({**recipe, "slices": dict(slices)}, PARENTS, mistakes, PARENTS)
    assert not mistakes
    return space


@st.composite
def forms(draw: st.DrawFn) -> dict[str, Any]:
    """Any form of which the models that are merged, in their own order, are points."""
    others = draw(st.lists(st.sampled_from(["a", "b", "base"]), unique=True))
    origins = draw(st.permutations(["merge", *others]))
    ends = draw(st.sampled_from([["layers"], ["merge"], ["a", "merge"], ["b", "layers", "a"]]))
    low, high = draw(st.integers(1, DEPTH - 1)), draw(st.integers(DEPTH, 2 * DEPTH))
    form: dict[str, Any] = {
        "origin": {"origin": origins, "per": draw(st.integers(1, DEPTH))},
        "cuts": {"cuts": draw(st.integers(1, 4)), "of": origins},
        "walk": {"walk": 1, "of": origins},
    }[draw(st.sampled_from(["origin", "cuts", "walk"]))]
    scale = draw(st.booleans()) and ("origin" not in form or high > DEPTH)
    encoding = draw(st.sampled_from(BOTH))
    return form | {"depth": [low, high], "ends": ends, "encoding": encoding, "scale": scale}


@given(slices=forms())
@settings(max_examples=60, deadline=None)
def test_known_recipes_are_found_whatever_the_form(slices: dict[str, Any]):
    """Parents, base, average, task arithmetic and TIES are points of each of these spaces."""
    space = read(slices)
    known = baselines(space)
    found = {name: encode(space, recipe) for name, recipe in known.items()}
    assert {name for name, values in found.items() if values is not None} == EVERYTHING
    first = [
        known_names(space).get(fingerprint(space.decode(p), space.depths)) for p in space.points
    ]
    assert set(first[: len(EVERYTHING) + 1]) >= EVERYTHING  # the study's own starts come before


@pytest.mark.parametrize("encoding", BOTH)
@pytest.mark.parametrize("slices", [{"origin": ["a", "b"]}, {"cuts": 2, "of": ["b", "a"]}])
def test_parents_are_found_where_layers_are_only_copied(slices: dict[str, Any], encoding: str):
    space = read(slices | {"encoding": encoding, "ends": ["a", "b"]}, {})
    found = {name for name, one in baselines(space).items() if encode(space, one) is not None}
    assert found == {"a", "b"}


@pytest.mark.parametrize("encoding", BOTH)
def test_layers_are_left_out_and_repeated_in_the_plain_average_only(encoding: str):
    space = read({"origin": "merge", "depth": [4, 8], "encoding": encoding})
    plans = [space.decode(point) for point in space.points]
    edited = [plan for plan in plans if len(plan.slices) > 1]
    weights = {
        setting.value
        for plan in edited
        for part in plan.slices
        for source in part.sources
        for setting in dict(source.parameters).get("weight", ())
    }
    assert len(edited) == 4
    assert weights == {0.5}


def costing(space: SearchSpace, count: int) -> int:
    """How many of the first points aren't scored anyway."""
    keys = [fingerprint(space.decode(point), space.depths) for point in space.points[:count]]
    return sum(key not in known_names(space) for key in keys)


def test_a_budget_affords_known_recipes_and_a_third_of_its_trials():
    space = read({"origin": ["merge", "a", "b"], "depth": [3, 9]})
    every = len(space.points)
    assert costing(space, every) == 6
    for trials in range(1, 30):
        count = starts_within(space, trials)
        assert costing(space, count) == min(max(trials // 3, 1), 6)
        assert count == every or costing(space, count + 1) > costing(space, count)
    assert starts_within(space, 18) == every


def test_candidates_of_an_earlier_study_are_counted():
    """They are all tried, and the study's own start values too if they spend the budget."""
    space = read({"origin": ["merge", "a", "b"], "depth": [3, 9]})
    known = len(EVERYTHING)
    first, taken = costing(space, known), known + 2
    assert costing(space, taken) == 2 + first
    assert starts_within(space, 3, taken) == taken + 1
    assert starts_within(space, 3, len(space.points)) == len(space.points)
    assert starts_within(space, 15, taken) == starts_within(space, 15)


def study_of(folder: Path) -> Path:
    recipe = study_dict()["recipe"] | {"slices": {"origin": "merge", "depth": [1, 5]}}
    search = {"sampler": "qmc", "trials": 9, "finalists": 1}
    return write_study(folder, study_dict(recipe=recipe, search=search))


def run(path: Path, *budgets: int) -> tuple[int, list[dict[str, Any]]]:
    """The number of starts, and the values of all trials."""
    for trials in budgets:
        run_study(path, SILENT, RunOptions(trials=trials))
    with open_study(check_study(path)) as study:
        return study.user_attrs["starts"], [trial.params for trial in study.trials]


def test_another_budget_changes_the_starts_only_until_all_are_tried(tmp_path: Path):
    starts, once = run(study_of(tmp_path / "once"), 15)
    again, twice = run(study_of(tmp_path / "twice"), 4, 15)
    assert (again, twice) == (starts, once)
    fewer, later = run(study_of(tmp_path / "later"), 9, 15)
    assert fewer < starts
    assert later[:fewer] == once[:fewer]
    drawn = [(values["a.weight"], values["b.weight"]) for values in later[fewer:]]
    assert len(set(drawn)) == 15 - fewer  # no place of the sequence is taken twice
