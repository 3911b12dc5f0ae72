"""The luck of the best is taken back, and skill is left alone."""

import numpy as np
import pytest

from evals.shrinkage import shrink

ITEMS, CANDIDATES = 200, 60


def candidates(spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Right-or-wrong answers `(candidates, items)` and true accuracies."""
    generator = np.random.default_rng(seed)
    truth = np.clip(0.6 + spread * generator.standard_normal(CANDIDATES), 0, 1)
    return (generator.random((CANDIDATES, ITEMS)) < truth[:, None]).astype(float), truth


def test_equally_good_candidates_get_nearly_one_score():
    answers, _ = candidates(0.0)
    raw, worth = answers.mean(axis=1), shrink([answers], [1.0])
    assert raw.max() - raw.mean() > 0.06
    assert worth.max() - raw.mean() < 0.02


def test_real_skill_is_kept():
    answers, _ = candidates(0.2)
    raw, worth = answers.mean(axis=1), shrink([answers], [1.0])
    assert worth.std() > 0.9 * raw.std()


def test_the_best_ones_shrunk_score_is_right_on_average():
    raw_error, error = [], []
    for seed in range(60):
        answers, truth = candidates(0.03, seed)
        raw, worth = answers.mean(axis=1), shrink([answers], [1.0])
        best = raw.argmax()
        raw_error.append(raw[best] - truth[best])
        error.append(worth[best] - truth[best])
    assert np.mean(raw_error) > 0.03
    assert abs(np.mean(error)) < 0.012


def test_by_hand_on_three():
    """The formula of the page, with its numbers."""
    answers = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [0, 1, 0, 0.0]])
    scores = answers.mean(axis=1)
    beside = answers - answers.mean(axis=0)
    luck = beside.var(axis=1, ddof=1).mean() / 4 * 3 / 2
    skill = max(0.0, scores.var(ddof=1) - luck)
    kept = skill / (skill + luck)
    expected = scores.mean() + kept * (scores - scores.mean())
    assert shrink([answers], [1.0]) == pytest.approx(expected)


def test_poor_candidates_do_not_make_luck_look_like_skill():
    answers, _ = candidates(0.0)
    poor = np.zeros((40, ITEMS))
    poor[:, ::5] = 1.0
    alone, among = shrink([answers], [1.0]), shrink([np.vstack((answers, poor))], [1.0])
    assert among[:CANDIDATES].max() == pytest.approx(alone.max(), abs=0.01)
    assert among[CANDIDATES:] == pytest.approx(0.2)


def test_tasks_are_weighed():
    answers, _ = candidates(0.1)
    constant = np.full((CANDIDATES, 10), 0.5)
    both = shrink([answers, constant], [1.0, 3.0])
    assert both == pytest.approx(0.25 * shrink([answers], [1.0]) + 0.75 * 0.5)


def test_clustered_items_leave_more_to_luck():
    answers, _ = candidates(0.05)
    repeated = np.repeat(answers, 5, axis=1)
    clusters = np.repeat(np.arange(ITEMS), 5)
    known = shrink([repeated], [1.0], [clusters])
    assert known == pytest.approx(shrink([answers], [1.0]), abs=1e-6)
    assert known.std() < 0.9 * shrink([repeated], [1.0]).std()


@pytest.mark.parametrize("count", [1, 2])
def test_two_candidates_tell_nothing(count: int):
    answers = candidates(0.1)[0][:count]
    assert shrink([answers], [1.0]) == pytest.approx(answers.mean(axis=1))


def test_equal_candidates_stay_as_they_are():
    same = np.tile(candidates(0.0)[0][:1], (5, 1))
    assert shrink([same], [1.0]) == pytest.approx(same.mean(axis=1))
