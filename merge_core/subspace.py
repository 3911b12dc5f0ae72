"""What the singular-vector methods share: which tensors are matrices, their SVD, whitening."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from merge_core.combination import Combination, Linear, TensorRef
from merge_core.errors import MergeError
from merge_core.geometry import TensorGroup
from merge_core.task_vectors import task_vectors

_LONGEST = 16384
_STRETCHED = 8

Factors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""U `(rows, rank)`, sigma `(rank,)`, V^T `(rank, columns)`."""


def is_matrix(shape: torch.Size) -> bool:
    """Whether a tensor maps vectors to vectors: two dimensions above 1, and no table of tokens.

    Tables (embeddings, heads) are what has a side above 16384 and above 8 times the other. Their
    rows are looked up one by one, the papers leave them out, and a decomposition costs ten layers'.
    """
    if len(shape) != 2 or min(shape) < 2:
        return False
    return max(shape) <= _LONGEST or max(shape) <= _STRETCHED * min(shape)


def average(group: TensorGroup, weight: Sequence[float], scale: float) -> Combination:
    """Base + scale * mean_i w_i T_i: what these methods do to tensors that are no matrices."""
    return task_vectors(
        group,
        weight,
        (None,) * group.parents,
        consensus=False,
        normalize=False,
        rescale=False,
        scale=scale / group.parents,
    )


def added(group: TensorGroup, deltas: Sequence[TensorRef], factors: Sequence[float]) -> Linear:
    """Base + sum_i factors[i] * deltas[i], for derived deltas."""
    assert group.base is not None  # the method asked for it; planned so
    return Linear((1.0, *factors), (group.base, *deltas))


def derive_all(
    group: TensorGroup, name: str, count: int, build: Callable[[], Sequence[torch.Tensor]]
) -> tuple[TensorRef, ...]:
    """Derived tensors that are made together.

    Args:
        group: Whose inputs they are made of.
        name: What they are.
        count: How many.
        build: Makes all of them.
    """
    made: list[torch.Tensor] = []

    def make(index: int) -> torch.Tensor:
        if not made:
            made.extend(build())
        return made[index]

    return tuple(
        group.derived((name, index), lambda index=index: make(index)) for index in range(count)
    )


def decompose(group: TensorGroup, matrix: torch.Tensor, scale: float = 0.0) -> Factors:
    """The singular value decomposition, without what is zero up to float32 rounding.

    Directions of singular value zero are arbitrary: a frozen layer or a low-rank fine-tune would
    add noise to all that depends on them.

    Args:
        group: Whose matrix it is.
        matrix: `(rows, columns)`, float32.
        scale: Size of the numbers that it is a difference of.

    Raises:
        MergeError: If the matrix holds NaN or infinity.
    """
    if not matrix.isfinite().all():
        raise MergeError(f"tensor '{group.name}': a parent's task vector is not finite")
    left, sizes, right = _svd(matrix)
    rank = int((sizes > _rounding(matrix, max(scale, float(sizes[0])))).sum())
    return left[:, :rank], sizes[:rank], right[:rank]


def whitened(columns: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with orthonormal columns (or rows), by Procrustes: P Q^T of P S Q^T.

    Where columns depend on each other, orthonormal on what they span: a task that is given twice
    then counts once.
    """
    if 0 in columns.shape:
        return columns
    left, sizes, right = _svd(columns)
    rank = int((sizes > _rounding(columns, float(sizes[0]))).sum())
    return left[:, :rank] @ right[:rank]


def _svd(matrix: torch.Tensor) -> Factors:
    linalg: Any = torch.linalg  # without types
    return linalg.svd(matrix, full_matrices=False)


def _rounding(matrix: torch.Tensor, scale: float) -> float:
    """Largest singular value that rounding alone explains."""
    return scale * max(matrix.shape) * torch.finfo(matrix.dtype).eps
