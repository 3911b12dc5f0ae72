"""One pair of models: `evals.statistics.paired_gains` without the bookkeeping for many."""

from collections.abc import Sequence

import numpy as np

from evals.resampling import Array, Clusters
from evals.statistics import Gain, paired_gains


def paired_gain(
    first: Sequence[Array],
    second: Sequence[Array],
    weights: Sequence[float],
    clusters: Sequence[Clusters | None] | None = None,
) -> Gain:
    """Compare two models from their per-item scores, `(items,)` for each benchmark."""
    pairs = zip(first, second, strict=True)
    differences = [np.asarray(a - b, dtype=np.float64)[:, None] for a, b in pairs]
    return paired_gains(differences, weights, clusters).overall[0]
