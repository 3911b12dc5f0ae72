"""Riemannian mean of models on a sphere (Karcher 1977; mergekit 0.1.5 `karcher`)."""

from typing import Annotated

import numpy as np

from merge_core.combination import Linear
from merge_core.geometry import TensorGroup
from merge_core.registry import Base, Bounds, Range, merge_method

_ANTIPODE = 1e-12  # of 1 - d^2: an antipode has no direction to go


@merge_method(
    title="Karcher Mean", reference="https://doi.org/10.1002/cpa.3160300502", base=Base.INPUT
)
def karcher(
    group: TensorGroup,
    *,
    max_iter: Annotated[float, Range(1, 50), Bounds(0.0)] = 10,
    tol: Annotated[float, Range(1e-9, 1e-3, log=True)] = 1e-5,
) -> Linear:
    """Unit vector of least squared angles to all u_i = x_i / |x_i|, times the mean norm.

    From m = mean(u_i) normalised, repeated: m <- exp_m(mean_i log_m(u_i)), where log_m(u) = θ (u -
    cos θ m) / sin θ and exp_m(T) = cos|T| m + sin|T| T / |T|. m stays a combination of the u_i, so
    all of it happens on their Gram matrix, once per study. mergekit iterates on the tensors, in
    their dtype; it has no rule for antipodes of m, which are left out here.

    Args:
        group: The parents' tensors; a base model that is set is a parent like the others.
        max_iter: Most repetitions, a whole number.
        tol: Step below which they end; also the norm up to which a parent has no direction.
    """
    key = ("karcher", max_iter, tol)
    return Linear(group.once(key, lambda: _coefficients(group, int(max_iter), tol)))


def _coefficients(group: TensorGroup, max_iter: int, tol: float) -> tuple[float, ...]:
    """What each parent is multiplied with, `(parents,)`."""
    if group.parents == 1:
        return (1.0,)
    gram = np.array(group.gram())
    norms = np.sqrt(gram.diagonal())
    directed = ~(norms <= tol)
    if not directed.any():
        return (0.0,) * group.parents
    inverse = np.divide(1.0, norms, where=directed, out=np.zeros_like(norms))
    cosines = gram * inverse[:, None] * inverse
    mean = _start(cosines, directed, tol)
    for _ in range(max_iter):
        to_mean = (cosines @ mean).clip(-1, 1)
        angles = np.arccos(to_mean)
        sines = np.sqrt(1 - to_mean**2)
        taken = directed & ~(angles < tol) & ~((to_mean < 0) & (sines**2 <= _ANTIPODE))
        pulls = np.divide(angles, sines, where=taken, out=np.zeros_like(norms)) / len(norms)
        step = pulls - float(pulls @ to_mean) * mean
        length = _length(cosines, step)
        if length < tol:
            break
        mean = np.cos(length) * mean + np.sin(length) / length * step
        mean = mean / _length(cosines, mean)
    return tuple((mean * inverse * norms.mean()).tolist())


def _start(cosines: np.ndarray, directed: np.ndarray, tol: float) -> np.ndarray:
    """The normalised mean of the unit vectors, or the first of them where they cancel out."""
    mean = directed / directed.sum()
    length = _length(cosines, mean)
    return np.eye(len(mean))[directed.argmax()] if length < tol else mean / length


def _length(cosines: np.ndarray, vector: np.ndarray) -> float:
    """Length of a combination of the unit vectors."""
    squared = float(vector @ cosines @ vector)
    return 0.0 if squared <= 0 else float(np.sqrt(squared))
