"""What a number of items can show, before they are spent and after.

A paired difference of right-or-wrong answers varies by its discordance q, the share of items that
one model has right and the other wrong: its standard error is sqrt(q / n), and a gain of 2.8 of
them shows in four studies of five (Miller 2024, arXiv:2411.00640).
"""

import math
from collections.abc import Sequence
from typing import Any

import scipy.stats as _stats  # pyright: ignore[reportMissingTypeStubs]

from evals.statistics import LEVEL

POWER = 0.8

stats: Any = _stats  # scipy ships no types


def multiple(comparisons: int = 1) -> float:
    """How many standard errors a gain must have to show with 80% power: 2.8 for one comparison.

    Args:
        comparisons: Holm's first step divides the level by their number.
    """
    return float(stats.norm.ppf(1 - LEVEL / 2 / comparisons) + stats.norm.ppf(POWER))


def smallest_gain(
    sizes: Sequence[float], weights: Sequence[float], discordances: float | Sequence[float]
) -> float:
    """The smallest gain that shows with 80% power.

    Args:
        sizes: Independent items of each benchmark.
        weights: What each benchmark counts.
        discordances: Share of items on which the two models differ, of each benchmark or of all;
            of graded scores the mean square of the difference.
    """
    total = sum(weights)
    shares = discordances if isinstance(discordances, Sequence) else [discordances] * len(sizes)
    parts = zip(sizes, weights, shares, strict=True)
    return multiple() * math.sqrt(sum((w / total) ** 2 * q / n for n, w, q in parts))


def items_to_show(
    gain: float,
    worth: Sequence[float],
    weights: Sequence[float],
    discordances: float | Sequence[float],
) -> int:
    """How many items of each benchmark a gain needs to show with 80% power.

    Args:
        gain: The gain.
        worth: How many independent items an item of each benchmark is worth: 1 without clusters.
        weights: What each benchmark counts.
        discordances: As in `smallest_gain`.
    """
    return math.ceil((smallest_gain(worth, weights, discordances) / gain) ** 2)


def items_to_tell(
    gain: float, error: float, items: int, margin: float, comparisons: int = 1
) -> int | None:
    """How many items would tell, in four studies of five, if the gain is the one measured.

    Either it shows as a gain, or its interval comes to lie within the margin; the cheaper counts.

    Args:
        gain: As measured.
        error: Its standard error.
        items: Of this measurement.
        margin: Differences below it don't matter.
        comparisons: As in `multiple`.

    Returns:
        None if no number would: a gain of exactly the margin, or none at all with no margin.
    """
    size = abs(gain)
    needed = [
        (multiple(count) * error / distance) ** 2
        for distance, count in ((size, comparisons), (margin - size, 1))
        if distance > 0
    ]
    return math.ceil(items * min(needed)) if needed else None


def independent_items(items: int, clusters: int, correlation: float = 0.3) -> float:
    """What items in clusters of equal size are worth, by the design effect 1 + (size - 1) rho.

    Args:
        items: Their number.
        clusters: The number of clusters.
        correlation: Of two items of a cluster; .3 is what the research simulates.
    """
    return items / (1 + (items / clusters - 1) * correlation)
