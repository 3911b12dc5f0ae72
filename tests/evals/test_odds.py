"""What items say beyond their score."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from evals.harness import Harness
from evals.items import Role
from evals.loading import TaskRequest
from evals.objective import Reading, reading
from evals.odds import evidence, has_odds, odds
from evals.scorecard import Scorecard
from evals.tasks import OpenTask

OpenLocal = Callable[..., tuple[OpenTask, ...]]
HarnessOf = Callable[..., Harness]
EXACT = Reading("t", "acc,none", None, 1.0, {"acc,none": 1.0}, {}, {}, nats="nats")


def cards(models: int, items: int, slope: float) -> list[Scorecard]:
    chance = np.random.default_rng(0)
    nats = -chance.gamma(2.0, 2.0, (models, items))
    right = chance.random((models, items)) < expit(slope * (nats + 3))
    return [
        Scorecard((), {"t": {"acc,none": r.astype(float).tolist(), "nats": n.tolist()}}, 0.0)
        for n, r in zip(nats, right, strict=True)
    ]


def test_right_and_wrong_are_read_through_log_likelihoods_as_logistic_regression_does():
    known = [evidence(card, EXACT) for card in cards(6, 300, 1.5)]
    found = odds(known, EXACT)
    nats = np.concatenate([card.items["t"]["nats"] for card in cards(6, 300, 1.5)])[:, None]
    right = np.concatenate([card.items["t"]["acc,none"] for card in cards(6, 300, 1.5)])
    other = LogisticRegression(C=1e4, tol=1e-8).fit(nats, right).decision_function(nats)
    np.testing.assert_allclose(found.ravel(), other.clip(found.min(), found.max()), atol=0.02)
    assert abs(expit(found).mean() - right.mean()) < 0.005


def test_all_right_or_all_wrong_is_no_trouble():
    for answer in (0.0, 1.0):
        card = Scorecard((), {"t": {"acc,none": [answer] * 5, "nats": [-1.0] * 5}}, 0.0)
        found = odds([evidence(card, EXACT)] * 3, EXACT)
        assert np.isfinite(found).all()
        assert (np.sign(found) == 2 * answer - 1).all()


def test_continuations_keep_their_log_likelihood_and_options_do_not(
    open_local: OpenLocal, harness_of: HarnessOf
):
    harness = harness_of(
        open_local(TaskRequest("tiny_exact", "acc"), TaskRequest("tiny_choice", signal="metric"))
    )
    card = harness.score(Role.SEARCH)
    exact, choice = (reading(benchmark) for benchmark in harness.benchmarks)
    assert (has_odds(exact), has_odds(choice)) == (True, False)
    assert card.items["tiny_exact"]["nats"] == card.items["tiny_exact"]["perplexity,none"]
    assert "nats" not in card.items["tiny_choice"]
    turned = replace(exact, signs={exact.metric: -1.0})
    assert evidence(card, turned).factors.tolist() == [-1.0] * 12
