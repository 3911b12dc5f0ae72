"""TSV-M: merge by task singular vectors (arXiv:2412.00081)."""

from collections.abc import Sequence
from typing import Annotated

import torch

from merge_core.combination import Combination
from merge_core.geometry import TensorGroup
from merge_core.registry import Base, Default, PerParent, Range, merge_method
from merge_core.subspace import Factors, added, average, decompose, derive_all, is_matrix, whitened


@merge_method(title="TSV-Merge", reference="https://arxiv.org/abs/2412.00081", base=Base.REQUIRED)
def tsv(
    group: TensorGroup,
    *,
    weight: Annotated[PerParent, Range(0.0, 1.5), Default(1.0)],
    lambda_: Annotated[float, Range(0.1, 2.0)] = 1.0,
) -> Combination:
    """Base + lambda * sum_i w_i D_i, D_i the task vector's top components without interference.

    For a matrix, T_i = U_i S_i V_i^T is cut to its max(1, int(rank / parents)) largest components;
    the U_i of all parents side by side, `(rows, kept)`, are replaced by the nearest orthonormal
    columns, the V_i likewise, and D_i = U'_i S_i V'_i^T. Other tensors, embeddings and heads get
    lambda * mean_i w_i T_i. The D_i do not depend on the parameters: they are made once, and a
    merge is one linear combination.

    Beyond the paper (which has no weights): components of singular value zero take no part, so
    low-rank and frozen parents do not bend the others', and where parents span the same directions
    these are whitened within their span. Not in mergekit.

    Args:
        group: The parents' tensors and their base.
        weight: Factor of each D_i, `(parents,)`.
        lambda_: Factor of the merged task vector.
    """
    if not is_matrix(group.shape):
        return average(group, weight, lambda_)
    deltas = derive_all(group, "tsv", group.parents, lambda: _deltas(group))
    return added(group, deltas, [lambda_ * w for w in weight])


def _deltas(group: TensorGroup) -> list[torch.Tensor]:
    """All D_i, float32, `(rows, columns)` each."""
    kept = max(1, min(group.shape) // group.parents)
    parts = [_largest(decompose(group, group.whole(i)), kept) for i in range(group.parents)]
    widths = [len(sizes) for _, sizes, _ in parts]
    left = _blocks([u for u, _, _ in parts], widths)
    right = _blocks([v.T for _, _, v in parts], widths)
    return [(u * sizes) @ v.T for u, (_, sizes, _), v in zip(left, parts, right, strict=True)]


def _largest(factors: Factors, kept: int) -> Factors:
    left, sizes, right = factors
    return left[:, :kept], sizes[:kept], right[:kept]


def _blocks(parts: Sequence[torch.Tensor], widths: list[int]) -> Sequence[torch.Tensor]:
    """Singular vectors side by side, whitened, and apart again."""
    return torch.split_with_sizes(whitened(torch.cat(list(parts), 1)), widths, 1)
