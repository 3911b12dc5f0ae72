"""From per-item results to the one number that a search maximises, and to those of a claim.

A search ranks candidates by a graded *signal* where the task has one (how probable the right
option is), since right or wrong throws most of the evidence away; a claim is made on the task's own
*metric*, since that is what people mean by its score. Without a signal the two are the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from lm_eval.api.metrics import f1_score, matthews_corrcoef  # pyright: ignore

from evals.harness import Benchmark
from evals.scorecard import Scorecard, Value

Array = np.ndarray[Any, np.dtype[np.float64]]

# Figures of all pairs of right and given answers, which have no value per item.
_OF_PAIRS: Mapping[str, Callable[[list[Any]], Any]] = {
    "f1_score": cast("Any", f1_score),
    "matthews_corrcoef": cast("Any", matthews_corrcoef),
}


@dataclass(frozen=True, slots=True)
class Reading:
    """How a benchmark's stored results are read, so that no model or data set is needed for it.

    Attributes:
        name: The benchmark.
        metric: The study's metric, as a scorecard calls it.
        signal: What the search looks at; None for the metric.
        weight: What it counts in the objective.
        signs: For each result of a scorecard 1 if a higher one is better, else -1.
        members: For each role the number of each item's task in a group whose tasks all count
            alike; empty where every item does.
        pairs: For results that are pairs of answers, the figure that is made of them.
    """

    name: str
    metric: str
    signal: str | None
    weight: float
    signs: Mapping[str, float]
    members: Mapping[str, tuple[int, ...]]
    pairs: Mapping[str, str]


def objective(
    cards: Sequence[Scorecard], benchmarks: Sequence[Benchmark | Reading], *, signal: bool = False
) -> float:
    """The weighted mean over benchmarks of the mean per-item score; higher is better.

    Args:
        cards: Scorecards of one model on disjoint items, which are pooled.
        benchmarks: In the order of the study.
        signal: Whether to read the search's signals, as in `item_scores`.
    """
    parts = [item_scores(card, benchmarks, signal=signal) for card in cards]
    means = [float(np.concatenate(arrays).mean()) for arrays in zip(*parts, strict=True)]
    return float(np.average(means, weights=[benchmark.weight for benchmark in benchmarks]))


def item_scores(
    card: Scorecard, benchmarks: Sequence[Benchmark | Reading], *, signal: bool = False
) -> list[Array]:
    """Per-item scores, `(items,)` for each benchmark, turned so that higher is better.

    The mean of a benchmark's scores is its figure: in a group whose tasks count alike whatever
    their size, each item counts by its task's share. A perplexity enters as the log-likelihood of
    its items, in nats per token, word or byte as the metric counts: a figure that can be averaged
    and compared item by item.

    Args:
        card: Of one model.
        benchmarks: In the order of the study.
        signal: True reads each benchmark's search signal, by which a search and its choice of a
            winner rank; False its metric, on which a claim on the holdout is made. They are the
            same where a benchmark has no signal.
    """
    return [
        _scores(card, one if isinstance(one, Reading) else reading(one, card), signal)
        for one in benchmarks
    ]


def reading(benchmark: Benchmark, card: Scorecard) -> Reading:
    """How to read a benchmark's results, told once with any model's scorecard at hand.

    The direction of a metric is found by trying: a perplexity falls when its items'
    log-likelihoods rise.
    """
    results = card.items[benchmark.name]
    aggregations = benchmark.aggregations
    signs = {
        key: _sign(benchmark, key, values)
        for key, values in results.items()
        if key.split(",")[0] in aggregations or key == benchmark.signal
    }
    names = {key: getattr(aggregations.get(key.split(",")[0]), "__name__", "") for key in signs}
    return Reading(
        benchmark.name,
        benchmark.metric,
        benchmark.signal,
        benchmark.weight,
        signs,
        {} if benchmark.by_size else {r.value: benchmark.members(r) for r in benchmark.items},
        {key: name for key, name in names.items() if name in _OF_PAIRS},
    )


def _sign(benchmark: Benchmark, key: str, values: Sequence[Value]) -> float:
    """Whether a larger per-item value is better, as the study wants it."""
    turn = -1.0 if benchmark.turned else 1.0
    if key == benchmark.signal:
        return turn
    metric = key.split(",")[0]
    better = benchmark.better(metric)
    if key == benchmark.metric:
        better, turn = benchmark.higher_is_better, 1.0
    aggregate = benchmark.aggregations[metric]
    if getattr(aggregate, "__name__", "") in _OF_PAIRS:
        return turn if better else -turn
    raised = aggregate([_raised(v) for v in values]) > aggregate(list(values))
    return turn if raised == better else -turn


def _scores(card: Scorecard, one: Reading, signal: bool) -> Array:
    key = one.signal if signal and one.signal is not None else one.metric
    values = card.items[one.name][key]
    if key in one.pairs:
        scores = _pseudo_values(one.pairs[key], cast("Sequence[tuple[float, ...]]", values))
    else:
        scores = np.asarray([_per_unit(v) for v in values], dtype=np.float64)
    members = one.members.get(card.role or "", ())
    # Of a card of the first items only, each counts as it does among all.
    return scores * one.signs[key] * _shares(members, len(scores))[: len(scores)]


def _shares(members: Sequence[int], count: int) -> Array:
    """What each item counts, 1 on average: tasks alike, and alike within each."""
    if not members:
        return np.ones(count)
    _, which, sizes = np.unique(np.asarray(members), return_inverse=True, return_counts=True)
    return len(members) / (len(sizes) * sizes[which])


def _pseudo_values(figure: str, pairs: Sequence[tuple[float, ...]]) -> Array:
    """Each item's part in a figure of the whole set: n times the figure minus n - 1 times without.

    Their mean is the figure, to the order of 1/n, and their spread its standard error (Tukey 1958).
    """
    aggregate, count = _OF_PAIRS[figure], len(pairs)
    whole = aggregate(list(pairs))
    known: dict[tuple[float, ...], float] = {}  # few different pairs, many items
    for at, pair in enumerate(pairs):
        if pair not in known:
            known[pair] = aggregate([*pairs[:at], *pairs[at + 1 :]])
    return np.array([count * whole - (count - 1) * known[pair] for pair in pairs])


def _raised(value: Value) -> Value:
    return (value[0] + 1e-3, *value[1:]) if isinstance(value, tuple) else value + 1e-3


def _per_unit(value: Value) -> float:
    """A log-likelihood per word or byte; an empty text has none of either and says nothing."""
    if not isinstance(value, tuple):
        return value
    return value[0] / value[-1] if value[-1] else 0.0
