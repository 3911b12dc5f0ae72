"""What items can show: the research's figures, and the inverse functions."""

import numpy as np
import pytest

from evals.power import independent_items, items_to_show, items_to_tell, multiple, smallest_gain


@pytest.mark.parametrize(
    ("items", "discordance", "points"),
    [(200, 0.05, 4.4), (200, 0.20, 8.9), (1000, 0.10, 2.8), (5000, 0.20, 1.8)],
)
def test_the_smallest_gain_is_the_researchs(items: int, discordance: float, points: float):
    assert 100 * smallest_gain([items], [1.0], discordance) == pytest.approx(points, abs=0.05)


def test_tasks_pool_their_items():
    assert smallest_gain([150] * 4, [2.0] * 4, 0.1) == pytest.approx(smallest_gain([600], [1], 0.1))
    lopsided = smallest_gain([150] * 4, [9.0, 1.0, 1.0, 1.0], 0.1)
    assert lopsided > smallest_gain([150] * 4, [1.0] * 4, 0.1)


def test_each_task_has_its_own_discordance():
    assert smallest_gain([9, 4], [1, 1], [0.2, 0.2]) == smallest_gain([9, 4], [1, 1], 0.2)
    assert smallest_gain([100, 100], [1, 0], [0.1, 0.9]) == smallest_gain([100], [1], 0.1)


def test_items_to_show_is_the_inverse():
    n = items_to_show(0.02, [1.0, 1.0], [1.0, 3.0], 0.15)
    assert smallest_gain([n, n], [1.0, 3.0], 0.15) <= 0.02
    assert smallest_gain([n - 1, n - 1], [1.0, 3.0], 0.15) > 0.02
    assert items_to_show(0.02, [0.5], [1.0], 0.1) == pytest.approx(2 * 1962, abs=2)


def test_more_comparisons_need_a_larger_gain():
    assert multiple() == pytest.approx(2.80, abs=0.005)
    assert multiple(7) == pytest.approx(3.53, abs=0.005)


def test_a_gain_of_two_errors_needs_twice_the_items():
    assert items_to_tell(0.02, 0.01, 1000, margin=0.0) == pytest.approx(1962, abs=1)


def test_no_gain_needs_an_interval_within_the_margin():
    needed = items_to_tell(0.0, np.sqrt(0.15 / 600), 600, margin=0.01)
    assert needed == pytest.approx(2.8016**2 * 0.15 / 1e-4, rel=1e-3)


def test_the_cheaper_way_to_tell_counts():
    """A gain of .008 shows as one; a gain of .002 is sooner seen to be within .010."""
    needed = [items_to_tell(gain, 0.01, 100, margin=0.01) for gain in (0.008, 0.002, -0.002)]
    assert needed == [1227] * 3
    assert items_to_tell(0.002, 0.01, 100, margin=0.004) == 19623


@pytest.mark.parametrize("gain", [0.0, 0.007, -0.009, 0.015])
@pytest.mark.parametrize("count", [1, 7])
def test_what_could_not_be_told_needs_more_items(gain: float, count: int):
    """Neither significant nor within the margin: then the number is above the one there was."""
    error = abs(gain) / 1.9 if gain else 0.01
    needed = items_to_tell(gain, error, 500, 0.01, count)
    assert needed is not None
    assert needed > 500


def test_without_a_margin_no_number_tells_no_gain():
    assert items_to_tell(0.0, 0.01, 500, margin=0.0) is None


def test_clustered_items_are_worth_fewer():
    assert independent_items(1000, 1000) == 1000
    assert independent_items(1000, 100, 0.3) == pytest.approx(1000 / 3.7)
    assert independent_items(1000, 100, 1.0) == pytest.approx(100)
