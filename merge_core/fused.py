"""One function for each form, made by torch.compile: what accelerators run.

A candidate's numbers (factors, thresholds, limits, random keys) arrive as tensors, so a new
candidate compiles nothing. Only what changes the program is part of it: the number of parents, how
each one's elements are selected, and whether they agree and are normalised.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from merge_core import codes
from merge_core.combination import (
    Bernoulli,
    Combination,
    Elementwise,
    Linear,
    Scored,
    Selection,
    TaskVectors,
    Window,
)
from merge_core.geometry import TensorGroup, spans, widen
from merge_core.masks import block_keys, mixed_bits
from merge_core.tiled import divisor, sources

_FIRST, _LAST, _LIMIT, _HALF = range(4)  # whole numbers of a selection
_WEIGHT, _FACTOR, _UPPER, _LOWER = range(4)  # and its others

Kinds = tuple[int, ...]


def execute_fused(combination: Combination, group: TensorGroup, out: torch.Tensor) -> None:
    """Write one merged tensor.

    Args:
        combination: What the method decided; `Linear` or `TaskVectors`.
        group: The inputs.
        out: Contiguous tensor of the inputs' shape, any floating dtype; overwritten.
    """
    assert not isinstance(combination, Elementwise)
    flat = out.view(-1)
    refs = sources(combination, group)
    inputs = [group.geometry.flat(ref) for ref in refs]
    # Derived tensors were made of inputs that had been rounded already.
    rounding = tuple(None if group.geometry.made(ref) else group.dtype for ref in refs)
    if isinstance(combination, Linear):
        _run_linear(combination, inputs, rounding, flat)
    else:
        assert group.base is not None  # the method asked for it; planned so
        _run_task_vectors(combination, inputs, group.geometry.flat(group.base), group.dtype, flat)


def _run_linear(
    form: Linear,
    inputs: Sequence[torch.Tensor],
    rounding: tuple[torch.dtype | None, ...],
    flat: torch.Tensor,
) -> None:
    # A zero leaves its source out, whatever it holds: a one-hot merge is that parent, bit for bit.
    used = [i for i, coefficient in enumerate(form.coefficients) if coefficient != 0]
    weights = torch.tensor([form.coefficients[i] for i in used], dtype=torch.float32)
    weights = weights.to(flat.device)
    if not used:
        flat.zero_()
        return
    loop = _compiled(linear_piece)
    for start, end in spans(flat):
        parts = [inputs[i][start:end] for i in used]
        loop(parts, weights, tuple(rounding[i] for i in used), flat[start:end])


def _run_task_vectors(
    form: TaskVectors,
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor,
    dtype: torch.dtype | None,
    flat: torch.Tensor,
) -> None:
    device = flat.device
    kinds = tuple(
        codes.NOTHING if factor == 0 else _kind(selection)
        for factor, selection in zip(form.factors, form.selections, strict=True)
    )
    reals, wholes = (table.to(device) for table in _tables(form))
    options = torch.tensor([form.scale, divisor(form)], dtype=torch.float32, device=device)
    loop = _compiled(task_vectors_piece)
    for start, end in spans(flat):
        parts = [source[start:end] for source in inputs]
        numbers = [_numbers(selection, start, end, device) for selection in form.selections]
        at = torch.tensor(start, device=device)
        program = (kinds, form.consensus, form.normalize, dtype)
        loop(base[start:end], parts, at, reals, wholes, numbers, options, program, flat[start:end])


def linear_piece(
    parts: Sequence[torch.Tensor],
    weights: torch.Tensor,
    rounding: tuple[torch.dtype | None, ...],
    out: torch.Tensor,
) -> None:
    """Write sum_i weights[i] * parts[i], in float32, rounded once; all `(count,)`."""
    total = widen(parts[0], rounding[0]) * weights[0]
    for i in range(1, len(parts)):
        total = total + widen(parts[i], rounding[i]) * weights[i]
    out.copy_(total)


def task_vectors_piece(
    base: torch.Tensor,
    parts: Sequence[torch.Tensor],
    at: torch.Tensor,
    reals: torch.Tensor,
    wholes: torch.Tensor,
    numbers: Sequence[torch.Tensor],
    options: torch.Tensor,
    program: tuple[Kinds, bool, bool, torch.dtype | None],
    out: torch.Tensor,
) -> None:
    """Write base plus merged task vectors of one piece, in float32, rounded once.

    Args:
        base: `(count,)`.
        parts: The parents, `(count,)` each.
        at: int64 scalar: position of the first element.
        reals: float32 weight, factor, threshold of first and last cut, `(parents, 4)`.
        wholes: int64 index of first and last cut (-1 for none), limit, half, `(parents, 4)`.
        numbers: Of each parent the blocks' random keys, int32 `(2, blocks)`, or its scores,
            `(count,)`.
        options: float32 scale and divisor.
        program: Kinds of the selections, consensus, normalize, and what inputs are rounded to.
        out: `(count,)`; overwritten.
    """
    kinds, consensus, normalize, dtype = program
    root = widen(base, dtype)
    places = torch.arange(base.numel(), device=base.device) + at
    rows: list[torch.Tensor] = []
    for k, kind in enumerate(kinds):
        if kind == codes.NOTHING:
            rows.append(torch.zeros_like(root))
            continue
        delta = widen(parts[k], dtype) - root
        kept = _kept(kind, delta, places, at, reals[k], wholes[k], numbers[k])
        row = delta * reals[k, _FACTOR]
        rows.append(row if kept is None else torch.where(kept, row, 0.0))
    total = functools.reduce(torch.add, rows)
    if not consensus:
        out.copy_(total / options[1] * options[0] + root)
        return
    sign = torch.where(total < 0, -1.0, 1.0)
    turned = [row * sign for row in rows]
    agreeing = [torch.where(row <= 0, 0.0, row) for row in turned]
    merged = functools.reduce(torch.add, agreeing)
    if normalize:
        shares = [torch.where(row <= 0, 0.0, reals[k, _WEIGHT]) for k, row in enumerate(turned)]
        share = functools.reduce(torch.add, shares)
        merged = merged / torch.where(share == 0, 1.0, share)
    out.copy_(merged * sign * options[0] + root)


def _kept(
    kind: int,
    delta: torch.Tensor,
    places: torch.Tensor,
    at: torch.Tensor,
    reals: torch.Tensor,
    wholes: torch.Tensor,
    numbers: torch.Tensor,
) -> torch.Tensor | None:
    if kind == codes.WINDOW:
        size = delta.abs()
        first, last = wholes[_FIRST], wholes[_LAST]
        above = (size > reals[_UPPER]) | ((size == reals[_UPPER]) & (places < first))
        below = (size < reals[_LOWER]) | ((size == reals[_LOWER]) & (places >= last))
        return ~((above & (first >= 0)) | (below & (last >= 0))) | size.isnan()
    if kind == codes.BERNOULLI:
        block = (places >> 16) - (at >> 16)
        drawn = mixed_bits((places & 0xFFFF).to(torch.int32), numbers[0][block], numbers[1][block])
        return ((drawn >> (16 * wholes[_HALF])) & 0xFFFF) < wholes[_LIMIT]
    if kind == codes.SCORED:
        return numbers < wholes[_LIMIT]
    return None


def _kind(selection: Selection) -> int:
    match selection:
        case None:
            return codes.EVERYTHING
        case Window():
            return codes.WINDOW
        case Bernoulli():
            return codes.BERNOULLI
        case Scored():
            return codes.SCORED
        case _:
            return codes.NOTHING


def _tables(form: TaskVectors) -> tuple[torch.Tensor, torch.Tensor]:
    reals = torch.zeros(len(form.weights), 4, dtype=torch.float32)
    wholes = torch.full((len(form.weights), 4), -1, dtype=torch.int64)
    reals[:, _WEIGHT] = torch.tensor(form.weights)
    reals[:, _FACTOR] = torch.tensor(form.factors)
    for k, selection in enumerate(form.selections):
        match selection:
            case Window(first, last):
                if first is not None:
                    reals[k, _UPPER], wholes[k, _FIRST] = first.threshold, first.index
                if last is not None:
                    reals[k, _LOWER], wholes[k, _LAST] = last.threshold, last.index
            case Bernoulli(limit, stream):
                wholes[k, _LIMIT], wholes[k, _HALF] = limit, stream.half
            case Scored(limit):
                wholes[k, _LIMIT] = limit
            case _:
                pass
    return reals, wholes


def _numbers(selection: Selection, start: int, end: int, device: torch.device) -> torch.Tensor:
    """What a selection reads beside the elements; nothing for most."""
    match selection:
        case Bernoulli(_, stream):
            return torch.stack(block_keys(stream.key, start, end - start, device))
        case Scored(_, _, scores):
            return scores[start:end].to(device, torch.int32)
        case _:
            return torch.empty(0, dtype=torch.int32, device=device)


@functools.cache
def _compiled(piece: Callable[..., None]) -> Any:
    return torch.compile(piece, dynamic=True)  # pyright: ignore[reportUnknownMemberType]
