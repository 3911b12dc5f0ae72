"""A smooth stand-in for real evaluations: from the numbers of a recipe to the result of each item.

Every item's gaps (nats by which the right option leads each wrong one) are a sum of a few patterns
over all items, found by principal components; how much of each pattern a recipe has follows from
its numbers by Gaussian-process regression with one length scale per dimension (Rasmussen & Williams
2006, ch. 2 and 5). Whether an item is right is read from the predicted gaps, as with real ones.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Kernel, Matern, WhiteKernel

Array = np.ndarray[Any, Any]
CLIP = 15.0  # nats; beyond, an item is as right or wrong as can be
_PATTERNS = 64
_FOR_SCALES = 500  # recipes by which the length scales are found


@dataclass(frozen=True, slots=True)
class Emulator:
    """A fitted stand-in.

    Attributes:
        points: Recipes that were evaluated, in the unit cube, each divided by its length scale,
            `(recipes, dimensions)`, float32.
        scales: Length scales, `(dimensions,)`, float32.
        shares: What each recipe adds to each pattern, `(recipes, patterns)`, float32.
        patterns: `(patterns, items * wrong options)`, float32.
        mean: Of the gaps, `(items * wrong options,)`, float32.
    """

    points: Array
    scales: Array
    shares: Array
    patterns: Array
    mean: Array

    def gaps(self, point: Array) -> Array:
        """Gaps of one recipe, a point of the unit cube, `(items * wrong options,)`."""
        apart = np.sqrt(((self.points - point / self.scales) ** 2).sum(1) * np.float32(5.0))
        near = (1 + apart + apart**2 / 3) * np.exp(-apart)  # Matern 5/2
        return self.mean + (near @ self.shares) @ self.patterns


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How near a stand-in is to real evaluations that it was not fitted to.

    Attributes:
        recipes: How many of those.
        graded: R2 and Spearman's rank correlation of the graded objective.
        accuracy: The same of the accuracy.
        top: Rank correlation of the accuracy among the better half.
        agreed: Share of single results, right or wrong, that are the same.
        error: Root mean square difference of the accuracy.
    """

    recipes: int
    graded: tuple[float, float]
    accuracy: tuple[float, float]
    top: float
    agreed: float
    error: float


def fit(points: Array, gaps: Array, seed: int = 0) -> Emulator:
    """Fit a stand-in.

    Args:
        points: Recipes in the unit cube, `(recipes, dimensions)`.
        gaps: `(recipes, items, wrong options)`, nats.
        seed: Of the search for length scales.
    """
    flat = gaps.reshape(len(gaps), -1).astype(np.float64).clip(-CLIP, CLIP)
    mean = flat.mean(0)
    left, sizes, patterns = np.linalg.svd(flat - mean, full_matrices=False)
    kept = min(_PATTERNS, len(sizes))
    targets = (left * sizes)[:, :kept]
    kernel = _kernel(points, targets, seed)
    matern: Any = kernel.k1.k2
    scale = kernel.k1.k1.constant_value
    noise = kernel.k2.noise_level / scale
    near = matern(points) + noise * np.eye(len(points))
    return Emulator(
        (points / matern.length_scale).astype(np.float32),
        np.asarray(matern.length_scale, np.float32),
        np.linalg.solve(near, targets).astype(np.float32),
        patterns[:kept].astype(np.float32),
        mean.astype(np.float32),
    )


def fidelity(emulator: Emulator, points: Array, gaps: Array) -> Fidelity:
    """Hold a stand-in against real evaluations.

    Args:
        emulator: Fitted to others.
        points: Recipes in the unit cube.
        gaps: What they really got.
    """
    found = np.stack([emulator.gaps(p).reshape(gaps.shape[1:]) for p in points])
    graded, told = probability(gaps).mean(1), probability(found).mean(1)
    right, said = correct(gaps), correct(found)
    real, near = right.mean(1), said.mean(1)
    best = real >= np.median(real)
    return Fidelity(
        len(points),
        (_r2(graded, told), float(spearmanr(graded, told).statistic)),
        (_r2(real, near), float(spearmanr(real, near).statistic)),
        float(spearmanr(real[best], near[best]).statistic),
        float((right == said).mean()),
        float(np.sqrt(((real - near) ** 2).mean())),
    )


def probability(gaps: Array) -> Array:
    """Of the right option among all, from gaps `(..., wrong options)`."""
    return 1 / (1 + np.exp(-gaps.astype(np.float32)).sum(-1))


def correct(gaps: Array) -> Array:
    """Whether the right option is the most probable one."""
    return gaps.min(-1) > 0


def _kernel(points: Array, targets: Array, seed: int) -> Any:
    """The kernel with the largest marginal likelihood for the first patterns of some recipes."""
    some = np.random.default_rng(seed).permutation(len(points))[:_FOR_SCALES]
    scale = float(targets[:, :8].std())
    kernel: Kernel = ConstantKernel(4.0, (0.1, 1e3)) * Matern(
        np.full(points.shape[1], 1.0), (0.1, 30.0), nu=2.5
    ) + WhiteKernel(1e-2, (1e-4, 1.0))
    model = GaussianProcessRegressor(kernel, random_state=seed)
    return model.fit(points[some], targets[some, :8] / scale).kernel_


def _r2(real: Array, told: Array) -> float:
    return float(1 - ((real - told) ** 2).sum() / ((real - real.mean()) ** 2).sum())
