"""Is there any difference? If not, each paired difference is as likely to have the other sign.

For right-or-wrong answers of one benchmark this is McNemar's exact test; the mid-p value (Lancaster
1961; Fagerland et al. 2013) counts half of what is exactly as far out as the data, because the
exact test alone rejects a true null hypothesis 2% of the time where 5% are allowed.
"""

from typing import Any, cast

import numpy as np
import scipy.stats as _stats  # pyright: ignore[reportMissingTypeStubs]

from evals.resampling import Array

stats: Any = _stats  # scipy ships no types

_OUTCOMES = 200_000  # so many are counted one by one; beyond it they are drawn
_BLOCK = 500
_SAME = 1e-9  # relative; sums in another order differ by rounding


def sign_flip_p(values: Array, draws: int, generator: np.random.Generator) -> float:
    """The two-sided mid-p value of a sum under random signs.

    Args:
        values: What each unit adds to the sum, `(units,)`.
        draws: How many random signs to try where there are too many outcomes to count.
        generator: Of those.
    """
    values = values[values != 0]  # a unit without a difference stays so whatever its sign
    reach, observed = float(np.abs(values).sum()), float(abs(values.sum()))
    same = _SAME * reach
    if observed <= same:
        return 1.0
    # Equal sizes may differ in the last digit where they were divided by other numbers.
    sizes, counts = np.unique(np.round(np.abs(values) / reach, 12), return_counts=True)
    if np.prod(counts + 1.0) <= _OUTCOMES:
        sums, masses = _outcomes(sizes * reach, counts)
        farther = masses[sums > observed + same].sum()
        return float(min(1.0, farther + masses[np.abs(sums - observed) <= same].sum() / 2))
    sums = np.abs(_drawn(values, draws, generator))
    farther = int((sums > observed + same).sum())
    equal = int((np.abs(sums - observed) <= same).sum())
    return min(1.0, (1 + farther + equal / 2) / (draws + 1))


def _outcomes(sizes: Array, counts: Any) -> tuple[Array, Array]:
    """Every absolute sum that signs can give, with its probability."""
    sums, masses = np.zeros(1), np.ones(1)
    for size, count in zip(sizes, counts, strict=True):
        plus = cast("Array", np.arange(count + 1.0))
        sums = np.add.outer(sums, size * (2 * plus - count)).ravel()
        masses = np.multiply.outer(masses, stats.binom.pmf(plus, count, 0.5)).ravel()
    return np.abs(sums), masses


def _drawn(values: Array, draws: int, generator: np.random.Generator) -> Array:
    parts: list[Array] = []
    for start in range(0, draws, _BLOCK):
        shape = (min(_BLOCK, draws - start), -(-values.size // 8))
        bits = np.unpackbits(generator.integers(0, 256, shape, dtype=np.uint8), axis=1)
        parts.append((2.0 * bits[:, : values.size] - 1.0) @ values)
    return cast("Array", np.concatenate(parts))
