"""The two passes that execute every combination: in pieces, in float32, rounded once at the end."""

import torch

from merge_core.combination import Combination, Linear, TaskVectors
from merge_core.geometry import TensorGroup, spans, widen
from merge_core.masks import select


def execute(combination: Combination, group: TensorGroup, out: torch.Tensor) -> None:
    """Write one merged tensor.

    Args:
        combination: What the method decided.
        group: The inputs.
        out: Contiguous tensor of the inputs' shape, any floating dtype; overwritten.
    """
    flat = out.view(-1)
    inputs = [group.geometry.flat(ref) for ref in group.inputs]
    base = group.geometry.flat(group.base) if group.base else None
    for start, end in spans(flat):
        parts = [source[start:end] for source in inputs]
        match combination:
            case Linear():
                merged = _linear(combination, parts, group.dtype)
            case TaskVectors():
                assert base is not None  # the method asked for it; planned so
                root = widen(base[start:end], group.dtype)
                merged = _task_vectors(combination, parts, root, start, group.dtype)
        flat[start:end].copy_(merged)


def _linear(
    combination: Linear, parts: list[torch.Tensor], dtype: torch.dtype | None
) -> torch.Tensor:
    total: torch.Tensor | None = None
    for coefficient, part in zip(combination.coefficients, parts, strict=True):
        if coefficient == 0:
            continue  # 0 * inf, and the sign of zero: a one-hot merge is that parent, bit for bit
        values = widen(part, dtype)
        total = values * coefficient if total is None else total.add_(values, alpha=coefficient)
    return torch.zeros_like(parts[0], dtype=torch.float32) if total is None else total


def _task_vectors(
    combination: TaskVectors,
    parts: list[torch.Tensor],
    base: torch.Tensor,
    start: int,
    dtype: torch.dtype | None,
) -> torch.Tensor:
    deltas = torch.empty(len(parts), base.numel(), dtype=torch.float32, device=base.device)
    for row, part, factor, selection in zip(
        deltas, parts, combination.factors, combination.selections, strict=True
    ):
        if factor == 0:
            row.zero_()  # whatever the parent holds: 0 * inf would be NaN
            continue
        torch.sub(widen(part, dtype), base, out=row)
        torch.mul(select(selection, row, start), factor, out=row)
    return _merged(combination, deltas).mul_(combination.scale).add_(base)


def _merged(combination: TaskVectors, deltas: torch.Tensor) -> torch.Tensor:
    """Sum over parents; with consensus only of elements that have the sum's sign (0 votes +).

    Args:
        combination: Whether and how to agree and normalise.
        deltas: Weighed task vectors, `(parents, count)`; overwritten.
    """
    total = deltas.sum(0)
    if not combination.consensus:
        weight = sum(combination.weights)
        return total.div_(weight) if combination.normalize and abs(weight) >= 1e-8 else total
    sign = torch.ones_like(total).copysign_(total)
    agreeing = deltas.mul_(sign).clamp_(min=0)  # turned so that agreeing elements are positive
    merged = agreeing.sum(0).mul_(sign)
    if combination.normalize:
        weights = torch.tensor(combination.weights, dtype=torch.float32, device=deltas.device)
        divisor = weights @ agreeing.sign_()
        merged.div_(divisor.add_(divisor == 0))  # nobody took part: divide nothing by one
    return merged
