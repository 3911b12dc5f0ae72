"""Are the claims true? Simulated searches whose truth is known; docs/statistics.md has the table.

Every test has a quick version with bounds as wide as its few studies need, and a slow one with the
figures that the page promises.
"""

import numpy as np
import pytest
from pairs import paired_gain
from simulated_studies import (
    WORLDS,
    World,
    answers,
    covered,
    falsely_better,
    permuted,
    power,
    predicted_power,
    study,
)

from evals import statistics

QUICK, MANY = 100, 1_000
slow = pytest.mark.slow


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 999)


def allowed(rate: float, studies: int) -> float:
    """What a true rate stays below in 999 of 1000 runs."""
    return rate + 3.1 * np.sqrt(rate * (1 - rate) / studies)


def test_intervals_of_the_best_of_100_cover_its_true_gain():
    found = [study(seed, World()) for seed in range(QUICK)]
    assert covered(found) >= 1 - allowed(0.05, QUICK)
    luck = [o.luck for o in found]
    assert np.mean(luck) > 0.01  # the search items flatter, or there would be nothing to correct
    assert abs(np.mean([o.shrunk for o in found])) < 0.012


@slow
@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_intervals_cover_93_to_97_percent(world: World):
    found = [study(seed, world) for seed in range(MANY)]
    assert 0.93 <= covered(found) <= 0.97
    assert abs(np.mean([o.shrunk for o in found])) < 0.01


@slow
def test_the_items_that_chose_the_winner_would_not_do():
    found = [study(seed, WORLDS["all equally good"]) for seed in range(MANY // 2)]
    assert covered(found, "naive") < 0.85


@pytest.mark.parametrize("studies", [QUICK, pytest.param(MANY, marks=slow)])
@pytest.mark.parametrize(("references", "cluster"), [(1, 1), (7, 10)])
def test_equal_models_are_rarely_called_better(studies: int, references: int, cluster: int):
    world = World(skill=0.0, references=references, cluster=cluster)
    rate = falsely_better([study(seed, world).verdicts for seed in range(studies)])
    assert rate <= (0.05 if studies == MANY else allowed(0.025, studies))


@pytest.mark.parametrize("studies", [QUICK, pytest.param(MANY, marks=slow)])
def test_a_study_with_permuted_labels_finds_nothing(studies: int):
    rate = falsely_better([permuted(seed, World(references=7)) for seed in range(studies)])
    assert rate <= (0.05 if studies == MANY else allowed(0.025, studies))


@pytest.mark.parametrize("studies", [QUICK, pytest.param(MANY, marks=slow)])
@pytest.mark.parametrize(
    ("discordance", "foretold"), [(0.10, 0.98), (0.15, 0.89), (0.20, 0.79), (0.25, 0.69)]
)
def test_power_at_5_points_and_600_items(studies: int, discordance: float, foretold: float):
    found = power(0, 0.05, discordance, 600, studies)
    assert found == pytest.approx(foretold, abs=3.1 * np.sqrt(0.25 / studies))
    assert predicted_power(0.05, discordance, 600) == pytest.approx(foretold, abs=0.01)


def test_forgotten_clusters_would_make_false_claims():
    """With items taken as independent, true nulls are rejected too often: clusters matter."""
    world = World(cluster=10, own=0.3)
    wrong = 0
    for seed in range(200):
        scores, _ = answers(np.random.default_rng(seed), world, np.zeros(2), 400)
        wrong += paired_gain([scores[0]], [scores[1]], [1.0]).p < 0.05
    assert wrong / 200 > 0.10
