"""Units, their variance and the cluster bootstrap, against plain references."""

import numpy as np
import pytest
import scipy.stats

from evals.errors import EvaluationError
from evals.resampling import bootstrap, units

DRAWS = 4_000


def graded(items: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.3, 1.0, (items, 1))


def test_the_mean_and_its_variance_are_those_of_independent_items():
    differences = graded(50)
    sample = units(differences)
    assert sample.means == pytest.approx(differences.mean(axis=0))
    assert sample.variances == pytest.approx(differences.var(axis=0, ddof=1) / 50)


def test_equal_clusters_vary_as_their_means_do():
    differences = graded(60)
    sample = units(differences, np.arange(60) // 6)
    means = differences.reshape(10, 6).mean(axis=1)
    assert sample.items == 60
    assert sample.variances == pytest.approx(means.var(ddof=1) / 10)


def test_one_item_clusters_are_no_clusters():
    differences = graded(40)
    alone = units(differences, np.random.default_rng(1).permutation(40))
    assert alone.variances == pytest.approx(units(differences).variances)


def test_the_bootstrap_is_scipys():
    differences = graded(80)
    ours = bootstrap(units(differences), DRAWS, np.random.default_rng(0))[:, 0]
    theirs = scipy.stats.bootstrap(
        (differences[:, 0],), np.mean, n_resamples=DRAWS, rng=np.random.default_rng(1)
    ).bootstrap_distribution
    assert np.quantile(ours, (0.025, 0.975)) == pytest.approx(
        np.quantile(theirs, (0.025, 0.975)), abs=0.02
    )


def test_a_resample_takes_clusters_whole():
    """Two clusters of sizes 1 and 3: only three different means can come out."""
    sample = units(np.array([[0.5], [0.1], [0.2], [0.3]]), np.array([7, 3, 3, 3]))
    drawn = bootstrap(sample, 500, np.random.default_rng(0))
    assert set(np.round(drawn[:, 0], 6)) == {0.5, 0.2, round((0.5 + 0.6) / 4, 6)}


def test_all_pairs_see_the_same_resamples():
    one = graded(30)
    drawn = bootstrap(units(np.column_stack((one, 2 * one))), 100, np.random.default_rng(0))
    assert drawn[:, 1] == pytest.approx(2 * drawn[:, 0])


def test_blocks_change_nothing_but_the_draws(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("evals.resampling._AT_A_TIME", 100)
    drawn = bootstrap(units(graded(30)), 50, np.random.default_rng(0))
    assert drawn.shape == (50, 1)
    assert drawn.std() == pytest.approx(1 / np.sqrt(30), rel=0.4)


def test_answers_that_all_agree_still_vary():
    """Bonett and Price: one item fixed and one broken are added to right-or-wrong answers."""
    sample = units(np.zeros((20, 1)))
    assert sample.means == 0
    assert sample.variances == pytest.approx(2 / 22 / 21)
    drawn = bootstrap(sample, DRAWS, np.random.default_rng(0))
    assert np.quantile(drawn, 0.975) > 0.05


def test_graded_answers_get_no_extra_items():
    assert units(np.full((20, 1), 0.5)).variances == 0


@pytest.mark.parametrize(
    ("items", "clusters"), [(1, None), (4, np.zeros(4, dtype=int))], ids=["item", "cluster"]
)
def test_one_unit_allows_no_interval(items: int, clusters: np.ndarray | None):
    with pytest.raises(EvaluationError, match=r"two items or clusters of items of each .* got 1"):
        units(np.ones((items, 1)), clusters)
