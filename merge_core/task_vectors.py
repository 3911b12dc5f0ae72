"""What the task-vector methods share: weigh, sparsify, agree on signs, add to the base.

The steps and their order are those of mergekit 0.1.5's generalized task arithmetic.
"""

from collections.abc import Sequence
from typing import Literal

from merge_core.combination import Bernoulli, Linear, Selection, TaskVectors
from merge_core.geometry import TensorGroup
from merge_core.masks import BLOCK


def task_vectors(
    group: TensorGroup,
    weight: Sequence[float],
    selections: Sequence[Selection],
    *,
    consensus: bool,
    normalize: bool,
    rescale: bool,
    scale: float,
    rescaling: Literal["norm", "density"] = "norm",
) -> TaskVectors:
    """Assemble the combination of a task-vector method.

    Args:
        group: The parents' tensors and their base.
        weight: Factor of each task vector, `(parents,)`.
        selections: Which of its elements are kept, `(parents,)`.
        consensus: Keep only elements that agree with the sign of the weighted sum.
        normalize: Divide by the sum of the weights that took part.
        rescale: Restore each kept task vector's L1 norm to what it was before selection.
        scale: mergekit's lambda.
        rescaling: Whether `rescale` restores the norm, or divides random masks by their density.
    """
    factors = [
        w * (_restored(group, parent, selection, rescaling) if rescale else 1.0)
        for parent, (w, selection) in enumerate(zip(weight, selections, strict=True))
    ]
    return TaskVectors(
        tuple(weight), tuple(factors), tuple(selections), consensus, normalize, scale
    )


def summed(group: TensorGroup, coefficients: Sequence[float]) -> Linear | TaskVectors:
    """sum_i c_i x_i, or base + sum_i c_i (x_i - base) where there is a base.

    Args:
        group: The parents' tensors, and their base if any.
        coefficients: c, `(parents,)`.
    """
    factors = tuple(coefficients)
    if group.base is None:
        return Linear(factors)
    return TaskVectors(factors, factors, (None,) * len(factors), False, False, 1.0)


def _restored(group: TensorGroup, parent: int, selection: Selection, rescaling: str) -> float:
    if rescaling == "norm":
        return group.rescale(parent, selection)
    # the limit, not the density asked for: it is what the mask really keeps
    return BLOCK / selection.limit if isinstance(selection, Bernoulli) else 1.0
