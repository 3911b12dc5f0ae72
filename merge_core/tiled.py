"""Plain torch, piece by piece, in float32, rounded once at the end: any device, dtype and form."""

import torch

from merge_core.combination import Combination, Elementwise, Linear, TaskVectors, TensorRef
from merge_core.geometry import TensorGroup, spans, widen
from merge_core.masks import select


def execute_tiled(combination: Combination, group: TensorGroup, out: torch.Tensor) -> None:
    """Write one merged tensor.

    Args:
        combination: What the method decided.
        group: The inputs.
        out: Contiguous tensor of the inputs' shape, any floating dtype; overwritten.
    """
    flat = out.view(-1)
    refs = sources(combination, group)
    inputs = [group.geometry.flat(ref) for ref in refs]
    # Derived tensors were made of inputs that had been rounded already.
    rounding = [None if group.geometry.made(ref) else group.dtype for ref in refs]
    base = group.geometry.flat(group.base) if group.base else None
    for start, end in spans(flat):
        parts = [source[start:end] for source in inputs]
        root = None if base is None else widen(base[start:end], group.dtype)
        match combination:
            case Linear():
                merged = _linear(combination, parts, rounding)
            case TaskVectors():
                assert root is not None  # the method asked for it; planned so
                merged = _task_vectors(combination, parts, root, start, group.dtype)
            case Elementwise():
                values = torch.stack([widen(part, group.dtype) for part in parts])
                if root is not None:
                    values -= root
                merged = combination.merge(root, values, start)
        flat[start:end].copy_(merged)


def sources(combination: Combination, group: TensorGroup) -> tuple[TensorRef, ...]:
    """The tensors that a combination reads beside the base."""
    if isinstance(combination, Linear) and combination.sources is not None:
        return combination.sources
    return group.inputs


def _linear(
    combination: Linear, parts: list[torch.Tensor], rounding: list[torch.dtype | None]
) -> torch.Tensor:
    total: torch.Tensor | None = None
    for coefficient, part, dtype in zip(combination.coefficients, parts, rounding, strict=True):
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
        return total.div_(divisor(combination))
    sign = torch.ones_like(total).copysign_(total)
    agreeing = deltas.mul_(sign).clamp_(min=0)  # turned so that agreeing elements are positive
    merged = agreeing.sum(0).mul_(sign)
    if combination.normalize:
        weights = torch.tensor(combination.weights, dtype=torch.float32, device=deltas.device)
        share = weights @ agreeing.sign_()
        merged.div_(share.add_(share == 0))  # nobody took part: divide nothing by one
    return merged


def divisor(combination: TaskVectors) -> float:
    """What sums without consensus are divided by: the total weight, unless it is below 1e-8."""
    weight = sum(combination.weights)
    return weight if combination.normalize and abs(weight) >= 1e-8 else 1.0
