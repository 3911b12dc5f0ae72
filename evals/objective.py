"""From per-item results to the one number that a search maximises, and to those of a claim.

A search ranks candidates by a graded *signal* where the task has one (how probable the right
option is), since right or wrong throws most of the evidence away; a claim is made on the task's own
*metric*, since that is what people mean by its score. Without a signal the two are the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special as _special  # pyright: ignore[reportMissingTypeStubs]

from evals.figures import falls, figure_name, shares
from evals.harness import Benchmark
from evals.scorecard import Scorecard, Value

special: Any = _special  # scipy ships no types
Array = np.ndarray[Any, np.dtype[np.float64]]
SOFTNESS = 5  # benchmarks/SEARCH.md: what it gains
Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True)
class Reading:
    """How a benchmark's stored results are read, so that no model or data set is needed for it.

    Attributes:
        name: The benchmark.
        metric: The study's metric, as a scorecard calls it.
        signal: What the search looks at; None for the metric.
        weight: What it counts in the objective.
        signs: For each result of a scorecard 1 if a higher one is better, else -1.
        members: For each role the number of each item's task in a group; empty for one task.
        figures: For results that a figure of the whole set is made of, its name in
            `figures.FIGURES`.
        by_size: Whether a group's tasks count by their sizes, so that every item counts alike.
        soft: Whether a margin is read as a soft accuracy, see `signals.SIGNALS`.
        scale: At which margin an item counts .73 as right and not .5, see `soft_scales`.
        nats: Where items are right or wrong and have a log-likelihood too, as what a scorecard
            keeps that.
    """

    name: str
    metric: str
    signal: str | None
    weight: float
    signs: Mapping[str, float]
    members: Mapping[str, tuple[int, ...]]
    figures: Mapping[str, str]
    by_size: bool = True
    soft: bool = False
    scale: float = 1.0
    nats: str | None = None

    @property
    def graded(self) -> bool:
        """Whether the search looks at a number between 0 and 1 for each item."""
        return self.soft or self.signal == "probability"


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
    and compared item by item. Of a figure of the whole set each item has its share, and a
    percentage is counted as a fraction: 1 at most, as an accuracy.

    Args:
        card: Of one model.
        benchmarks: In the order of the study.
        signal: True reads each benchmark's search signal, by which a search and its choice of a
            winner rank; False its metric, on which a claim on the holdout is made. They are the
            same where a benchmark has no signal.
    """
    return [
        _scores(card, one if isinstance(one, Reading) else reading(one), signal)
        for one in benchmarks
    ]


def soft_scales(cards: Sequence[Scorecard], readings: Sequence[Reading]) -> tuple[float, ...]:
    """For each benchmark the scale of its soft accuracy: a fifth of the models' median margin.

    Models differ in how sure they are, tasks in how long their options are; what counts is how
    near a margin is to changing sides, as these models' margins go.

    Args:
        cards: Of the parents, on the same items.
        readings: Of the benchmarks.
    """
    return tuple(_soft_scale(cards, one) if one.soft else one.scale for one in readings)


def _soft_scale(cards: Sequence[Scorecard], one: Reading) -> float:
    assert one.signal is not None
    margins = np.abs(np.concatenate([card.items[one.name][one.signal] for card in cards]))
    return float(np.median(margins)) / SOFTNESS or one.scale


def item_weights(card: Scorecard, one: Reading, key: str | None = None) -> Array:
    """What each item counts in its benchmark, `(items,)`, 1 on average.

    Of a card of the first items only, each counts as it does among all.

    Args:
        card: Of a model.
        one: Of the benchmark.
        key: Of a result of the card; default what the search looks at.
    """
    scored = len(card.items[one.name][key or one.signal or one.metric])
    if one.by_size:
        return np.ones(scored)
    members = np.asarray(one.members.get(card.role or "", ()) or np.zeros(scored))
    return _task_shares(members)[:scored]


def unchanged(one: Reading, ours: Scorecard, theirs: Scorecard) -> Mask:
    """Items that two models answer alike as far as the metric can tell, `(items,)`.

    Their shares in a figure of the whole set may differ even so, because the figures do.
    """
    pairs = zip(*(card.items[one.name][one.metric] for card in (ours, theirs)), strict=True)
    return np.array([first == second for first, second in pairs])


def reading(benchmark: Benchmark) -> Reading:
    """How to read a benchmark's results: told once for a study, as it is the same for all models.

    The direction of a figure is its metric's; what is kept of the items may go the other way, as
    log-likelihoods do, which rise where a perplexity falls.
    """
    aggregations = {key: benchmark.aggregations[key.split(",")[0]] for key in benchmark.keys}
    names = {key: figure_name(aggregate) for key, aggregate in aggregations.items()}
    signs = {key: _sign(benchmark, key, falls(of)) for key, of in aggregations.items()}
    if benchmark.signal is not None:
        signs[benchmark.signal] = -1.0 if benchmark.turned else 1.0
    members = {role.value: benchmark.members(role) for role in benchmark.items}
    several = any(len(set(numbers)) > 1 for numbers in members.values())
    return Reading(
        benchmark.name,
        benchmark.metric,
        benchmark.signal,
        benchmark.weight,
        signs,
        members if several else {},
        {key: name for key, name in names.items() if name is not None},
        benchmark.by_size,
        benchmark.soft,
        nats=benchmark.nats,
    )


def _sign(benchmark: Benchmark, key: str, falling: bool) -> float:
    """Whether a larger value of an item is better, as the study wants it."""
    rising = benchmark.better(key.split(",")[0]) != benchmark.turned
    if key == benchmark.metric:
        rising = benchmark.higher_is_better
    return 1.0 if rising != falling else -1.0


def _scores(card: Scorecard, one: Reading, signal: bool) -> Array:
    key = one.signal if signal and one.signal is not None else one.metric
    values = card.items[one.name][key]
    if key in one.figures:
        members = np.asarray(one.members.get(card.role or "", ()) or np.zeros(len(values)))
        scores = _shares_of_tasks(one.figures[key], values, members[: len(values)])
    else:
        scores = np.asarray([_per_unit(v) for v in values], dtype=np.float64)
    if one.soft and key == one.signal:
        scores = special.expit(scores / one.scale)
    return scores * one.signs[key] * item_weights(card, one, key)


def _shares_of_tasks(figure: str, values: Sequence[Value], members: Array) -> Array:
    """Each item's share in the figure of its own task, `(items,)`."""
    scores = np.empty(len(values))
    for number in np.unique(members):
        places = np.flatnonzero(members == number)
        scores[places] = shares(figure, [values[at] for at in places.tolist()])
    return scores


def _task_shares(members: Array) -> Array:
    """What each item counts, 1 on average: tasks alike, and alike within each."""
    _, which, sizes = np.unique(members, return_inverse=True, return_counts=True)
    return len(members) / (len(sizes) * sizes[which])


def _per_unit(value: Value) -> float:
    """A log-likelihood per word or byte; an empty text has none of either and says nothing."""
    if not isinstance(value, tuple):
        return value
    return value[0] / value[-1] if value[-1] else 0.0
