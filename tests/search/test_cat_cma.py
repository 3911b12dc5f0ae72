"""CMA-ES that is told all trials again: it finds optima of numbers, whole numbers and choices."""

# pyright: reportPrivateUsage=false

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from search import cat_cma
from search.cat_cma import CmaSampler
from search.genes import told

NUMBERS: dict[str, BaseDistribution] = {f"x{i}": FloatDistribution(0.0, 2.0) for i in range(4)}
MIXED: dict[str, BaseDistribution] = {
    "x": FloatDistribution(0.01, 100.0, log=True),
    "method": CategoricalDistribution(("linear", "ties", "slerp")),
    "tied": CategoricalDistribution((False, True)),
    "layers": IntDistribution(2, 12),
    "y": FloatDistribution(-1.0, 1.0),
}


def numbers_value(params: dict[str, Any]) -> float:
    return -sum((value - 1.3) ** 2 for value in params.values())


def mixed_value(params: dict[str, Any]) -> float:
    numbers = (np.log10(params["x"]) - 1) ** 2 + (params["y"] + 0.4) ** 2
    layers = (params["layers"] - 9) ** 2 / 20
    return -float(numbers + layers) - (params["method"] != "ties") - (not params["tied"])


def run(
    known: dict[str, BaseDistribution], value: Callable[[dict[str, Any]], float], trials: int
) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    for number in range(trials):
        study.sampler = CmaSampler(known, told(study.get_trials(deepcopy=False)), number)
        trial = study.ask(known)
        study.tell(trial, value(trial.params))
    return study


@pytest.mark.parametrize(
    ("known", "value", "trials"), [(NUMBERS, numbers_value, 160), (MIXED, mixed_value, 300)]
)
def test_it_finds_an_optimum(
    known: dict[str, BaseDistribution], value: Callable[[dict[str, Any]], float], trials: int
):
    assert run(known, value, trials).best_value > -0.05


def test_all_trials_told_anew_lead_to_the_same_distribution():
    study = run(MIXED, mixed_value, 60)
    trials = told(study.get_trials(deepcopy=False))
    drawn: list[dict[str, Any]] = []
    for keep in (True, False):
        if not keep:
            cat_cma.forget()
        sampler = CmaSampler(MIXED, trials, 7)
        drawn.append(sampler.sample_relative(study, study.ask()._cached_frozen_trial, MIXED))
    assert drawn[0] == drawn[1]


def test_a_generation_is_made_of_whole_batches():
    assert CmaSampler(NUMBERS, [], 0)._size == 8
    assert CmaSampler(NUMBERS, [], 0, batch=5)._size == 10
    assert CmaSampler(NUMBERS, [], 0, batch=64)._size == 64


def test_it_begins_amid_the_best_of_what_others_drew():
    study = optuna.create_study(direction="maximize")
    for i in range(10):
        value = 1.5 if i < 3 else 0.2
        params = dict.fromkeys(NUMBERS, value)
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=NUMBERS, value=float(value > 1))
        )
    trials = told(study.get_trials(deepcopy=False))
    drawn: list[float] = []
    for seed in range(20):
        sampler = CmaSampler(NUMBERS, trials, seed)
        params = sampler.sample_relative(study, study.ask()._cached_frozen_trial, NUMBERS)
        drawn.extend(params.values())
    assert abs(np.mean(drawn) - 1.5) < 0.1


def test_a_search_that_has_converged_begins_anew():
    study = run(NUMBERS, numbers_value, 420)
    values = [trial.params["x0"] for trial in study.trials]
    widths = [np.ptp(values[i : i + 8]) for i in range(0, len(values) - 8, 8)]
    narrowest = int(np.argmin(widths))
    assert widths[narrowest] < 0.01
    assert max(widths[narrowest:]) > 0.5
