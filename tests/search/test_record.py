"""What storage holds of a trial is what is read back."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from lm_eval.api.metrics import bleu
from optuna.trial import TrialState

from evals.figures import keep
from evals.items import Role
from evals.objective import Reading, objective
from evals.scorecard import Score, Scorecard
from merge_core.recipe import Recipe, Setting, Slice, Source
from search.known import fingerprint
from search.record import (
    Record,
    Stopped,
    best_of,
    by_fingerprint,
    card_from_dict,
    card_to_dict,
    described,
    finished,
    load,
    readings_to_dict,
    recompute,
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


def begun(study: optuna.Study, one: Record) -> optuna.Trial:
    """A trial that was asked for."""
    trial = study.ask()
    for name, value in described(one.recipe, one.key).items():
        trial.set_user_attr(name, value)
    return trial


def tell(study: optuna.Study, one: Record) -> None:
    trial = begun(study, one)
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


def test_the_best_keeps_all_limits_and_was_scored_on_all_items(study: optuna.Study):
    assert best_of(study) is None
    tell(study, record(0, value=None, scorecard=None, failure="x"))
    assert best_of(study) is None
    tell(study, record(1, missed={"depth": 0.0}))
    tell(study, record(2, value=0.9, missed={"depth": 0.5}))
    tell(study, record(3, value=0.8, missed={"depth": 0.0}, stopped=Stopped(8, 30.0, (0.8,))))
    tell(study, record(4, missed={"depth": 0.0}))
    best = best_of(study)
    assert best is not None
    assert best.number == 1


def test_a_running_trial_has_no_value(study: optuna.Study):
    save(begun(study, record(0)), record(0))
    assert load(study.get_trials()[0]).value is None


def test_the_first_scored_trial_of_a_recipe_is_found(study: optuna.Study):
    tell(study, record(0, value=None, scorecard=None, failure="x"))
    tell(study, record(1))
    tell(study, record(2))
    tell(study, record(3, recipe=recipe(0.75)))
    found = by_fingerprint(study)
    assert {key: trial.number for key, trial in found.items()} == {
        fingerprint(recipe()): 1,
        fingerprint(recipe(0.75)): 3,
    }


def test_a_scorecard_round_trips():
    assert card_from_dict(card_to_dict(CARD)) == CARD


def test_a_missing_score_stays_missing():
    card = Scorecard((Score("t", "acc", None, None, 3, "2 items are not finite"),), {}, 0.0)
    assert card_from_dict(card_to_dict(card)) == card


def realistic(seed: int, items: int = 1000) -> Scorecard:
    """Five tasks' worth of results: rights and wrongs, log-likelihoods, texts, and a signal."""
    draw = np.random.default_rng(seed)

    def right(count: int) -> list[float]:
        return draw.integers(0, 2, count).astype(float).tolist()

    part = items // 2
    return Scorecard(
        (
            Score("choice", "acc,none", 0.5, 0.02, part),
            Score("text", "byte_perplexity,none", 2.0, None, items - part),
        ),
        {
            "choice": {
                "acc,none": right(part),
                "acc_norm,none": right(part),
                "perplexity,none": draw.normal(-30, 20, part).tolist(),
                "exact_match,strict": right(part),
                "probability": draw.random(part).tolist(),
            },
            "text": {
                "byte_perplexity,none": [
                    (float(nats), int(size))
                    for nats, size in zip(
                        draw.normal(-900, 300, items - part),
                        draw.integers(300, 2000, items - part),
                        strict=True,
                    )
                ],
                "bits_per_byte,none": draw.normal(-900, 300, items - part).tolist(),
                "acc,none": right(items - part),
                "exact_match,none": right(items - part),
                "probability": draw.random(items - part).tolist(),
            },
        },
        12.345,
        Role.SEARCH,
        {"choice": {"truncated": 0.125, "empty": 0.0, "looping": 0.25}},
    )


def test_ten_thousand_trials_of_a_thousand_items_take_less_than_200_mb(tmp_path: Path):
    """Measured on the file itself, with everything that a trial leaves there."""
    path = tmp_path / "s.db"
    study = optuna.create_study(storage=f"sqlite:///{path}", direction="maximize")
    sizes: list[int] = []
    for number in range(12):
        one = record(number, recipe=recipe(number / 10), scorecard=realistic(number))
        trial = begun(study, one)
        for dimension in range(9):
            trial.suggest_float(f"models.a.weight.{dimension}", 0.0, 1.5)
        trial.set_user_attr("attempts", 1)
        save(trial, one)
        study.tell(trial, 0.5)
        sizes.append(path.stat().st_size)
    each = (sizes[-1] - sizes[1]) / (len(sizes) - 2)
    assert each < 20_000, f"{each:.0f} bytes per trial"


def test_a_large_scorecard_comes_back_as_it_was():
    card, one = realistic(0), card_from_dict(card_to_dict(realistic(0)))
    assert (one.scores, one.seconds, one.role) == (card.scores, card.seconds, card.role)
    assert one.symptoms == card.symptoms
    for task, metrics in card.items.items():
        for metric, values in metrics.items():
            old, new = np.array(values), np.array(one.items[task][metric])
            spread = np.ptp(old, axis=0)
            assert (np.abs(old - new) <= spread / 131_000).all()
    assert card_to_dict(one)["items"]["choice"]["acc,none"].startswith("bits:500:")


READINGS = [
    Reading(
        "choice",
        "acc,none",
        "probability",
        1.0,
        {"acc,none": 1.0, "acc_norm,none": 1.0, "perplexity,none": 1.0, "probability": 1.0},
        {"search": (0,) * 100 + (1,) * 400},
        {},
        by_size=False,
    ),
    Reading("text", "byte_perplexity,none", None, 3.0, {"byte_perplexity,none": 1.0}, {}, {}),
]


def told(study: optuna.Study, count: int = 4) -> list[Scorecard]:
    """A study of some trials whose readings are stored."""
    study.set_user_attr("readings", readings_to_dict(READINGS))
    study.set_user_attr("protocol", {"objectives": [{"task": one.name} for one in READINGS]})
    cards = [realistic(number) for number in range(count)]
    for number, card in enumerate(cards):
        tell(study, record(number, recipe=recipe(number / 10), scorecard=card))
    return cards


def test_objectives_come_again_from_what_is_stored(study: optuna.Study):
    cards = told(study)
    again = recompute(study)
    assert list(again) == [0, 1, 2, 3]
    for number, found in again.items():
        assert found.value == pytest.approx(
            objective([cards[number]], READINGS, signal=True), abs=1e-4
        )


def test_other_weights_metrics_and_items_need_no_model(study: optuna.Study):
    (card, *_) = told(study)
    text = [nats / size for nats, size in card.items["text"]["byte_perplexity,none"]]
    right = np.array(card.items["choice"]["acc_norm,none"])
    equal = (right[:100].mean() + right[100:].mean()) / 2  # its two tasks count alike

    def first(**changes: Any) -> float:
        value = recompute(study, **changes)[0].value
        assert value is not None
        return value

    assert first(weights={"text": 1.0}) == pytest.approx(np.mean(text), abs=1e-4)
    found = first(weights={"choice": 2.0}, metrics={"choice": "acc_norm,none"})
    assert found == pytest.approx(equal)
    some = {"text": [3, 1, 4], "choice": [0, 1, 200]}
    assert first(weights={"text": 1.0}, items=some) == pytest.approx(
        np.mean([text[at] for at in (3, 1, 4)]), abs=1e-4
    )
    found = first(weights={"choice": 1.0}, items=some, signal=False)
    acc = card.items["choice"]["acc,none"]
    assert found == pytest.approx((np.mean([acc[0], acc[1]]) + acc[200]) / 2)
    assert not math.isclose(first(), first(signal=False))


def test_another_question_leaves_what_is_known_of_figures_and_limits(study: optuna.Study):
    told(study, 0)
    objectives = [
        *({"task": one.name, "weight": one.weight} for one in READINGS),
        {"function": "f.py:tone", "weight": 0.5, "direction": "minimize"},
        {"model": "depth", "at_most": 3},
    ]
    study.set_user_attr("protocol", {"objectives": objectives})
    for number, (tone, short) in enumerate([(0.5, 0.0), (0.25, 0.1), (0.75, -0.1)]):
        about = {"figures": {"tone": tone, "depth": 3.0}, "missed": {"depth": short}}
        card = realistic(number)
        tell(study, record(number, recipe=recipe(number / 10), scorecard=card, **about))
    again = recompute(study)
    parts = objective([realistic(0)], READINGS, signal=True)
    total = sum(one.weight for one in READINGS)
    expected = (parts * total - 0.5 * 0.5) / (total + 0.5)
    assert again[0].value == pytest.approx(expected, abs=1e-4)
    alone = recompute(study, {"tone": 2.0})
    assert [found.value for found in alone.values()] == [-0.5, -0.25, -0.75]
    assert {number: found.missed for number, found in alone.items()} == {
        0: {"depth": 0.0},
        1: {"depth": 0.1},
        2: {"depth": -0.1},
    }
    ranked = sorted(alone.values(), key=lambda found: found.rank)
    assert [found.number for found in ranked] == [0, 2, 1]  # 1 has the best tone, but is too deep
    with pytest.raises(KeyError, match="no objective 'tune'; it has choice, text, tone, depth"):
        recompute(study, {"tune": 1.0})


def test_a_corpus_figure_of_other_items_needs_no_model_either(study: optuna.Study):
    words = np.random.default_rng(0).choice([*"abcdef"], (40, 12))
    said = np.where(np.random.default_rng(1).random((40, 12)) < 0.7, words, "z")
    results = [(" ".join(true), " ".join(given)) for true, given in zip(words, said, strict=True)]
    readings = [Reading("t", "bleu,x", None, 1.0, {"bleu,x": 1.0}, {}, {"bleu,x": "bleu"})]
    study.set_user_attr("readings", readings_to_dict(readings))
    study.set_user_attr("protocol", {"objectives": [{"task": "t"}]})
    values = {"t": {"bleu,x": keep(bleu, results)}}
    score = Score("t", "bleu,x", bleu(results), None, 40, None, 100.0)
    card = Scorecard((score,), values, 0.0, Role.SEARCH)
    assert card_from_dict(card_to_dict(card)).scores == card.scores
    tell(study, record(0, scorecard=card))
    assert recompute(study)[0].value == pytest.approx(bleu(results) / 100)
    some = [3, 1, 4, 15, 9]
    expected = bleu([results[at] for at in some]) / 100
    assert recompute(study, items={"t": some})[0].value == pytest.approx(expected)


def test_flags_of_a_trial_are_kept(study: optuna.Study):
    flagged = record(0, flags=("t: 30% of its texts end at the generation limit",))
    tell(study, flagged)
    assert load(study.get_trials()[0]) == flagged
