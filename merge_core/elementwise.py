"""What the elementwise methods share: a form, exact order statistics, a short memory."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from merge_core.combination import Elementwise
from merge_core.geometry import TensorGroup

_RECENT = 4  # per group and name: a study that fixes a parameter asks for the same figures always
_HALF = 1 << 16
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class UniqueAndShared(Elementwise):
    """base + sum_i gain_i T_i where one parent moved, the mean of those that moved elsewhere.

    Attributes:
        epsilon: A parent has moved an element where |T_i| > epsilon.
        gains: Factor of what a parent alone has moved, `(parents,)`.
    """

    epsilon: float
    gains: tuple[float, ...]

    def merge(self, base: torch.Tensor | None, values: torch.Tensor, start: int) -> torch.Tensor:  # noqa: ARG002
        """Merge one piece; see `Elementwise`."""
        assert base is not None  # the method asked for it; planned so
        moved = values.abs() > self.epsilon
        count = moved.sum(0)
        values.mul_(moved)
        merged = values.sum(0).div_(count.clamp(min=1))
        if any(gain != 1.0 for gain in self.gains):
            gains = torch.tensor(self.gains, dtype=torch.float32, device=values.device)
            # alone, a parent is the whole sum: its gain is that of the only nonzero row
            merged.mul_(torch.where(count == 1, gains @ moved.float(), 1.0))
        return merged.add_(base)


def order_statistics(
    pieces: Callable[[], Iterable[torch.Tensor]], ranks: Sequence[int]
) -> tuple[float, ...]:
    """The elements at some places of the ascending order, exactly, in two passes without a sort.

    Args:
        pieces: Gives the float32 values piece by piece, the same ones every time.
        ranks: Places, 0 for the smallest.
    """
    upper = torch.zeros(_HALF, dtype=torch.int64)
    for piece in pieces():
        upper += torch.bincount((_ordered(piece) >> 16) + _HALF // 2, minlength=_HALF).cpu()
    below = upper.cumsum(0)
    bins = [int(torch.searchsorted(below, rank, right=True)) for rank in ranks]
    lower = {number: torch.zeros(_HALF, dtype=torch.int64) for number in bins}
    for piece in pieces():
        keys = _ordered(piece)
        numbers = (keys >> 16) + _HALF // 2
        for number, counts in lower.items():
            counts += torch.bincount(keys[numbers == number] & 0xFFFF, minlength=_HALF).cpu()
    found: list[float] = []
    for rank, number in zip(ranks, bins, strict=True):
        left = rank - (int(below[number - 1]) if number else 0)
        low = int(torch.searchsorted(lower[number].cumsum(0), left, right=True))
        key = torch.tensor([((number - _HALF // 2) << 16) | low], dtype=torch.int32)
        found.append(float(_turned(key).view(torch.float32)))
    return tuple(found)


def recent(group: TensorGroup, name: str, key: Hashable, compute: Callable[[], _T]) -> _T:
    """As `TensorGroup.once`, but of a name's keys only the last few are remembered.

    For figures that depend on a searched number, which is another one in every trial.
    """
    known = group.once(("recent", name), dict[Hashable, _T])
    if key not in known:
        if len(known) >= _RECENT:
            known.pop(next(iter(known)))
        known[key] = compute()
    return known[key]


def _ordered(values: torch.Tensor) -> torch.Tensor:
    """int32 numbers in the order of the floats."""
    return _turned(values.contiguous().view(torch.int32))


def _turned(bits: torch.Tensor) -> torch.Tensor:
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
