"""Paired gains, their intervals and p-values, and what may be said."""

from collections.abc import Sequence

import numpy as np
import pytest

from evals import statistics
from evals.compare import Comparison, compare, verdict
from evals.harness import Benchmark
from evals.scorecard import Scorecard
from evals.statistics import Gain, holm, paired_gain

REPLICATIONS = 300
ITEMS = 120


def benchmark(name: str = "t", weight: float = 1.0) -> Benchmark:
    class Mean(Benchmark):
        def aggregate(self, values: Sequence[float]) -> float:
            return float(np.mean(values))

    return Mean(name, "acc,none", True, weight, {})


def card(**items: Sequence[float]) -> Scorecard:
    return Scorecard((), {name: {"acc,none": values} for name, values in items.items()}, 0.0)


def answers(generator: np.random.Generator, rate: float) -> np.ndarray:
    return (generator.random(ITEMS) < rate).astype(float)


def rejections(monkeypatch: pytest.MonkeyPatch, change: float) -> dict[str, int]:
    """Verdicts over simulated pairs of models whose accuracies differ by `change`.

    They agree on most items, as a model and its merge do: a tenth of the answers is lost, a tenth
    and `change` are put right.
    """
    monkeypatch.setattr(statistics, "RESAMPLES", 199)
    generator = np.random.default_rng(0)
    found = {"better": 0, "worse": 0, "not distinguishable": 0}
    for seed in range(REPLICATIONS):
        theirs = answers(generator, 0.5)
        flip = generator.random(ITEMS)
        ours = np.where(flip < 0.1 + change, 1.0, np.where(flip > 0.9, 0.0, theirs))
        gain = paired_gain([ours], [theirs], [1.0], seed)
        found[verdict(gain, gain.p)] += 1
    return found


def test_gain_is_the_mean_paired_difference():
    gain = paired_gain([np.array([1, 1, 0, 1.0])], [np.array([0, 1, 1, 0.0])], [1.0])
    assert gain.value == 0.25
    assert (gain.wins, gain.losses, gain.n) == (2, 1, 4)
    assert gain.low <= gain.value <= gain.high


def test_few_differences_give_the_exact_sign_flip_test():
    """Of 2^5 equally likely sign patterns, two are as far out as five wins of five."""
    ours, theirs = np.ones(9), np.array([0, 0, 0, 0, 0, 1, 1, 1, 1.0])
    assert paired_gain([ours], [theirs], [1.0]).p == pytest.approx(2 / 2**5)
    mixed = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1.0])
    ours = np.array([1, 1, 1, 0, 1, 1, 1, 1, 1.0])
    assert paired_gain([ours], [mixed], [1.0]).p == pytest.approx(10 / 2**4)


def test_the_interval_is_that_of_resampled_items():
    generator = np.random.default_rng(1)
    difference = generator.normal(0.3, 1.0, 400)
    gain = paired_gain([difference], [np.zeros(400)], [1.0])
    half = 1.96 * difference.std() / np.sqrt(400)
    assert gain.low == pytest.approx(difference.mean() - half, abs=0.02)
    assert gain.high == pytest.approx(difference.mean() + half, abs=0.02)


def test_identical_models_have_no_gain_and_are_not_distinguishable():
    scores = [np.array([1, 0, 1, 1.0]), np.array([0.5, 0.25])]
    gain = paired_gain(scores, scores, [1.0, 1.0])
    assert gain == Gain(0.0, 0.0, 0.0, 1.0, 0, 0, 6)
    assert verdict(gain, gain.p) == "not distinguishable"


def test_swapping_the_models_turns_the_sign():
    generator = np.random.default_rng(2)
    ours, theirs = answers(generator, 0.6), answers(generator, 0.5)
    there = paired_gain([ours], [theirs], [1.0])
    back = paired_gain([theirs], [ours], [1.0])
    assert back.value == pytest.approx(-there.value)
    assert back.p == pytest.approx(there.p, abs=0.02)
    assert (back.wins, back.losses) == (there.losses, there.wins)


def test_a_benchmark_counts_by_its_weight_not_by_its_size():
    ours = [np.ones(100), np.zeros(4)]
    theirs = [np.zeros(100), np.array([1, 1, 1, 0.0])]
    assert paired_gain(ours, theirs, [1.0, 1.0]).value == pytest.approx((1 - 0.75) / 2)
    assert paired_gain(ours, theirs, [1.0, 3.0]).value == pytest.approx((1 - 3 * 0.75) / 4)


def test_the_p_value_counts_items_as_the_gain_does():
    """One loss among 2 items outweighs three wins among 30, whatever the signs."""
    ours = [np.array([1.0] * 3 + [0.0] * 27), np.zeros(2)]
    theirs = [np.zeros(30), np.array([1.0, 0.0])]
    gain = paired_gain(ours, theirs, [1.0, 1.0])
    assert gain.value == pytest.approx(-0.2)
    assert gain.p == 1.0


def test_the_same_comparison_gives_the_same_numbers():
    generator = np.random.default_rng(3)
    ours, theirs = answers(generator, 0.6), answers(generator, 0.5)
    assert paired_gain([ours], [theirs], [1.0]) == paired_gain([ours], [theirs], [1.0])


def test_one_difference_among_many_items_allows_no_claim():
    gain = paired_gain([np.array([1, 0, 1, 1.0])], [np.array([0, 0, 1, 1.0])], [1.0])
    assert (gain.value, gain.p) == (0.25, 1.0)
    assert verdict(gain, gain.p) == "not distinguishable"


def test_a_single_item_allows_no_claim():
    with pytest.raises(ValueError, match="two items"):
        paired_gain([np.array([1.0])], [np.array([0.0])], [1.0])


def test_under_the_null_few_are_called_different(monkeypatch: pytest.MonkeyPatch):
    found = rejections(monkeypatch, change=0.0)
    wrong = found["better"] + found["worse"]
    assert wrong <= 0.08 * REPLICATIONS  # 5% and 2.4 standard errors
    assert wrong >= 0.01 * REPLICATIONS  # a test that never speaks would pass the line above


def test_a_real_difference_is_found(monkeypatch: pytest.MonkeyPatch):
    found = rejections(monkeypatch, change=0.3)  # 15 points better
    assert found["better"] >= 0.8 * REPLICATIONS
    assert found["worse"] == 0


@pytest.mark.parametrize(
    ("low", "high", "p", "words"),
    [
        (0.01, 0.2, 0.01, "better"),
        (-0.2, -0.01, 0.01, "worse"),
        (0.01, 0.2, 0.05, "not distinguishable"),
        (-0.01, 0.2, 0.01, "not distinguishable"),
        (0.0, 0.2, 0.01, "not distinguishable"),
    ],
)
def test_interval_and_p_value_must_agree(low: float, high: float, p: float, words: str):
    assert verdict(Gain((low + high) / 2, low, high, p, 1, 1, 10), p) == words


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert holm([0.5, 0.9]) == pytest.approx((1.0, 1.0))
    assert holm([]) == ()


def test_compare_corrects_for_the_number_of_references():
    generator = np.random.default_rng(4)
    ours, theirs = answers(generator, 0.7), answers(generator, 0.5)
    alone = compare(card(t=ours), {"a": card(t=theirs)}, [benchmark()])
    among = compare(card(t=ours), {"a": card(t=theirs), "b": card(t=ours)}, [benchmark()])
    assert [c.reference for c in among] == ["a", "b"]
    assert among[0].gain == alone[0].gain
    assert alone[0].p == alone[0].gain.p
    assert among[0].p == pytest.approx(2 * alone[0].p)
    assert among[1] == Comparison("b", among[1].gain, 1.0, "not distinguishable")


def test_compare_weighs_benchmarks_as_the_study_does():
    ours = card(s=np.ones(10), t=np.zeros(10))
    theirs = card(s=np.zeros(10), t=np.ones(10))
    (found,) = compare(ours, {"x": theirs}, [benchmark("s", 3.0), benchmark("t", 1.0)])
    assert found.gain.value == pytest.approx(0.5)
