"""One benchmark's paired differences as sampling units, and the cluster bootstrap of their mean.

Items that share a passage are right or wrong together; the passage is then what was sampled, and
what has to be resampled. An item without company is a cluster of one.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from evals.errors import EvaluationError

Array = np.ndarray[Any, np.dtype[np.float64]]
Clusters = np.ndarray[Any, np.dtype[np.int64]]

_AT_A_TIME = 2_000_000  # numbers of a block of draws: 16 MB


@dataclass(frozen=True, slots=True)
class Units:
    """Paired differences of one benchmark, summed over the items of each sampling unit.

    Attributes:
        sums: Sum of differences in each unit for each pair of models, `(units, pairs)`.
        sizes: Items in each unit, `(units,)`.
        binary: Whether every item's difference is -1, 0 or 1.
    """

    sums: Array
    sizes: Array
    binary: bool

    @property
    def items(self) -> int:
        """Number of items."""
        return int(self.sizes.sum())

    @property
    def means(self) -> Array:
        """Mean difference of each pair, `(pairs,)`."""
        return self.sums.sum(axis=0) / self.items

    @property
    def variances(self) -> Array:
        """Cluster-robust variance of each mean, `(pairs,)`."""
        rows = _smoothed(self)
        sums, sizes = rows[:, :-1], rows[:, -1:]
        residuals = sums - sizes * (sums.sum(axis=0) / sizes.sum())
        return (residuals**2).sum(axis=0) / sizes.sum() ** 2 * len(rows) / (len(rows) - 1)


def units(differences: Array, clusters: Clusters | None = None) -> Units:
    """Sum paired differences over clusters of items that belong together.

    Args:
        differences: Of each item for each pair of models, `(items, pairs)`.
        clusters: The cluster of each item, `(items,)`; None where every item is its own.

    Raises:
        EvaluationError: If there are fewer than two units: nothing tells how much they vary.
    """
    binary = bool(np.isin(differences, (-1.0, 0.0, 1.0)).all())
    sizes = np.ones(len(differences))
    sums = differences
    if clusters is not None:
        _, at = np.unique(clusters, return_inverse=True)
        sizes = np.bincount(at).astype(np.float64)
        sums = np.zeros((len(sizes), differences.shape[1]))
        np.add.at(sums, at, differences)
    if len(sums) < 2:
        raise EvaluationError(
            f"an interval needs two items or clusters of items of each benchmark, got {len(sums)}"
        )
    return Units(sums, sizes, binary)


def bootstrap(sample: Units, draws: int, generator: np.random.Generator) -> Array:
    """Mean differences of resampled units, `(draws, pairs)`; all pairs see the same resamples.

    Units with equal rows are drawn together, from a multinomial: right-or-wrong answers have few
    different rows, so thousands of draws cost next to nothing.
    """
    rows = _smoothed(sample)
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    few = 2 * len(distinct) < len(rows)
    block = max(1, _AT_A_TIME // len(rows))
    parts: list[Array] = []
    for start in range(0, draws, block):
        size = min(block, draws - start)
        if few:
            totals = generator.multinomial(len(rows), counts / len(rows), size=size) @ distinct
        else:
            totals = _times_drawn(len(rows), size, generator) @ rows
        parts.append(totals[:, :-1] / totals[:, -1:])
    return np.concatenate(parts)


def _times_drawn(count: int, draws: int, generator: np.random.Generator) -> Array:
    """How often each of `count` units comes in each resample, `(draws, count)`."""
    picked = generator.integers(0, count, (draws, count)) + count * np.arange(draws)[:, None]
    times = np.bincount(picked.ravel(), minlength=draws * count).reshape(draws, count)
    return times.astype(np.float64)


def _smoothed(sample: Units) -> Array:
    """The units' rows `(units, pairs + 1)`, sizes last, with one item fixed and one broken added.

    Of right-or-wrong answers that all agree nothing could be resampled, and four items would
    prove two models equal; these two items are Bonett and Price's (2012) adjustment. Graded
    differences vary without it.
    """
    rows = np.column_stack((sample.sums, sample.sizes))
    if not sample.binary:
        return rows
    pairs = sample.sums.shape[1]
    return np.vstack((rows, [1.0] * pairs + [1.0], [-1.0] * pairs + [1.0]))
