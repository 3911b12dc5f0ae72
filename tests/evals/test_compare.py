"""What may be said about models that were scored on the same items."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from evals.compare import BETTER, EQUIVALENT, TOO_FEW, WORSE, compare, in_points, verdict
from evals.harness import Benchmark
from evals.scorecard import Score, Scorecard
from evals.statistics import Gain

ITEMS = 300


def benchmark(name: str = "t", weight: float = 1.0) -> Benchmark:
    class Mean(Benchmark):
        def aggregate(self, values: Sequence[float]) -> float:  # type: ignore[override]
            return float(np.mean(values))

    return Mean(name, "acc,none", True, weight, {})


def card(**items: Any) -> Scorecard:
    scores = tuple(Score(name, "acc,none", 0.5, None, len(v)) for name, v in items.items())
    return Scorecard(scores, {name: {"acc,none": list(v)} for name, v in items.items()}, 0.0)


def answers(rate: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(ITEMS) < rate).astype(float)


def gain(low: float, high: float) -> Gain:
    return Gain((low + high) / 2, low, high, (high - low) / 4, 0.5, 9, 3, 100, 100)


@pytest.mark.parametrize(
    ("low", "high", "p", "word"),
    [
        (0.01, 0.2, 0.01, BETTER),
        (-0.2, -0.01, 0.01, WORSE),
        (0.01, 0.2, 0.05, TOO_FEW),
        (-0.01, 0.2, 0.01, TOO_FEW),
        (0.0, 0.2, 0.01, TOO_FEW),
        (-0.01, 0.01, 0.8, EQUIVALENT),
        (-0.011, 0.01, 0.8, TOO_FEW),
        (0.002, 0.008, 0.01, BETTER),  # a small gain is one
        (0.002, 0.008, 0.06, EQUIVALENT),
    ],
)
def test_a_verdict_needs_p_and_interval(low: float, high: float, p: float, word: str):
    assert verdict(gain(low, high), p, margin=0.01) == word


def test_the_margin_is_the_users():
    assert verdict(gain(-0.02, 0.02), 0.8, margin=0.02) == EQUIVALENT
    assert verdict(gain(-0.02, 0.02), 0.8, margin=0.0) == TOO_FEW


def test_comparisons_are_corrected_for_their_number():
    ours, theirs = card(t=answers(0.62)), card(t=answers(0.5, 1))
    cards = {"x": ours, "a": theirs, "b": theirs, "c": theirs}
    (alone,) = compare(cards, [("x", "a")], [benchmark()]).overall
    among = compare(cards, [("x", name) for name in "abc"], [benchmark()]).overall
    assert alone.p == alone.gain.p
    assert [c.p for c in among] == pytest.approx([3 * alone.p] * 3)
    assert among[0].gain.value == alone.gain.value


def test_tasks_are_compared_and_corrected_among_themselves():
    better, same = answers(0.7), answers(0.5, 2)
    cards = {"x": card(s=better, t=same), "a": card(s=answers(0.4, 3), t=same)}
    found = compare(cards, [("x", "a")], [benchmark("s"), benchmark("t")])
    assert [(c.task, c.verdict) for c in found.tasks] == [("s", BETTER), ("t", EQUIVALENT)]
    assert found.tasks[0].p == pytest.approx(2 * found.tasks[0].gain.p)
    both = (found.tasks[0].gain.value + found.tasks[1].gain.value) / 2
    assert found.overall[0].gain.value == pytest.approx(both)
    assert found.overall[0].task is None


def test_one_task_is_said_once():
    cards = {"x": card(t=answers(0.6)), "a": card(t=answers(0.5, 1))}
    assert compare(cards, [("x", "a")], [benchmark()]).tasks == ()


def test_benchmarks_count_as_the_study_says():
    cards = {"x": card(s=np.ones(10), t=np.zeros(10)), "a": card(s=np.zeros(10), t=np.ones(10))}
    found = compare(cards, [("x", "a")], [benchmark("s", 3.0), benchmark("t", 1.0)])
    assert found.overall[0].gain.value == pytest.approx(0.5)


def test_too_few_items_come_with_the_number_that_would_do():
    flipped = answers(0.5)
    flipped[:8] = 1 - flipped[:8]
    cards = {"x": card(t=flipped), "a": card(t=answers(0.5))}
    (found,) = compare(cards, [("x", "a")], [benchmark()]).overall
    assert found.verdict == TOO_FEW
    assert found.needed is not None
    assert found.needed > ITEMS


def test_other_verdicts_need_no_more_items():
    cards = {"x": card(t=np.ones(ITEMS)), "a": card(t=np.zeros(ITEMS))}
    (found,) = compare(cards, [("x", "a")], [benchmark()]).overall
    assert (found.verdict, found.needed) == (BETTER, None)


def test_identical_answers_of_few_items_prove_nothing():
    same = card(t=np.ones(20))
    (found,) = compare({"x": same, "a": same}, [("x", "a")], [benchmark()]).overall
    assert (found.gain.value, found.p, found.verdict) == (0.0, 1.0, TOO_FEW)
    many = card(t=np.ones(1000))
    (found,) = compare({"x": many, "a": many}, [("x", "a")], [benchmark()]).overall
    assert found.verdict == EQUIVALENT


def test_the_chance_of_being_best_counts_all_rivals():
    close = answers(0.6)
    close[:40] = 1 - close[:40]
    cards = {"x": card(t=answers(0.6)), "a": card(t=answers(0.45, 1)), "b": card(t=close)}
    pairs = [("x", "a"), ("x", "b")]
    both = compare(cards, pairs, [benchmark()]).chances["x"]
    one = compare(cards, pairs, [benchmark()], rivals=["a"]).chances["x"]
    other = compare(cards, pairs, [benchmark()], rivals=["b"]).chances["x"]
    assert 0.02 < both <= other < 0.98
    assert one > max(both, 0.95)


def test_a_copy_is_better_than_its_original_half_of_the_time():
    same = card(t=answers(0.5))
    chance = compare({"x": same, "a": same}, [("x", "a")], [benchmark()]).chances["x"]
    assert chance == pytest.approx(0.5, abs=0.03)


def test_clusters_widen_the_interval():
    ours, theirs = np.repeat(answers(0.6), 4), np.repeat(answers(0.5, 1), 4)
    cards, pairs = {"x": card(t=ours), "a": card(t=theirs)}, [("x", "a")]
    (naive,) = compare(cards, pairs, [benchmark()]).overall
    clusters = [np.repeat(np.arange(ITEMS), 4)]
    (right,) = compare(cards, pairs, [benchmark()], clusters).overall
    assert right.gain.error == pytest.approx(2 * naive.gain.error, rel=0.02)
    assert right.gain.high - right.gain.low > 1.8 * (naive.gain.high - naive.gain.low)
    assert (right.gain.clusters, right.gain.n) == (ITEMS, 4 * ITEMS)
    assert right.gain.p > naive.gain.p


def test_points_are_for_scores_between_0_and_1():
    assert in_points([card(t=[0.0, 0.5, 1.0])])
    assert not in_points([card(t=[0.0, 1.5])])
    assert not in_points([card(s=[1.0], t=[(-3.0, 4)])])
    assert in_points([card(s=[1.0], t=[(-3.0, 4)])], "s")
