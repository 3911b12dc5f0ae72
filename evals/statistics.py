"""Paired comparison of two models on the same items.

The gain is the weighted mean over benchmarks of the mean per-item difference. Intervals resample
items within each benchmark; p-values flip the signs of paired differences. Both are scipy's.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import scipy.stats as _stats  # pyright: ignore[reportMissingTypeStubs]
from statsmodels.stats.multitest import multipletests  # pyright: ignore

Array = np.ndarray[Any, np.dtype[np.float64]]
RESAMPLES = 9_999

stats: Any = _stats  # scipy ships no types


@dataclass(frozen=True, slots=True)
class Gain:
    """How much better one model is than another.

    Attributes:
        value: Weighted mean over benchmarks of the mean per-item difference.
        low: Lower end of the 95% interval.
        high: Upper end.
        p: Two-sided p-value of the hypothesis that there is no difference.
        wins: Items on which the first is better.
        losses: Items on which it is worse.
        n: Items in all.
    """

    value: float
    low: float
    high: float
    p: float
    wins: int
    losses: int
    n: int


def paired_gain(
    first: Sequence[Array], second: Sequence[Array], weights: Sequence[float], seed: int = 0
) -> Gain:
    """Compare two models item by item.

    Args:
        first: Per-item scores, one array `(items,)` for each benchmark; higher is better.
        second: The other model's, on the same items in the same order.
        weights: What each benchmark counts, `(benchmarks,)`.
        seed: Of resampling and permutation.
    """
    shares = np.asarray(weights, dtype=np.float64) / sum(weights)
    differences = [np.asarray(a - b, dtype=np.float64) for a, b in zip(first, second, strict=True)]
    value = float(np.dot(shares, [d.mean() for d in differences]))
    moved = np.concatenate(differences)
    low, high, p = (value, value, 1.0)
    if np.any(moved):
        low, high = _interval(differences, shares, seed)
        p = _p_value(differences, shares, seed)
    return Gain(value, low, high, p, int((moved > 0).sum()), int((moved < 0).sum()), moved.size)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's correction for having made several comparisons."""
    if not p_values:
        return ()
    return tuple(float(p) for p in cast("Any", multipletests(p_values, method="holm"))[1])


def _interval(differences: list[Array], shares: Array, seed: int) -> tuple[float, float]:
    def macro(*samples: Array, axis: int = -1) -> Array:
        means = np.stack([sample.mean(axis=axis) for sample in samples])
        return cast("Array", np.tensordot(shares, means, axes=1))

    if min(d.size for d in differences) < 2:
        raise ValueError("an interval needs two items of each benchmark or more")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            differences,
            macro,
            n_resamples=RESAMPLES,
            batch=500,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(found.low), float(found.high)


def _p_value(differences: list[Array], shares: Array, seed: int) -> float:
    """Sign flips of all items at once; each counts with its share of the weighted mean."""
    parts = [d * share / d.size for d, share in zip(differences, shares, strict=True)]
    scaled = np.concatenate(parts)
    scaled = scaled[scaled != 0]  # an item without a difference stays so whatever its sign
    if scaled.size < 2:
        return 1.0  # one flip of a sign proves nothing

    def total(sample: Array, axis: int = -1) -> Array:
        return cast("Array", sample.sum(axis=axis))

    found = stats.permutation_test(
        (scaled,),
        total,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=500,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)
