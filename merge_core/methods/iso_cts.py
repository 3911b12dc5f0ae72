"""Iso-CTS: isotropic merging in common and task-specific subspaces (arXiv:2502.04959)."""

from typing import Annotated

import torch

from merge_core.combination import Combination
from merge_core.geometry import TensorGroup
from merge_core.registry import SHARE, Base, Range, merge_method
from merge_core.subspace import Factors, added, average, decompose, is_matrix, whitened

_STEPS = 20


@merge_method(title="Iso-CTS", reference="https://arxiv.org/abs/2502.04959", base=Base.REQUIRED)
def iso_cts(
    group: TensorGroup,
    *,
    common_space_fraction: Annotated[float, Range(0.0, 1.0), SHARE] = 0.8,
    lambda_: Annotated[float, Range(0.1, 2.0)] = 1.0,
) -> Combination:
    """Base + lambda * mean(sigma) U V^T of common and task-specific singular directions.

    For a matrix of r = min(rows, columns) and n parents: the common space is the top k directions
    of sum_i T_i, each task adds the top s of T_i - C C^T T_i (C the k left directions), with
    s = round((r - int(fraction r)) / n), at most r // n, and k = r - n s. U, `(rows, r)`, and V are
    all of them side by side, whitened (the nearest orthonormal columns), sigma their singular
    values. At fraction 1 it is `iso_c`. Other tensors than matrices, embeddings and heads get
    lambda * mean_i T_i. No weights, and directions of singular value zero are left out: as in
    `iso_c`. Not in mergekit.

    The merged matrix is made once for each fraction, at the cost of several decompositions, and
    kept, so fractions count in steps of 1/20; a merge is one linear combination.

    Args:
        group: The parents' tensors and their base.
        common_space_fraction: Share of the directions that come from the sum.
        lambda_: Factor of the merged task vector.
    """
    if not is_matrix(group.shape):
        return average(group, (1.0,) * group.parents, lambda_)
    steps = min(max(round(common_space_fraction * _STEPS), 0), _STEPS)
    delta = group.derived(("iso_cts", steps), lambda: _delta(group, steps))
    return added(group, [delta], [lambda_])


def _delta(group: TensorGroup, steps: int) -> torch.Tensor:
    """Mean(sigma) U V^T, float32, `(rows, columns)`."""
    rank, parents = min(group.shape), group.parents
    specific = min(round((rank - steps * rank // _STEPS) / parents), rank // parents)
    total = group.whole(0)
    for parent in range(1, parents):
        total = total + group.whole(parent)
    common = _largest(decompose(group, total), rank - parents * specific)
    parts = [common]
    for parent in range(parents if specific else 0):
        own = group.whole(parent)
        rest = own - common[0] @ (common[0].T @ own)
        parts.append(_largest(decompose(group, rest, float(own.square().sum().sqrt())), specific))
    sizes = torch.cat([part[1] for part in parts])
    left = whitened(torch.cat([part[0] for part in parts], 1))
    right = whitened(torch.cat([part[2].T for part in parts], 1))
    return left @ right.T * (sizes.mean() if len(sizes) else 0.0)


def _largest(factors: Factors, kept: int) -> Factors:
    left, sizes, right = factors
    return left[:, :kept], sizes[:kept], right[:kept]
