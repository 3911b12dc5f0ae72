"""Spherical average of any number of models (mergekit 0.1.5 `multislerp`)."""

import math
from typing import Annotated

import numpy as np

from merge_core.combination import Combination
from merge_core.geometry import TensorGroup
from merge_core.methods.linear import nothing_to_divide_by
from merge_core.registry import Base, Bounds, PerParent, Range, merge_method
from merge_core.task_vectors import summed

_CANCELLED = 1e-6  # a mean direction shorter than this share of its terms is rounding noise


def _refusal(
    models: tuple[str, ...], *, weight: PerParent, normalize_weights: bool, **_: object
) -> str | None:
    if len(weight) == 1 or not normalize_weights:
        return None
    return nothing_to_divide_by(models, weight, "normalize_weights")


@merge_method(
    title="Multi-SLERP",
    reference="https://github.com/arcee-ai/mergekit/blob/main/docs/merge_methods.md",
    base=Base.OPTIONAL,
    check=_refusal,
)
def multislerp(
    group: TensorGroup,
    *,
    weight: Annotated[PerParent, Range(0.0, 1.0)],
    normalize_weights: bool = True,
    eps: Annotated[float, Range(1e-10, 1e-4, log=True), Bounds(0.0)] = 1e-8,
) -> Combination:
    """(m / |m|) sum_i w_i |v_i|, with m = sum_i w_i v_i / (|v_i| + eps).

    v are the parents, or their task vectors where there is a base. mergekit goes on from m along
    the tangent sum_i w_i (u_i - <u_i, m̂> m̂), which is zero for this m: the formula is the same.
    One parent is returned as it is. Where the directions cancel out (antipodes, or task vectors
    that are all zero because a layer was frozen) the weighted sum is taken; mergekit does so for
    two models and fails for more. It also fails to see that the weights to be normalised sum to
    zero, which is an error of the plan here.

    Args:
        group: The parents' tensors, and their base if any.
        weight: Share of each parent, `(parents,)`.
        normalize_weights: Divide by the sum of the weights.
        eps: Added to norms; also the length below which directions count as cancelled out.
    """
    if group.parents == 1:
        return summed(group, (1.0,))
    total = sum(weight) if normalize_weights else 1.0
    weights = np.array(weight) / total
    gram = np.array(group.gram())
    norms = np.sqrt(gram.diagonal())
    units = np.divide(weights, norms + eps, where=norms > 0, out=np.zeros_like(norms))
    squared = float(units @ gram @ units)
    shortest = max(eps, _CANCELLED * float(np.abs(units) @ norms))
    if squared <= shortest**2:
        return summed(group, weights.tolist())
    return summed(group, (units * (float(weights @ norms) / math.sqrt(squared))).tolist())
