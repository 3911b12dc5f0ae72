"""The sampler that learns from items: what it is told, what it makes of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, create_trial
from scipy.special import expit

from search.composite import Composite, _fits  # pyright: ignore[reportPrivateUsage]
from search.outputs import Outputs, Part, Reader, joined, plain
from search.space import Choice, Dimension, Real, Whole

LINEAR = ("linear",)
ITEMS = 60
NUMBERS = tuple(Real(f"w{i}", 0.0, 1.0, False, LINEAR, "weight") for i in range(4))
KNOWN = {d.name: FloatDistribution(d.low, d.high) for d in NUMBERS}


def odds_of(params: dict[str, Any]) -> np.ndarray:
    """Items, each of which has a best place near the middle and falls off at its own pace."""
    chance = np.random.default_rng(7)
    middles = 0.5 + 0.15 * chance.standard_normal((ITEMS, 4))
    paces = chance.uniform(5, 30, ITEMS)
    point = np.array([params[d.name] for d in NUMBERS])
    return 2.0 - paces * ((middles - point) ** 2).sum(1)


def score(params: dict[str, Any]) -> float:
    return float(expit(odds_of(params)).mean())


def reader(trials: Sequence[FrozenTrial]) -> tuple[list[FrozenTrial], Outputs]:
    part = Part(ITEMS, np.ones(ITEMS), np.ones(1))
    told = np.array([trial.values for trial in trials])
    rows = np.array([odds_of(trial.params) for trial in trials])
    return list(trials), joined([part], rows, told, np.empty((len(trials), 0)))


def played(read: Reader | None, seed: int, count: int = 24) -> list[float]:
    """The values of a search; the first ones are near a poor start."""
    study = optuna.create_study(direction="maximize")
    study.add_trial(create_trial(params=dict.fromkeys(KNOWN, 0.1), distributions=KNOWN, value=0.1))
    trials = study.get_trials(deepcopy=False)
    for number in range(1, count):
        first = number < 8
        sampler = Composite(
            NUMBERS, KNOWN, trials, [], [], seed * 100 + number, first=first, reader=read
        )
        params = sampler.sample_relative(study, trials[0], dict(KNOWN))
        study.add_trial(create_trial(params=params, distributions=KNOWN, value=score(params)))
        trials = study.get_trials(deepcopy=False)
    return [trial.value or 0.0 for trial in trials]


def test_items_teach_more_than_their_mean():
    """After equally many candidates the best is nearer to what can be reached at all."""
    best = max(
        score(dict(zip(KNOWN, p, strict=True))) for p in np.random.default_rng(0).random((4000, 4))
    )
    taught = [best - max(played(reader, seed)) for seed in range(5)]
    untaught = [best - max(played(None, seed)) for seed in range(5)]
    assert np.mean(taught) < 0.01
    assert np.mean(taught) < 0.6 * np.mean(untaught)


def test_outputs_add_up_to_what_trials_were_told():
    chance = np.random.default_rng(0)
    parts = [
        Part(3, np.array([1.0, -1.0, 2.0]), np.array([0.5, 0.0])),
        Part(2, np.ones(2), np.array([0.25, 1.0])),
    ]
    odds, told = chance.normal(size=(6, 5)), chance.normal(size=(6, 2))
    missed = chance.normal(size=(6, 3))
    outputs = joined(parts, odds, told, missed)
    np.testing.assert_allclose(outputs.values(outputs.table), told)
    np.testing.assert_allclose(outputs.missed(outputs.table), missed)
    first = (expit(odds[:, :3]) * parts[0].factors).mean(1)
    second = expit(odds[:, 3:]).mean(1)
    explained = np.column_stack([first * 0.5 + second * 0.25, second])
    np.testing.assert_allclose(outputs.table[:, 5:7], told - explained)


def test_without_items_values_and_constraints_are_the_outputs():
    trials = [
        create_trial(values=[1.0, 2.0], params={}, user_attrs={"constraints": [0.5]}),
        create_trial(values=[3.0, 4.0], params={}),  # of a time before there were limits
        create_trial(values=[5.0, 6.0], params={}, user_attrs={"constraints": [-0.5]}),
    ]
    kept, outputs = plain(trials)
    assert kept == [trials[0], trials[2]]
    assert outputs.values(outputs.table).tolist() == [[1.0, 2.0], [5.0, 6.0]]
    assert outputs.missed(outputs.table).tolist() == [[0.5], [-0.5]]


MIXED: tuple[Dimension, ...] = (
    Choice("method", ("x", "y"), LINEAR, "c"),
    Real("w", 0.0, 1.0, False, LINEAR, "weight"),
    Whole("k", 1, 5, False, LINEAR, "k", under=(("method", ("y",)),)),
    Choice("m", ("p", "q", "r"), LINEAR, "c", under=(("method", ("y",)),)),
)
MIXED_KNOWN = {
    "method": CategoricalDistribution(("x", "y")),
    "w": FloatDistribution(0.0, 1.0),
    "k": IntDistribution(1, 5),
    "m": CategoricalDistribution(("p", "q", "r")),
}


def test_what_exists_under_one_choice_only_changes_nothing_under_another():
    from search.composite import _Grid  # pyright: ignore[reportPrivateUsage]
    from search.genes import cube

    grid, chance = _Grid(MIXED, cube(MIXED_KNOWN)), np.random.default_rng(0)
    points = np.vstack([grid.wide(200, chance), grid.near(grid.wide(3, chance), 200, 0.2, chance)])
    params = [grid.params(point) for point in points]
    assert {one["method"] for one in params} == {"x", "y"}
    assert {(one["k"], one["m"]) for one in params if one["method"] == "x"} == {(3, "p")}
    assert {one["k"] for one in params if one["method"] == "y"} == {1, 2, 3, 4, 5}
    assert {one["m"] for one in params if one["method"] == "y"} == {"p", "q", "r"}
    trials = [
        create_trial(
            params=one if one["method"] == "y" else {k: one[k] for k in ("method", "w")},
            distributions={
                name: MIXED_KNOWN[name]
                for name in (MIXED_KNOWN if one["method"] == "y" else ("method", "w"))
            },
            value=0.0,
        )
        for one in params
    ]
    np.testing.assert_allclose(grid.points(trials), points, atol=1e-12)


COUNTED: tuple[Dimension, ...] = (
    Whole("least", 1, 1, False, LINEAR, "k"),
    Whole("count", 0, 2, False, LINEAR, "k", under=(("least", (1,)),)),
    Whole("first", 0, 4, False, LINEAR, "k", under=(("count", (1, 2)),)),
    Choice("second", ("p", "q", "r"), LINEAR, "c", under=(("count", (2,)),)),
)
COUNTED_KNOWN = {
    "count": IntDistribution(0, 2),
    "first": IntDistribution(0, 4),
    "second": CategoricalDistribution(("p", "q", "r")),
}


def test_what_exists_under_a_count_is_searched_where_it_counts():
    """Layers that are left out are counted, and then named: each name exists under the count."""
    from search.composite import _Grid  # pyright: ignore[reportPrivateUsage]
    from search.genes import cube

    grid, chance = _Grid(COUNTED, cube(COUNTED_KNOWN)), np.random.default_rng(0)
    points = np.vstack([grid.wide(300, chance), grid.near(grid.wide(9, chance), 300, 0.3, chance)])
    params = [grid.params(point) for point in points]
    found = {n: {(p["first"], p["second"]) for p in params if p["count"] == n} for n in range(3)}
    assert found[0] == {(2, "p")}
    assert found[1] == {(first, "p") for first in range(5)}
    assert found[2] == {(first, second) for first in range(5) for second in "pqr"}


def test_a_space_of_choices_is_tried_once_and_to_its_end():
    dimensions = tuple(Choice(f"c{i}", ("p", "q", "r"), LINEAR, "c") for i in range(3))
    known = {d.name: CategoricalDistribution(d.options) for d in dimensions}
    study = optuna.create_study(direction="maximize")
    start = dict.fromkeys(known, "p")
    study.add_trial(create_trial(params=start, distributions=known, value=0.0))
    for number in range(1, 27):
        trials = study.get_trials(deepcopy=False)
        sampler = Composite(dimensions, known, trials, [], [], number, first=number < 5)
        params = sampler.sample_relative(study, trials[0], dict(known))
        value = float(sum("pqr".index(option) for option in params.values()))
        study.add_trial(create_trial(params=params, distributions=known, value=value))
    tried = {tuple(trial.params.values()) for trial in study.get_trials()}
    assert len(tried) >= 25


@pytest.mark.parametrize("keyed", [True, False])
def test_models_that_were_tried_are_not_proposed_again_by_other_values(keyed: bool):
    """Of 64 places only the eighth of them that a place lies in makes a model."""
    dimensions = (Whole("k", 0, 63, False, LINEAR, "k"),)
    known = {"k": IntDistribution(0, 63)}

    def key(params: Mapping[str, Any]) -> str:
        return str(params["k"] // 8)

    study = optuna.create_study(direction="maximize")
    params: dict[str, Any] = {"k": 40}
    for number in range(8):
        model, value = {"fingerprint": key(params)}, -abs(params["k"] // 8 - 6.0)
        study.add_trial(
            create_trial(params=params, distributions=known, value=value, user_attrs=model)
        )
        trials = study.get_trials(deepcopy=False)
        sampler = Composite(
            dimensions, known, trials, [], [], number, first=number < 2, key=key if keyed else None
        )
        params = sampler.sample_relative(study, trials[0], dict(known))
    models = {trial.user_attrs["fingerprint"] for trial in study.get_trials()}
    assert (len(models) == 8) == keyed


def test_failed_trials_are_kept_away_from():
    """Half of the space can't be scored; what is proposed there is not proposed again and again."""
    study = optuna.create_study(direction="maximize")
    dimensions = (Real("w", 0.0, 1.0, False, LINEAR, "weight"),)
    known = {"w": FloatDistribution(0.0, 1.0)}

    def trial(w: float, value: float) -> FrozenTrial:
        return create_trial(params={"w": w}, distributions=known, value=value)

    told = [trial(w, w) for w in (0.1, 0.2, 0.3, 0.4)]
    lost: list[FrozenTrial] = []
    for number in range(12):
        params = Composite(dimensions, known, told, lost, [], number).sample_relative(
            study, told[0], dict(known)
        )
        (told if params["w"] < 0.5 else lost).append(trial(params["w"], params["w"]))
    assert lost
    assert len(told) >= 8  # four of twelve at least
    assert max(t.params["w"] for t in told) > 0.42


@pytest.mark.parametrize("kept", [True, False])
def test_what_a_process_keeps_changes_nothing(kept: bool):
    trials = [
        create_trial(
            params=dict.fromkeys(KNOWN, w),
            distributions=KNOWN,
            value=score(dict.fromkeys(KNOWN, w)),
        )
        for w in (0.1, 0.3, 0.6, 0.9)
    ]
    study = optuna.create_study(direction="maximize")

    def asked() -> dict[str, Any]:
        sampler = Composite(NUMBERS, KNOWN, trials, [], [], 5, reader=reader)
        return sampler.sample_relative(study, trials[0], dict(KNOWN))

    _fits.clear()
    first = asked()
    if not kept:
        _fits.clear()
    assert asked() == first
