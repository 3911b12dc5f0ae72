"""Paired comparison of two models on the same items.

The gain is the weighted mean over benchmarks of the mean per-item difference. Its interval
resamples items (or clusters of items) within each benchmark; its p-value flips the signs of their
differences. docs/statistics.md has the measurements.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import scipy.stats as _stats  # pyright: ignore[reportMissingTypeStubs]

from evals.resampling import Array, Clusters, Units, bootstrap, units
from evals.sign_flips import sign_flip_p

RESAMPLES = 9_999
LEVEL = 0.05

stats: Any = _stats  # scipy ships no types


@dataclass(frozen=True, slots=True)
class Gain:
    """How much better one model is than another.

    Attributes:
        value: Weighted mean over benchmarks of the mean per-item difference.
        low: Lower end of the 95% interval.
        high: Upper end.
        error: Standard error of `value`.
        p: Two-sided p-value of the hypothesis that there is no difference.
        fixed: Items on which the first is better.
        broken: Items on which it is worse.
        n: Items in all.
        clusters: Sampling units in all: clusters of items that belong together, or items.
    """

    value: float
    low: float
    high: float
    error: float
    p: float
    fixed: int
    broken: int
    n: int
    clusters: int


@dataclass(frozen=True, slots=True)
class Gains:
    """Several pairs of models on the same items.

    Attributes:
        overall: On all benchmarks together, one for each pair.
        tasks: On each benchmark alone: benchmarks, then pairs.
        resampled: The overall gains of every resample, `(draws, pairs)`.
    """

    overall: tuple[Gain, ...]
    tasks: tuple[tuple[Gain, ...], ...]
    resampled: Array


def paired_gains(
    differences: Sequence[Array],
    weights: Sequence[float],
    clusters: Sequence[Clusters | None] | None = None,
    seed: int = 0,
    moved: Sequence[np.ndarray[Any, np.dtype[np.bool_]]] | None = None,
) -> Gains:
    """Compare pairs of models item by item.

    Args:
        differences: Per-item scores of the first minus those of the second model, one array
            `(items, pairs)` for each benchmark; higher is better.
        weights: What each benchmark counts, `(benchmarks,)`.
        clusters: For each benchmark the cluster of each item `(items,)`, or None where items are
            independent.
        seed: Of resampling and permutation.
        moved: Which items count as fixed or broken, like `differences`; None: those that differ.

    Raises:
        EvaluationError: If a benchmark has fewer than two items or clusters.
    """
    shares = np.asarray(weights, dtype=np.float64) / sum(weights)
    given = clusters or [None] * len(differences)
    samples = [units(d, cluster) for d, cluster in zip(differences, given, strict=True)]
    generator = np.random.default_rng(seed)
    draws = [bootstrap(sample, RESAMPLES, generator) for sample in samples]
    counted = [
        d * m for d, m in zip(differences, moved or [np.ones(1)] * len(samples), strict=True)
    ]
    together = cast("Array", np.tensordot(shares, np.stack(draws), axes=1))
    alone = np.ones(1)
    return Gains(
        _gains(counted, samples, shares, together, generator),
        tuple(
            _gains([d], [sample], alone, drawn, generator)
            for d, sample, drawn in zip(counted, samples, draws, strict=True)
        ),
        together,
    )


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's correction for having made several comparisons: the k-th smallest of n times n - k.

    statsmodels has it too, but collects all garbage at each call: half a second beside a model.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    steps = p[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return tuple(corrected.tolist())


def _gains(
    counted: Sequence[Array],
    samples: Sequence[Units],
    shares: Array,
    draws: Array,
    generator: np.random.Generator,
) -> tuple[Gain, ...]:
    """One gain for each pair, from its resamples `(draws, pairs)`."""
    moved = np.concatenate(counted)
    found = zip(samples, shares, strict=True)
    terms = np.concatenate([sample.sums * share / sample.items for sample, share in found])
    spread = np.stack(
        [s.variances * share**2 for s, share in zip(samples, shares, strict=True)]
    )  # (benchmarks, pairs)
    tails = _tails(spread, [len(sample.sums) for sample in samples])
    ends = cast("Any", np.quantile)
    return tuple(
        Gain(
            value=float(terms[:, pair].sum()),
            low=float(ends(draws[:, pair], tails[pair])),
            high=float(ends(draws[:, pair], 1 - tails[pair])),
            error=float(np.sqrt(spread[:, pair].sum())),
            p=sign_flip_p(terms[:, pair], RESAMPLES, generator),
            fixed=int((moved[:, pair] > 0).sum()),
            broken=int((moved[:, pair] < 0).sum()),
            n=len(moved),
            clusters=sum(len(sample.sums) for sample in samples),
        )
        for pair in range(moved.shape[1])
    )


def _tails(spread: Array, sizes: Sequence[int]) -> Array:
    """Which quantiles of the resamples bound a 95% interval, `(pairs,)`.

    With few units a bootstrap is too narrow, as a z interval is beside a t interval; this is
    Hesterberg's (2015) expanded percentile, with Satterthwaite's degrees of freedom.
    """
    fewest = np.asarray(sizes, dtype=np.float64)[:, None] - 1
    parts = (spread**2 / fewest).sum(axis=0)
    total = spread.sum(axis=0) ** 2
    freedom = np.divide(total, parts, out=np.full_like(total, fewest.min()), where=parts > 0)
    quantile = stats.t.ppf(LEVEL / 2, freedom) * np.sqrt((freedom + 1) / freedom)
    return cast("Array", stats.norm.cdf(quantile))
