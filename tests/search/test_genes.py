"""Recipes as points: there and back, inactive dimensions in the middle, trials by merit."""

# pyright: reportPrivateUsage=false

import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import TrialState

from search.genes import cube, filled, merit, told, view

KNOWN: dict[str, BaseDistribution] = {
    "layers": IntDistribution(2, 12),
    "weight": FloatDistribution(-1.0, 3.0),
    "rank": IntDistribution(1, 1024, log=True),
    "method": CategoricalDistribution(("linear", "ties")),
    "scale": FloatDistribution(0.01, 100.0, log=True),
}


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0, -0.2, 1.2])
def test_points_are_values_and_back(share: float):
    known = cube(KNOWN)
    params = known.params([share] * 4, [1])
    assert all(KNOWN[n]._contains(KNOWN[n].to_internal_repr(v)) for n, v in params.items())
    again = known.params(known.point(params).tolist(), known.picks(params))
    assert again == pytest.approx(params)
    assert (type(params["layers"]), type(params["rank"])) == (int, int)


def test_whole_numbers_of_few_values_come_last():
    known = cube(KNOWN)
    assert list(known.numbers) == ["weight", "rank", "scale", "layers"]
    assert known.whole == (11,)


def test_what_a_method_lacks_is_in_the_middle():
    known = cube(KNOWN)
    assert known.filled({"weight": 2.0}) == pytest.approx(
        {"weight": 2.0, "rank": 32, "scale": 1.0, "layers": 7, "method": "linear"}
    )
    trial = optuna.trial.create_trial(
        params={"weight": 2.0}, distributions={"weight": KNOWN["weight"]}, value=1.0
    )
    (whole,) = filled([trial], known)
    assert set(whole.params) == set(KNOWN)
    assert trial.params == {"weight": 2.0}


def ended(value: float, constraints: list[float]) -> optuna.trial.FrozenTrial:
    return optuna.trial.create_trial(value=value, user_attrs={"constraints": constraints})


def test_infeasible_trials_are_behind_all_feasible_ones():
    trials = [ended(9.0, [2.0, -1.0]), ended(1.0, [0.0]), ended(8.0, [0.5, 1.0]), ended(2.0, [])]
    ranked = sorted(trials, key=lambda trial: merit(trial, StudyDirection.MAXIMIZE))
    assert [trial.value for trial in ranked] == [2.0, 1.0, 8.0, 9.0]
    lowest = sorted(trials, key=lambda trial: merit(trial, StudyDirection.MINIMIZE))
    assert [trial.value for trial in lowest] == [1.0, 2.0, 8.0, 9.0]


def test_trials_without_values_were_not_told():
    study = optuna.create_study()
    study.ask()
    study.tell(study.ask(), state=TrialState.FAIL)
    study.tell(study.ask(), 1.0)
    study.tell(study.ask(), state=TrialState.PRUNED)
    assert [trial.number for trial in told(study.get_trials())] == [2]


def test_a_view_shows_its_trials_only_and_leaves_the_study_alone():
    study = optuna.create_study()
    for value in range(3):
        study.tell(study.ask(), value)
    seen = view(study, study.trials[:1])
    assert len(seen.trials) == 1
    assert not seen.get_trials(states=(TrialState.FAIL,))
    assert len(study.trials) == 3
