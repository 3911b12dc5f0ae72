"""The sign-flip test: McNemar's where it is McNemar's, scipy's permutations elsewhere."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import binom, norm
from statsmodels.stats.contingency_tables import mcnemar

from evals.sign_flips import sign_flip_p

DRAWS = 20_000


def p_of(values: np.ndarray, draws: int = DRAWS) -> float:
    return sign_flip_p(np.asarray(values, dtype=float), draws, np.random.default_rng(0))


def by_hand(values: np.ndarray) -> float:
    """Every pattern of signs, one by one."""
    sums = np.array([abs(np.dot(s, values)) for s in product((1, -1), repeat=len(values))])
    observed = abs(values.sum())
    return float((sums > observed + 1e-12).mean() + (abs(sums - observed) <= 1e-12).mean() / 2)


@pytest.mark.parametrize(("fixed", "broken"), [(5, 0), (9, 3), (2, 1), (40, 20), (300, 240)])
def test_right_or_wrong_answers_give_mcnemars_mid_p(fixed: int, broken: int):
    values = np.array([0.01] * fixed + [-0.01] * broken + [0.0] * 50)
    exact = mcnemar([[7, fixed], [broken, 7]], exact=True).pvalue
    middle = exact - binom.pmf(min(fixed, broken), fixed + broken, 0.5)
    assert p_of(values) == pytest.approx(middle)


@pytest.mark.parametrize("seed", range(4))
def test_few_values_of_any_size_are_counted_exactly(seed: int):
    values = np.random.default_rng(seed).normal(0.4, 1, 9)
    assert p_of(values) == pytest.approx(by_hand(values))


def test_two_tasks_of_other_sizes_are_counted_exactly():
    values = np.array([0.5 / 3] * 4 + [-0.5 / 3] + [0.5 / 7] * 5 + [-0.5 / 7] * 2)
    assert p_of(values) == pytest.approx(by_hand(values))


def test_equal_steps_that_were_rounded_differently_are_equal():
    tiny = np.nextafter(0.1, 1)
    plain = by_hand(np.array([1.0, 1.0, 1.0, 1.0, -1.0]))
    assert p_of(np.array([0.1, tiny, 0.1, tiny, -0.1])) == pytest.approx(plain)


def test_many_values_are_drawn():
    values = np.random.default_rng(3).normal(0.1, 1, 400)
    z = values.sum() / np.sqrt((values**2).sum())
    assert p_of(values) == pytest.approx(2 * norm.sf(abs(z)), abs=0.02)
    assert p_of(values, 99) >= 1 / 100  # a draw never proves more than its number allows


def test_no_difference_and_a_balance_are_no_evidence():
    assert p_of(np.zeros(8)) == 1.0
    assert p_of(np.array([1.0, -1.0, 0.5, -0.5])) == 1.0


def test_the_sign_does_not_matter():
    values = np.random.default_rng(5).normal(0.2, 1, 12)
    assert p_of(values) == pytest.approx(p_of(-values))
