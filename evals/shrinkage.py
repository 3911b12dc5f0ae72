"""What a candidate's score is worth when many were tried: empirical Bayes shrinkage.

The best of many is also the luckiest. How much of the candidates' spread is luck can be seen in
their items: if all were equally good, the paired sampling variance alone would spread the scores.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evals.resampling import Array, Clusters, units

_FEWEST = 3
_FAR = 2.5  # standard deviations below the others' mean
_Z75, _Z90 = 0.6745, 1.2816  # quantiles of the normal distribution


def shrink(
    candidates: Sequence[Array],
    weights: Sequence[float],
    clusters: Sequence[Clusters | None] | None = None,
) -> Array:
    """Shrink scores towards their mean (Efron & Morris 1973).

    With v the variance of the true scores and s that of sampling, both estimated from the items, a
    score keeps the share v / (v + s) of its distance from the mean. Candidates that are far worse
    than the rest are left out and left as they are: a search tries many, and their spread would
    say that the good ones differ by skill too.

    Args:
        candidates: Per-item scores, one array `(candidates, items)` for each benchmark.
        weights: What each benchmark counts, `(benchmarks,)`.
        clusters: For each benchmark the cluster of each item `(items,)`, or None where items are
            independent.

    Returns:
        The shrunk scores, `(candidates,)`; unchanged if there are fewer than three.
    """
    shares = np.asarray(weights, dtype=np.float64) / sum(weights)
    scores = np.asarray(shares @ np.stack([items.mean(axis=1) for items in candidates]))
    kept = _without_poor(scores)
    if kept.sum() < _FEWEST:
        return scores
    given = clusters or [None] * len(candidates)
    parts = zip(shares, candidates, given, strict=True)
    luck = sum(share**2 * _paired_variance(items[kept], of) for share, items, of in parts)
    skill = max(0.0, float(scores[kept].var(ddof=1)) - luck)
    share = skill / (skill + luck) if luck > 0 else 1.0
    mean = scores[kept].mean()
    return np.where(kept, mean + share * (scores - mean), scores)


def _without_poor(scores: Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which candidates are none of the far worse ones: clipped below until no more fall out.

    The upper half tells where to begin: the lower one may be poor altogether.
    """
    upper, top = np.quantile(scores, (0.75, 0.90))
    spread = (top - upper) / (_Z90 - _Z75)
    kept = scores >= upper - (_Z75 + _FAR) * spread
    while kept.sum() >= _FEWEST:
        near = scores >= scores[kept].mean() - _FAR * scores[kept].std(ddof=1)
        if not (kept & ~near).any():
            break
        kept &= near
    return kept


def _paired_variance(items: Array, clusters: Clusters | None) -> float:
    """Sampling variance of a candidate's mean around the mean of all, on the same items."""
    beside = replace(units((items - items.mean(axis=0)).T, clusters), binary=False)
    # The mean of all takes a share of each candidate's own deviation with it.
    return float(beside.variances.mean() * len(items) / (len(items) - 1))
