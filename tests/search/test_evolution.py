"""Children of two recipes: blocks move together, lineage is recorded, nothing leaves the space."""

# pyright: reportPrivateUsage=false

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from search.evolution import LINEAGE, Evolution, Population, crossed, mutated, partitions
from search.genes import cube
from search.samplers import Keyed

NAMES = (
    "merge_method",
    *(f"{model}.weight[{group}]@{i}" for model in "ab" for group in ("attn", "*") for i in (0, 1)),
    "a.density",
)
KNOWN: dict[str, BaseDistribution] = {
    "a.weight@0": FloatDistribution(0.0, 1.0),
    "a.weight@1": FloatDistribution(0.0, 1.0),
    "b.weight@0": FloatDistribution(0.1, 10.0, log=True),
    "b.weight@1": FloatDistribution(0.1, 10.0, log=True),
    "method": CategoricalDistribution(("linear", "ties")),
}


def population(params: list[dict[str, float | str]]) -> optuna.Study:
    """A study of told trials, the first ones worst."""
    study = optuna.create_study(direction="maximize")
    trials = [
        optuna.trial.create_trial(params=one, distributions=KNOWN, value=float(i))
        for i, one in enumerate(params)
    ]
    study.add_trials(trials)
    return study


def recipe(number: float, word: str) -> dict[str, float | str]:
    return {"a.weight@0": number, "a.weight@1": number, "method": word} | {
        f"b.weight@{i}": 10.0**number for i in (0, 1)
    }


def test_depths_groups_and_models_are_blocks():
    depths, groups, owners = partitions(NAMES)
    assert [len(block) for block in depths] == [1, 1, 4, 4]  # density, method, then two knots
    assert {len(block) for block in groups} == {1, 4}
    assert owners == (
        tuple(name for name in NAMES if name.startswith("a.")),
        tuple(name for name in NAMES if name.startswith("b.")),
        ("merge_method",),
    )
    for way in (depths, groups, owners):
        assert sorted(name for block in way for name in block) == sorted(NAMES)


def test_slices_and_knots_of_other_counts_are_ordered_by_depth():
    (slices, *_) = partitions(("slice0.a.weight", "slice1.a.weight", "slice0.b.weight"))
    assert slices == (("slice0.a.weight", "slice0.b.weight"), ("slice1.a.weight",))
    (depths, *_) = partitions(("a.t@0", "a.t@1", "b.t@0", "b.t@1", "b.t@2", "b.t@3"))
    assert [name for block in depths for name in block] == [
        *("b.t@0", "a.t@0", "b.t@1", "b.t@2", "a.t@1", "b.t@3")
    ]


def test_a_space_without_blocks_has_each_dimension_for_itself():
    assert partitions(("weight", "scale")) == ((("scale",), ("weight",)),)
    assert partitions(("weight",)) == ((("weight",),),)


def test_a_child_has_whole_blocks_of_both():
    mother, father = (dict.fromkeys(NAMES, who) for who in ("mother", "father"))
    for way in partitions(NAMES):
        for seed in range(20):
            child = crossed(mother, father, way, np.random.default_rng(seed))
            givers = [{child[name] for name in block} for block in way]
            assert all(len(giver) == 1 for giver in givers)
            assert 1 <= sum(giver == {"father"} for giver in givers) <= len(way) / 2


def test_mutations_change_something_and_stay_in_the_space():
    known = cube(KNOWN)
    child = recipe(1.0, "ties")
    for seed in range(50):
        moved = mutated(child, known, np.random.default_rng(seed))
        assert list(moved) == list(child)
        assert all(KNOWN[n]._contains(KNOWN[n].to_internal_repr(v)) for n, v in moved.items())
    assert any(mutated(child, known, np.random.default_rng(seed)) != child for seed in range(3))


def test_lineage_names_the_parents():
    study = population([recipe(i / 30, "linear") for i in range(30)])
    study.sampler = Keyed(Evolution(KNOWN, seed=1), 1, 30, study.trials, KNOWN)
    trial = study.ask()
    child = trial.relative_params
    lineage: list[int] = study.trials[-1].user_attrs[LINEAGE]
    mother, father = (study.trials[number] for number in lineage)
    assert min(mother.number, father.number) >= 10  # the best twenty of thirty
    inherited = [n for n in KNOWN if child[n] in (mother.params[n], father.params[n])]
    assert len(inherited) >= len(KNOWN) - 3
    assert child not in [t.params for t in study.trials]


@pytest.mark.parametrize("kind", [Population, Evolution])
def test_parents_at_the_walls_still_have_children(kind: type[Population]):
    """Optuna's own crossover would try for ever to get all of 64 dimensions inside."""
    known: dict[str, BaseDistribution] = {f"x{i}": FloatDistribution(0.0, 1.0) for i in range(64)}
    study = optuna.create_study(direction="maximize")
    at_wall = optuna.trial.create_trial(
        params=dict.fromkeys(known, 0.0), distributions=known, value=0.0
    )
    study.add_trials([at_wall] * 20)
    told = study.trials
    for seed in range(5):
        study.sampler = Keyed(kind(known, seed), seed, 20, told, known)
        child = study.ask().relative_params
        assert all(0 <= value <= 1 for value in child.values())
        assert any(value > 0 for value in child.values()) or kind is Population
