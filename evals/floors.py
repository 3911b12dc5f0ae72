"""Whether a model keeps to a floor on items that nothing has touched, with an interval.

The room above a floor is a paired difference like any gain, against a parent or a fixed number.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from evals.figures import falls
from evals.harness import Benchmark
from evals.items import Role
from evals.objective import item_scores
from evals.resampling import Array, Clusters, bootstrap, units
from evals.scorecard import Scorecard, Value
from evals.statistics import LEVEL, RESAMPLES, paired_gains

KEPT, BROKEN, UNTOLD = "kept", "broken", "not enough items"


@dataclass(frozen=True, slots=True)
class ParentFloor:
    """A parent behind which a model may not fall.

    Attributes:
        name: The parent's.
        card: Its card, on the same items as the model's.
        slack: By how much it may be better, in the metric's own units.
    """

    name: str
    card: Scorecard
    slack: float


@dataclass(frozen=True, slots=True)
class Room:
    """How far a model is above a floor, in the metric's own units.

    Attributes:
        objective: What has the floor.
        figure: The model's.
        limit: What it must reach, or must not exceed where fewer are better.
        against: The parent that the limit comes from; None for a number of the study's.
        room: How much better than the limit the figure is; below 0 where it is worse.
        low: Lower end of the 95% interval of `room`; None for a figure without items.
        high: Upper end.
        verdict: `kept` if the whole interval is at 0 or above, `broken` if it is below, else
            `not enough items`. Without an interval the figure alone decides.
    """

    objective: str
    figure: float
    limit: float
    against: str | None
    room: float
    low: float | None
    high: float | None
    verdict: str


def room_above(
    benchmark: Benchmark,
    card: Scorecard,
    floor: float | ParentFloor,
    clusters: Clusters | None = None,
) -> Room:
    """Hold a model against a floor, by the items of one role.

    Args:
        benchmark: Whose metric has the floor.
        card: Of the model.
        floor: A number of the metric, or a parent.
        clusters: The cluster of each item, `(items,)`; None where every item is its own.
    """
    sign, figure = _sign(benchmark), _figure(benchmark, card)
    against, limit = None, floor
    if isinstance(limit, ParentFloor):
        against, limit = limit.name, _figure(benchmark, limit.card) - sign * limit.slack
    ratio = falls(benchmark.aggregations[benchmark.metric.split(",")[0]])
    low, high = (_by_ratio if ratio else _by_mean)(benchmark, card, floor, clusters)
    verdict = KEPT if low >= 0 else BROKEN if high < 0 else UNTOLD
    return Room(benchmark.name, figure, limit, against, sign * (figure - limit), low, high, verdict)


def room_of(objective: str, figure: float, limit: float, against: str | None, sign: float) -> Room:
    """The same of a figure that has no items: it has no interval either."""
    room = sign * (figure - limit)
    verdict = KEPT if room >= 0 else BROKEN
    return Room(objective, figure, limit, against, room, None, None, verdict)


def _sign(benchmark: Benchmark) -> float:
    """1 if a higher figure is better, as the study wants it, else -1."""
    return 1.0 if benchmark.higher_is_better else -1.0


def _figure(benchmark: Benchmark, card: Scorecard) -> float:
    role = card.role or Role.HOLDOUT
    return benchmark.figure(card.items[benchmark.name][benchmark.metric], role)


def _by_mean(
    benchmark: Benchmark, card: Scorecard, floor: float | ParentFloor, clusters: Clusters | None
) -> tuple[float, float]:
    """Of figures that are means of per-item scores, or are shared out among items."""
    unit = next(score.unit for score in card.scores if score.task == benchmark.name)
    (ours,) = item_scores(card, [benchmark])
    if isinstance(floor, ParentFloor):
        rest, slack = ours - item_scores(floor.card, [benchmark])[0], floor.slack
    else:
        rest, slack = ours - _sign(benchmark) * floor / unit, 0.0
    gain = paired_gains([rest[:, None]], [1.0], [clusters]).overall[0]
    return unit * gain.low + slack, unit * gain.high + slack


def _by_ratio(
    benchmark: Benchmark, card: Scorecard, floor: float | ParentFloor, clusters: Clusters | None
) -> tuple[float, float]:
    """Of perplexities: functions of a sum of log-likelihoods over a sum of words, bytes or items.

    Log-likelihoods of both models and counts are resampled together.
    """
    cards = [card, floor.card] if isinstance(floor, ParentFloor) else [card]
    numbers = np.array(benchmark.members(card.role or Role.HOLDOUT))
    draws: list[Array] = []
    sizes: list[int] = []
    for number in np.unique(numbers):  # a group's tasks have a figure each
        places: list[int] = np.flatnonzero(numbers == number).tolist()
        models = [one.items[benchmark.name][benchmark.metric] for one in cards]
        values: list[list[Value]] = [[model[at] for at in places] for model in models]
        part = None if clusters is None else clusters[places]
        draws.append(_figures_drawn(benchmark, values, part))
        sizes.append(len(places))
    weights = sizes if benchmark.by_size else None
    figures = np.average(np.stack(draws), axis=0, weights=weights)
    sign = _sign(benchmark)
    parent = isinstance(floor, ParentFloor)
    limits = figures[:, 1] - sign * floor.slack if parent else floor
    rooms = sign * (figures[:, 0] - limits)
    low, high = np.quantile(rooms, (LEVEL / 2, 1 - LEVEL / 2))
    return float(low), float(high)


def _figures_drawn(
    benchmark: Benchmark, values: Sequence[Sequence[Value]], clusters: Clusters | None
) -> Array:
    """Figures of resampled items of one task, `(draws, models)`."""
    pairs = [[v if isinstance(v, tuple) else (v, 1.0) for v in model] for model in values]
    columns = [[pair[0] for pair in model] for model in pairs] + [[p[-1] for p in pairs[0]]]
    plain = not isinstance(values[0][0], tuple)
    # Sums and counts, which no right-or-wrong answers may be added to.
    sample = replace(units(np.array(columns, dtype=np.float64).T, clusters), binary=False)
    means = bootstrap(sample, RESAMPLES, np.random.default_rng(0))

    def figure(total: float, count: float) -> float:
        return benchmark.aggregate([total / count if plain else (total, count)])

    return np.array([[figure(total, row[-1]) for total in row[:-1]] for row in means.tolist()])
