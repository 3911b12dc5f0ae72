"""From per-item results to the one number that a search maximises."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evals.harness import Benchmark
from evals.scorecard import Scorecard, Value

Array = np.ndarray[Any, np.dtype[np.float64]]


def objective(cards: Sequence[Scorecard], benchmarks: Sequence[Benchmark]) -> float:
    """The weighted mean over benchmarks of the mean per-item score; higher is better.

    Args:
        cards: Scorecards of one model on disjoint items, which are pooled.
        benchmarks: In the order of the study.
    """
    parts = [item_scores(card, benchmarks) for card in cards]
    means = [float(np.concatenate(arrays).mean()) for arrays in zip(*parts, strict=True)]
    return float(np.average(means, weights=[benchmark.weight for benchmark in benchmarks]))


def item_scores(card: Scorecard, benchmarks: Sequence[Benchmark]) -> list[Array]:
    """Per-item scores of the objectives' metrics, `(items,)` each, turned so that higher is better.

    A perplexity enters as the mean log-likelihood of its items, in nats per token, word or byte as
    the metric counts: a figure that can be averaged and compared item by item. The direction is
    found by trying: a perplexity falls when its items' log-likelihoods rise.
    """
    arrays: list[Array] = []
    for benchmark in benchmarks:
        values = card.items[benchmark.name][benchmark.metric]
        plain = [_per_unit(v) for v in values]
        raised = benchmark.aggregate([_raised(v) for v in values]) > benchmark.aggregate(values)
        sign = 1.0 if raised == benchmark.higher_is_better else -1.0
        arrays.append(np.asarray(plain, dtype=np.float64) * sign)
    return arrays


def _raised(value: Value) -> Value:
    return (value[0] + 1e-3, *value[1:]) if isinstance(value, tuple) else value + 1e-3


def _per_unit(value: Value) -> float:
    """A log-likelihood per word or byte; an empty text has none of either and says nothing."""
    if not isinstance(value, tuple):
        return value
    return value[0] / value[-1] if value[-1] else 0.0
