"""Graded signals agree with what they grade."""

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax

from evals.errors import EvaluationError
from evals.harness import Harness
from evals.items import Role
from evals.loading import TaskRequest
from evals.objective import Reading, item_scores, objective, soft_scales
from evals.odds import evidence, odds
from evals.resident import Resident
from evals.scorecard import Scorecard
from evals.signals import SIGNALS, choose_signal, signal_of
from evals.tasks import OpenTask

OpenLocal = Callable[..., tuple[OpenTask, ...]]
HarnessOf = Callable[..., Harness]

OPTIONS = [" red", " green", " ä", " grey"]
nats = st.lists(st.floats(-60, -0.1), min_size=4, max_size=4)


def choice(right: Any, inputs: bool = False) -> Any:
    """As much of a multiple-choice task as a signal looks at."""
    return SimpleNamespace(
        OUTPUT_TYPE="multiple_choice",
        multiple_input=4 if inputs else 0,
        doc_to_choice=lambda _: OPTIONS,
        doc_to_text=lambda _: right,
        doc_to_target=lambda _: "the end" if inputs else right,
    )


def grade(signal: str, likelihoods: list[float], right: Any = 1, metric: str = "acc") -> float:
    responses = [(value, False) for value in likelihoods]
    return signal_of(signal, metric, choice(right), {}, responses)


@given(nats, st.integers(0, 3))
def test_a_probability_is_the_right_options_softmax(likelihoods: list[float], right: int):
    assert grade("probability", likelihoods, right) == pytest.approx(softmax(likelihoods)[right])


@given(nats, st.integers(0, 3))
def test_a_positive_margin_is_a_right_answer(likelihoods: list[float], right: int):
    order = np.sort(likelihoods)
    if order[-1] - order[-2] < 1e-9:
        return
    assert (grade("margin", likelihoods, right) > 0) == (int(np.argmax(likelihoods)) == right)


@given(nats, st.integers(0, 3), st.sampled_from(["acc_norm", "acc_bytes"]))
def test_options_are_weighed_as_the_metric_weighs_them(
    likelihoods: list[float], right: int, metric: str
):
    lengths = [len(o) if metric == "acc_norm" else len(o.encode()) for o in OPTIONS]
    weighed = np.array(likelihoods) / lengths
    order = np.sort(weighed)
    if order[-1] - order[-2] < 1e-9:
        return
    won = grade("margin", likelihoods, right, metric) > 0
    assert won == (int(np.argmax(weighed)) == right)


def test_mutual_information_takes_off_what_an_option_has_by_itself():
    conditional, alone = [-2.0, -3.0, -9.0, -9.0], [-1.0, -8.0, -9.0, -9.0]
    assert grade("margin", conditional + alone, 1, "acc_mutual_info") == pytest.approx(5.0)


def test_bits_per_byte_are_those_of_the_right_option():
    found = grade("bits_per_byte", [-1.0, -6.0, -1.0, -1.0])
    assert found == pytest.approx(-6.0 / math.log(2) / len(" green"))
    assert grade("bits_per_byte", [-1.0, -1.0, -6.0, -1.0], 2) == pytest.approx(
        -6.0 / math.log(2) / 3  # the umlaut has two bytes
    )


def test_several_right_options_count_together():
    likelihoods = [math.log(p) for p in (0.1, 0.2, 0.3, 0.4)]
    assert grade("probability", likelihoods, [1, 3]) == pytest.approx(0.6)
    assert grade("margin", likelihoods, [1, 3]) == pytest.approx(math.log(0.4 / 0.3))


def test_a_right_option_may_be_named_by_its_text():
    assert grade("probability", [0.0, 0.0, 0.0, 0.0], " grey") == 0.25


def test_with_several_inputs_the_texts_gold_is_the_option():
    responses = [(-3.0, False), (-1.0, False)]
    one = choice(1, inputs=True)
    one.doc_to_choice = lambda _: ["first context", "second context"]
    assert signal_of("margin", "acc", one, {}, responses) == 2.0
    found = signal_of("bits_per_byte", "acc", one, {}, responses)
    assert found == pytest.approx(-1.0 / math.log(2) / len("the end"))


@pytest.mark.parametrize(
    ("task", "metric", "expected"),
    [
        ("tiny_choice", "acc", "margin"),
        ("tiny_choice", "acc_norm", "margin"),
        ("tiny_exact", "acc", None),
        ("tiny_exact", "perplexity", None),
        ("tiny_text", "bits_per_byte", None),
        ("tiny_generate", "exact_match", None),
    ],
)
def test_auto_grades_options_that_are_right_or_wrong(
    open_local: OpenLocal, harness_of: HarnessOf, task: str, metric: str, expected: str | None
):
    harness = harness_of(open_local(TaskRequest(task, metric)))
    assert harness.benchmarks[0].signal == expected
    card = harness.score(Role.SEARCH)
    (search,) = item_scores(card, harness.benchmarks, signal=True)
    (claim,) = item_scores(card, harness.benchmarks)
    assert (expected is None) == (search.tolist() == claim.tolist())
    assert f"{metric},none" in card.items[task]
    assert card.scores[0].metric == f"{metric},none"


@pytest.mark.parametrize("signal", [one for one in SIGNALS if one != "soft_accuracy"])
def test_a_signal_is_made_of_lm_evals_log_likelihoods(
    open_local: OpenLocal, harness_of: HarnessOf, signal: str
):
    harness = harness_of(open_local(TaskRequest("tiny_choice", signal=signal)))
    card = harness.score(Role.SEARCH)
    values = card.items["tiny_choice"][signal]
    for item, value in zip(harness.benchmarks[0].items[Role.SEARCH], values, strict=True):
        likelihoods = np.array([request.resps[0][0] for request in item.requests])
        gold = item.document["gold"]
        expected = {
            "probability": softmax(likelihoods)[gold],
            "margin": likelihoods[gold] - np.delete(likelihoods, gold).max(),
            "bits_per_byte": likelihoods[gold]
            / math.log(2)
            / len(item.document["choices"][gold].encode()),
        }
        assert value == pytest.approx(expected[signal])
    assert len(set(values)) > len(values) // 2


def test_the_metric_may_be_the_signal(open_local: OpenLocal, harness_of: HarnessOf):
    harness = harness_of(open_local(TaskRequest("tiny_choice", signal="metric")))
    card = harness.score(Role.SEARCH)
    assert set(card.items["tiny_choice"]) == {"acc,none", "acc_norm,none"}
    assert objective([card], harness.benchmarks, signal=True) == card.scores[0].value


def test_a_metric_that_is_turned_turns_its_signal(open_local: OpenLocal, harness_of: HarnessOf):
    plain = harness_of(open_local(TaskRequest("tiny_choice")))
    turned = harness_of(open_local(TaskRequest("tiny_choice", higher_is_better=False)))
    card = plain.score(Role.SEARCH)
    for signal in (True, False):
        one = objective([card], plain.benchmarks, signal=signal)
        assert objective([card], turned.benchmarks, signal=signal) == pytest.approx(-one)


@pytest.mark.parametrize(
    ("task", "signal"),
    [
        ("tiny_generate", "probability"),
        ("tiny_text", "probability"),
        ("tiny_exact", "margin"),
        ("tiny_generate", "bits_per_byte"),
    ],
)
def test_a_signal_that_a_task_lacks_is_refused(
    open_local: OpenLocal, harness_of: HarnessOf, task: str, signal: str
):
    with pytest.raises(EvaluationError, match=f"has no signal '{signal}' for 12 of 12 items"):
        harness_of(open_local(TaskRequest(task, signal=signal)))


def test_without_known_right_answers_auto_keeps_to_the_metric():
    """lm-eval warns of such documents and counts them as wrong."""
    tasks = [choice(1), choice(4)]  # there is no fifth option
    assert choose_signal("auto", "acc", "t", tasks, [{}, {}]) is None
    assert choose_signal("auto", "acc", "t", tasks[:1], [{}]) == "soft_accuracy"
    with pytest.raises(EvaluationError, match="has no signal 'margin' for 1 of 2 items"):
        choose_signal("margin", "acc", "t", tasks, [{}, {}])


def test_where_every_option_is_right_there_is_no_margin():
    assert choose_signal("auto", "acc", "t", [choice([0, 1, 2, 3])], [{}]) == "probability"


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=20), st.floats(0.01, 10))
def test_a_soft_accuracy_is_between_the_accuracy_and_a_half(margins: list[float], scale: float):
    values = np.array(margins)
    reading = Reading("t", "acc,none", "margin", 1.0, {"margin": 1.0}, {}, {}, soft=True)
    reading = replace(reading, scale=scale)
    card = Scorecard((), {"t": {"margin": tuple(margins)}}, 0.0)
    (scores,) = item_scores(card, [reading], signal=True)
    assert ((scores > 0.5) == (values > 0)).all() or np.abs(values[values != 0]).min() < 1e-12
    assert (np.abs(scores - 0.5) <= 0.5).all()
    known = evidence(card, reading)
    (found,) = odds([known], reading)
    assert np.abs(expit(found) * known.factors - scores).max() < 6e-4


def test_the_scale_of_a_soft_accuracy_is_a_fifth_of_the_parents_median_margin():
    soft = Reading("t", "acc,none", "margin", 1.0, {"margin": 1.0}, {}, {}, soft=True)
    plain = replace(soft, soft=False)
    cards = [Scorecard((), {"t": {"margin": values}}, 0.0) for values in ((-1.0, 2.0), (3.0, 4.0))]
    assert soft_scales(cards, [soft, plain]) == (0.5, 1.0)
    nothing = [Scorecard((), {"t": {"margin": (0.0, 0.0)}}, 0.0)]
    assert soft_scales(nothing, [soft]) == (1.0,)


def test_the_probability_of_a_continuation_is_its_own(open_local: OpenLocal, harness_of: HarnessOf):
    harness = harness_of(open_local(TaskRequest("tiny_exact", "acc", signal="probability")))
    card = harness.score(Role.SEARCH)
    nats = card.items["tiny_exact"]["perplexity,none"]
    assert card.items["tiny_exact"]["probability"] == pytest.approx([math.exp(n) for n in nats])


def test_a_signal_tells_models_apart_that_a_metric_does_not(
    open_local: OpenLocal, harness_of: HarnessOf, resident: Resident
):
    harness = harness_of(open_local("tiny_choice"))
    before = harness.score(Role.SEARCH)
    resident.slots["model.norm.weight"].mul_(1.01)
    after = harness.score(Role.SEARCH)
    names = ("acc,none", "margin")
    same = [before.items["tiny_choice"][n] == after.items["tiny_choice"][n] for n in names]
    assert same == [True, False]
