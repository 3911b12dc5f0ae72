"""Iso-C: isotropic merging in the common subspace (arXiv:2502.04959)."""

from typing import Annotated

import torch

from merge_core.combination import Combination
from merge_core.geometry import TensorGroup
from merge_core.registry import Base, Range, merge_method
from merge_core.subspace import added, average, decompose, is_matrix


@merge_method(title="Iso-C", reference="https://arxiv.org/abs/2502.04959", base=Base.REQUIRED)
def iso_c(
    group: TensorGroup,
    *,
    lambda_: Annotated[float, Range(0.1, 2.0)] = 1.0,
) -> Combination:
    """Base + lambda * mean(sigma) U V^T, with U diag(sigma) V^T = sum_i T_i.

    The summed task vector keeps its directions and gets one singular value, so that no task's
    directions are drowned. Other tensors than matrices, embeddings and heads get lambda *
    mean_i T_i. The merged matrix is made once; a merge is one linear combination. There are no
    weights, as in the paper: they would change the decomposition in every trial.

    Directions of singular value zero are left out, of the mean too: the paper's full-rank
    fine-tunes have none, and those of low-rank or frozen ones would be arbitrary. Not in mergekit.

    Args:
        group: The parents' tensors and their base.
        lambda_: Factor of the merged task vector.
    """
    if not is_matrix(group.shape):
        return average(group, (1.0,) * group.parents, lambda_)
    return added(group, [group.derived("iso_c", lambda: _delta(group))], [lambda_])


def _delta(group: TensorGroup) -> torch.Tensor:
    """Mean(sigma) U V^T, float32, `(rows, columns)`."""
    total = group.whole(0)
    for parent in range(1, group.parents):
        total = total + group.whole(parent)
    left, sizes, right = decompose(group, total)
    return left @ right * (sizes.mean() if len(sizes) else 0.0)
