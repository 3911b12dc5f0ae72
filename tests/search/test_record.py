"""What storage holds of a trial is what is read back."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from evals.scorecard import Score, Scorecard
from merge_core.recipe import Recipe, Setting, Slice, Source
from search.record import (
    Record,
    by_fingerprint,
    card_from_dict,
    card_to_dict,
    differences,
    finished,
    load,
    save,
)

CARD = Scorecard(
    (
        Score("choice", "acc,none", 0.5, 0.25, 4),
        Score("text", "bits_per_byte,none", 2.125, None, 2),
    ),
    {
        "choice": {"acc,none": (1.0, 0.0, 1.0, 0.0), "margin,none": (0.5, -1.25, 2.0, 0.0)},
        "text": {"bits_per_byte,none": ((-3.5, 4), (-8.25, 7))},
    },
    1.5,
)


def recipe(weight: float = 0.5) -> Recipe:
    parameters = (("weight", (Setting("mlp", (0.1, weight)), Setting(None, weight))),)
    return Recipe("linear", (Slice((Source("a", None, parameters), Source("b"))),), dtype="float32")


def record(number: int, **changes: Any) -> Record:
    fields = {
        "recipe": recipe(),
        "value": 0.5,
        "scorecard": CARD,
        "failure": None,
        "merge_seconds": 0.25,
        "reused": None,
    }
    return Record(number, **(fields | changes))


@pytest.fixture(params=["memory", "sqlite"])
def study(request: pytest.FixtureRequest, tmp_path: Path) -> optuna.Study:
    url = f"sqlite:///{tmp_path}/s.db" if request.param == "sqlite" else None
    return optuna.create_study(storage=url, direction="maximize")


def tell(study: optuna.Study, one: Record) -> None:
    trial = study.ask()
    save(trial, one)
    state = TrialState.FAIL if one.value is None else TrialState.COMPLETE
    study.tell(trial, one.value, state=state)


def test_a_trial_round_trips(study: optuna.Study):
    tell(study, record(0))
    assert load(study.get_trials()[0]) == record(0)


def test_a_failed_trial_keeps_its_reason_and_has_no_value(study: optuna.Study):
    failed = record(0, value=None, scorecard=None, failure="its logits are NaN or infinite")
    tell(study, failed)
    assert load(study.get_trials()[0]) == failed
    assert finished(study) == []


def test_a_reused_trial_says_whose_scores_it_has(study: optuna.Study):
    tell(study, record(0))
    tell(study, record(1, reused=0, merge_seconds=0.0))
    assert load(study.get_trials()[1]).reused == 0


def test_a_running_trial_has_no_value(study: optuna.Study):
    save(study.ask(), record(0))
    assert load(study.get_trials()[0]).value is None


def test_the_first_scored_trial_of_a_recipe_is_found(study: optuna.Study):
    tell(study, record(0, value=None, scorecard=None, failure="x"))
    tell(study, record(1))
    tell(study, record(2))
    tell(study, record(3, recipe=recipe(0.75)))
    found = by_fingerprint(study)
    assert {key: trial.number for key, trial in found.items()} == {
        recipe().fingerprint: 1,
        recipe(0.75).fingerprint: 3,
    }


def test_a_scorecard_round_trips():
    assert card_from_dict(card_to_dict(CARD)) == CARD


def test_a_missing_score_stays_missing():
    card = Scorecard((Score("t", "acc", None, None, 3, "2 items are not finite"),), {}, 0.0)
    assert card_from_dict(card_to_dict(card)) == card


def test_equal_values_have_no_differences():
    one = {"a": [1, {"b": None}], "c": "x"}
    assert differences(one, {"c": "x", "a": [1, {"b": None}]}) == []
    assert differences([1, 2], (1, 2)) == []  # as JSON they are the same


@pytest.mark.parametrize(
    ("stored", "stated", "lines"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 2}}, ["a.b: was 1, is 2"]),
        ({"a": 1}, {}, ["a: was 1, is null"]),
        ({}, {"a": "x"}, ['a: was null, is "x"']),
        ({"a": [1, 2]}, {"a": [2, 1]}, ["a: was [1, 2], is [2, 1]"]),
        ({"a": {"b": 1}}, {"a": 3}, ['a: was {"b": 1}, is 3']),
        ({"a": 1, "b": 2}, {"a": 2, "b": 3}, ["a: was 1, is 2", "b: was 2, is 3"]),
    ],
)
def test_every_difference_is_a_line_with_its_place(stored: Any, stated: Any, lines: list[str]):
    assert differences(stored, stated) == lines


def test_long_values_are_cut():
    (line,) = differences({"a": "x" * 100}, {"a": "y"})
    assert line == 'a: was "' + "x" * 56 + '..., is "y"'
