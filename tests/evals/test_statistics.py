"""Paired gains of several benchmarks, their intervals, and Holm's correction."""

import numpy as np
import pytest
from pairs import paired_gain
from statsmodels.stats.multitest import multipletests

from evals.errors import EvaluationError
from evals.statistics import holm, paired_gains

ITEMS = 120


def answers(generator: np.random.Generator, rate: float) -> np.ndarray:
    return (generator.random(ITEMS) < rate).astype(float)


def test_gain_is_the_mean_paired_difference():
    gain = paired_gain([np.array([1, 1, 0, 1.0])], [np.array([0, 1, 1, 0.0])], [1.0])
    assert gain.value == 0.25
    assert (gain.fixed, gain.broken, gain.n, gain.clusters) == (2, 1, 4, 4)
    assert gain.low <= gain.value <= gain.high


def test_the_interval_is_students_where_items_are_graded():
    generator = np.random.default_rng(1)
    difference = generator.normal(0.3, 1.0, 400)
    gain = paired_gain([difference], [np.zeros(400)], [1.0])
    half = 1.96 * difference.std() / np.sqrt(400)
    assert gain.error == pytest.approx(half / 1.96, rel=0.01)
    assert gain.low == pytest.approx(difference.mean() - half, abs=0.01)
    assert gain.high == pytest.approx(difference.mean() + half, abs=0.01)


def test_few_items_get_a_wider_interval():
    """A plain percentile interval of six items is as narrow as if their spread were known."""
    difference = np.array([0.1, 0.2, 0.25, 0.3, 0.4, 0.55])
    gain = paired_gain([difference], [np.zeros(6)], [1.0])
    student = 2.571 * difference.std(ddof=1) / np.sqrt(6)
    assert (gain.high - gain.low) / 2 == pytest.approx(student, rel=0.15)


def test_identical_models_have_no_gain():
    scores = [np.array([1, 0, 1, 1.0]), np.array([0.5, 0.25])]
    gain = paired_gain(scores, scores, [1.0, 1.0])
    assert (gain.value, gain.p, gain.fixed, gain.broken) == (0.0, 1.0, 0, 0)
    assert gain.low < 0 < gain.high


def test_swapping_the_models_turns_the_sign():
    generator = np.random.default_rng(2)
    ours, theirs = answers(generator, 0.6), answers(generator, 0.5)
    there = paired_gain([ours], [theirs], [1.0])
    back = paired_gain([theirs], [ours], [1.0])
    assert back.value == pytest.approx(-there.value)
    assert back.p == pytest.approx(there.p)
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low), abs=0.01)
    assert (back.fixed, back.broken) == (there.broken, there.fixed)


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
    # Of 16 patterns of signs 8 keep the loss on top, and so do their mirror images: 6 of 8 each
    # stay nearer to zero or as far as the data.
    assert gain.p > 0.5


def test_the_interval_is_that_of_the_stratified_mean():
    """Two tasks of 50 and 400 items with equal weights: the small one makes the error."""
    generator = np.random.default_rng(4)
    parts = [generator.normal(0.1, 1.0, n) for n in (50, 400)]
    gain = paired_gain(parts, [np.zeros(50), np.zeros(400)], [1.0, 1.0])
    error = np.sqrt(sum(part.var(ddof=1) / part.size / 4 for part in parts))
    assert gain.error == pytest.approx(error)
    assert gain.high - gain.low == pytest.approx(2 * 1.99 * error, rel=0.06)


def test_pairs_are_compared_at_once_and_each_as_if_alone():
    generator = np.random.default_rng(5)
    ours, a, b = (answers(generator, rate) for rate in (0.6, 0.5, 0.55))
    together = paired_gains([np.column_stack((ours - a, ours - b))], [1.0])
    alone = [paired_gain([ours], [other], [1.0]) for other in (a, b)]
    for first, second in zip(together.overall, alone, strict=True):
        assert (first.value, first.p) == pytest.approx((second.value, second.p))
        assert (first.low, first.high) == pytest.approx((second.low, second.high), abs=0.01)
    assert together.tasks == (together.overall,)


def test_the_same_comparison_gives_the_same_numbers():
    generator = np.random.default_rng(3)
    ours, theirs = answers(generator, 0.6), answers(generator, 0.5)
    assert paired_gain([ours], [theirs], [1.0]) == paired_gain([ours], [theirs], [1.0])


def test_a_single_item_allows_no_claim():
    with pytest.raises(EvaluationError, match="two items"):
        paired_gain([np.array([1.0])], [np.array([0.0])], [1.0])


@pytest.mark.parametrize("p", [[0.01, 0.04, 0.03], [0.5, 0.9], [0.2], [0.01] * 4, [0.04, 0.0, 1.0]])
def test_holm_is_statsmodels(p: list[float]):
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_holm_of_nothing():
    assert holm([]) == ()
