# pyright: standard, reportMissingTypeStubs=false
"""A Gaussian process of many outputs at once, as a cheap guess at what recipes score.

All outputs share one kernel over the points and differ in how they move together: a matrix normal
distribution (Conti and O'Hagan 2010, doi:10.1016/j.jspi.2009.08.006). However many outputs there
are, the points' covariance is factored once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize

Array = NDArray[np.float64]

_LENGTH = 0.6  # the usual length scale of one dimension; it grows with the root of their number
_NOISE = 1e-3  # the usual variance of what no point explains, as a share of the whole
_LENGTHS, _NOISES = (-3.0, 3.5), (-14.0, -1.0)  # logarithms
_COUNTED = 20  # outputs move together: more of them than this are no more evidence
_STEPS = 60
_JITTER = 1e-8


@dataclass(frozen=True, slots=True)
class Kernel:
    """How alike the outputs of two points are: Matern 5/2, a length scale for each dimension.

    Attributes:
        chosen: Which dimensions are choices: two options differ by 1, whichever they are, `(d,)`.
        lengths: Length scales, `(d,)`.
        noise: Variance of what is a point's own, as a share of the whole.
    """

    chosen: NDArray[np.bool_]
    lengths: Array
    noise: float

    def between(self, first: Array, second: Array) -> Array:
        """Correlations `(n, m)` of points `(n, d)` and `(m, d)`."""
        numbers = ~self.chosen
        a, b = (points[:, numbers] / self.lengths[numbers] for points in (first, second))
        squares = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
        for at in np.flatnonzero(self.chosen):
            squares += (first[:, at, None] != second[:, at]) / self.lengths[at] ** 2
        return _matern(np.maximum(squares, 0.0))


@dataclass(frozen=True, slots=True)
class Surrogate:
    """What the outputs of any point are guessed to be.

    Attributes:
        kernel: Of the points.
        points: That are known, `(n, d)`.
        outputs: Of the points, `(n, outputs)`.
        factor: Lower Cholesky factor of the points' covariance, `(n, n)`.
        means: Of each output over the points that it was fitted to, `(outputs,)`.
        shares: What each point's outputs count near it, `(n, outputs)`.
    """

    kernel: Kernel
    points: Array
    outputs: Array
    factor: Array
    means: Array
    shares: Array

    def guess(self, points: Array) -> tuple[Array, Array]:
        """Outputs `(m, outputs)` of points `(m, d)`, and how unsure they are, 0 to 1, `(m,)`."""
        near = self.kernel.between(points, self.points)
        known = solve_triangular(self.factor, near.T, lower=True)
        unsure = np.sqrt(np.maximum(1.0 - (known * known).sum(0), 0.0))
        return self.means + near @ self.shares, unsure

    def directions(self, count: int, chance: np.random.Generator) -> Array:
        """Ways `(count, outputs)` in which the outputs of a wholly unsure point may be off."""
        whitened = solve_triangular(self.factor, self.outputs - self.means, lower=True)
        drawn = chance.standard_normal((count, len(whitened)))
        return drawn @ whitened / np.sqrt(len(whitened))

    def believing(self, points: Array) -> Surrogate:
        """The same after points whose outputs were as guessed (Ginsbourger et al. 2010)."""
        guessed, _ = self.guess(points)
        joined = np.vstack([self.points, points])
        return _known(self.kernel, joined, np.vstack([self.outputs, guessed]), self.means)


def fit(points: Array, outputs: Array, chosen: Sequence[bool], fitted: int) -> Surrogate:
    """Guess everything else from points whose outputs are known.

    The kernel is the one that makes them most probable, with a log-normal prior for the length
    scales that grows with the number of dimensions (Hvarfner et al. 2024, arXiv:2402.02229).

    Args:
        points: In the unit cube, choices as places in their lists, `(n, d)`.
        outputs: `(n, outputs)`, finite.
        chosen: Which dimensions are choices, `(d,)`.
        fitted: The kernel is found from this many of the last points.
    """
    means = outputs.mean(axis=0)
    late = slice(-fitted, None)
    kernel = _kernel(points[late], outputs[late] - means, np.array(chosen, dtype=bool))
    return _known(kernel, points, outputs, means)


def _known(kernel: Kernel, points: Array, outputs: Array, means: Array) -> Surrogate:
    covariance = kernel.between(points, points)
    covariance[np.diag_indices(len(points))] += kernel.noise + _JITTER
    factor = cast("Array", np.linalg.cholesky(covariance))
    shares = cho_solve((factor, True), outputs - means)
    return Surrogate(kernel, points, outputs, factor, means, shares)


def _kernel(points: Array, residuals: Array, chosen: NDArray[np.bool_]) -> Kernel:
    count, dimensions = points.shape
    alike = residuals @ residuals.T
    scale = np.trace(alike) / count
    usual = np.log(_LENGTH * np.sqrt(dimensions))
    start = np.array([*[usual] * dimensions, np.log(_NOISE)])
    if scale <= 0:  # all points have the same outputs
        return Kernel(chosen, np.exp(start[:-1]), _NOISE)
    gaps = points[:, None] - points[None]
    squares = np.where(chosen, gaps != 0, gaps * gaps)
    found = minimize(
        _cost,
        start,
        (squares, alike / scale, min(count, _COUNTED), start),
        "L-BFGS-B",
        jac=True,
        bounds=[_LENGTHS] * dimensions + [_NOISES],
        options={"maxiter": _STEPS},
    ).x
    return Kernel(chosen, np.exp(found[:-1]), float(np.exp(found[-1])))


def _cost(
    logs: Array, squares: Array, alike: Array, counted: int, usual: Array
) -> tuple[float, Array]:
    """Minus the log of a kernel's likelihood and prior, and its gradient.

    Args:
        logs: Logarithms of length scales and noise, `(d + 1,)`.
        squares: Squared distances by dimension, `(n, n, d)`.
        alike: Products of the points' residuals, `(n, n)`, with a trace of n.
        counted: How many outputs count as evidence of their own.
        usual: The prior's means, `(d + 1,)`; its standard deviations are 1, and 2 for the noise.
    """
    count, noise = len(alike), np.exp(logs[-1])
    parts = squares / np.exp(2 * logs[:-1])
    total = parts.sum(axis=2)
    covariance = _matern(total)
    covariance[np.diag_indices(count)] += noise + _JITTER
    factor = np.linalg.cholesky(covariance)
    inverse = cho_solve((factor, True), np.eye(count))
    spread = inverse @ alike
    variance = np.trace(spread) / count
    cost = counted * (count / 2 * np.log(variance) + np.log(np.diag(factor)).sum())
    slopes = counted / 2 * (inverse - spread @ inverse / variance)
    roots = np.sqrt(5 * total)
    steep = slopes * (5 / 3) * (1 + roots) * np.exp(-roots)
    gradient = np.append(np.einsum("ij,ijk->k", steep, parts), np.trace(slopes) * noise)
    apart = (logs - usual) / np.array([*[1.0] * (len(logs) - 1), 2.0])
    gradient[:-1] += apart[:-1]
    gradient[-1] += apart[-1] / 2
    return float(cost + (apart @ apart) / 2), gradient


def _matern(squares: Array) -> Array:
    """Matern 5/2 of squared distances (Rasmussen and Williams 2006, eq. 4.17)."""
    roots = np.sqrt(5 * squares)
    return (1 + roots + roots * roots / 3) * np.exp(-roots)
