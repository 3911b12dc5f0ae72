"""How sure items are, in a form that bends less over recipes than their scores do."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evals.objective import Array, Reading, item_weights, special
from evals.scorecard import Scorecard

_SURE = 5e-4  # results are stored in steps of 1/65,535 of their range
_ROUNDS, _EXACT = 25, 1e-9
_STEADY = 1e-2  # of the two numbers' prior; thousands of items outweigh it


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one model got on a benchmark's items.

    Attributes:
        values: Margins, probabilities or log-likelihoods, `(items,)`.
        right: Whether each item was right, 0 or 1, where `values` are log-likelihoods; else None.
        factors: What each item counts, so that the mean of its score times it is the benchmark's
            value, `(items,)`.
    """

    values: Array
    right: Array | None
    factors: Array


def has_odds(one: Reading) -> bool:
    """Whether a benchmark's items say more than their score does."""
    return one.graded or one.nats is not None


def evidence(card: Scorecard, one: Reading) -> Evidence:
    """Read a scorecard; see `has_odds`."""
    found = card.items[one.name]
    key = one.metric if one.signal is None else one.signal
    factors = one.signs[key] * item_weights(card, one)
    if one.nats is None or one.graded:
        return Evidence(np.array(found[key], dtype=np.float64), None, factors)
    return Evidence(np.array(found[one.nats]), np.array(found[key], dtype=np.float64), factors)


def odds(known: Sequence[Evidence], one: Reading) -> Array:
    """The logarithm of p / (1 - p) of each model's items, `(models, items)`.

    p is a soft accuracy or a probability, as the search looks at it. Where it looks at right or
    wrong and items have a log-likelihood, p is how often items with such a log-likelihood are
    right, by logistic regression over all models. Within 0.0005 of 0 or 1 nothing is to be learnt.
    """
    values = np.array([model.values for model in known])
    most = float(special.logit(1 - _SURE))
    right = [model.right for model in known if model.right is not None]
    if right:
        found = _calibrated(values, np.array(right))
    elif one.soft:
        found = values / one.scale
    else:
        found: Array = special.logit(values.clip(_SURE, 1 - _SURE))
    return found.clip(-most, most)


def _calibrated(nats: Array, right: Array) -> Array:
    """The log-odds of being right that go with log-likelihoods; Newton's method on both numbers."""
    centre, width = float(nats.mean()), float(nats.std()) or 1.0
    told = np.stack([np.ones(nats.size), (nats.ravel() - centre) / width], axis=1)
    numbers: Array = np.zeros(2)
    for _ in range(_ROUNDS):
        chances: Array = special.expit(told @ numbers)
        slope = told.T @ (right.ravel() - chances) - _STEADY * numbers
        bend = (told * (chances * (1 - chances))[:, None]).T @ told + _STEADY * np.eye(2)
        step = np.clip(np.linalg.solve(bend, slope), -2, 2)
        numbers = np.add(numbers, step)
        if np.abs(step).max() < _EXACT:
            break
    return np.reshape(told @ numbers, nats.shape)
