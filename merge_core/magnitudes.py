"""The order of a task vector's magnitudes, kept so that a cut at any density costs next to nothing.

One histogram over the upper half of |delta|'s float32 pattern (8 bits of exponent, 7 of mantissa)
finds the bin of a cut. Deltas of 16-bit parents nearly all lie on that grid, so inside the bin
only the position of one among equal magnitudes is left to find, which counts by block make a scan
of one block. The few cuts that fall between two grid values look at the bin's elements.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from merge_core.backends import native as loops
from merge_core.combination import Cut

BINS = 1 << 15
_BLOCK = 1 << 15
_MOST_BLOCKS = 256
_GRID = (np.arange(BINS, dtype=np.uint32) << 16).view(np.float32)


class TaskVector(Protocol):
    """Access to one task vector."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        ...

    def pieces(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Position and float32 values of its pieces."""
        ...

    @property
    def native(self) -> tuple[int, int, int, int] | None:
        """Address and dtype code of the base (0, 0 for none) and of the parent.

        None if compiled loops can't read them.
        """
        ...


@dataclass(frozen=True, slots=True)
class Magnitudes:
    """Counts of a task vector's magnitudes.

    Attributes:
        bins: Numbers of the non-empty bins, largest first, `(filled,)`.
        counts: Elements in these bins or larger ones, `(filled,)`.
        between: Elements of each bin that don't lie on the grid, `(filled,)`.
        ties: Elements of each bin that do, up to and including each block, uint32
            `(blocks, filled)`; None without compiled loops.
        block: Elements of a block.
    """

    bins: np.ndarray
    counts: np.ndarray
    between: np.ndarray
    ties: np.ndarray | None
    block: int


def measure(vector: TaskVector) -> Magnitudes:
    """Count a task vector's magnitudes, in one pass."""
    block = _BLOCK
    while -(-vector.numel // block) > _MOST_BLOCKS:
        block *= 2
    native = vector.native
    counts, grid = (
        _count_tiled(vector) if native is None else _count_native(native, vector.numel, block)
    )
    bins = np.flatnonzero(counts)[::-1].copy()
    by_block = grid[:, bins]
    between = counts[bins] - by_block.sum(0, dtype=np.int64)
    ties = by_block.cumsum(0, dtype=np.uint32) if native else None
    return Magnitudes(bins, counts[bins].cumsum(), between, ties, block)


def find_cut(vector: TaskVector, magnitudes: Magnitudes, count: int) -> Cut | None:
    """The cut that has exactly `count` elements before it.

    Args:
        vector: The task vector.
        magnitudes: Its counts.
        count: 0 or more.

    Returns:
        None if it lies among or after the zeros, which a selection need not tell apart.
    """
    if count <= 0:
        return Cut(float("inf"), 0)
    at = int(magnitudes.counts.searchsorted(count))
    if at >= len(magnitudes.bins):
        return None
    number = magnitudes.bins.item(at)
    between = magnitudes.between.item(at)
    rank = count - (magnitudes.counts.item(at - 1) if at else 0)
    if rank <= between:
        return _between(vector, magnitudes, at, rank)
    if number == 0:
        return None
    size = _GRID.item(number)
    return Cut(size, _position(vector, magnitudes, at, size, rank - between) + 1)


def _position(vector: TaskVector, magnitudes: Magnitudes, at: int, size: float, rank: int) -> int:
    """Position of the rank-th element of a grid value."""
    native = vector.native
    if native is None or magnitudes.ties is None:
        return _position_tiled(vector, size, rank)
    seen = magnitudes.ties[:, at]
    block = int(seen.searchsorted(np.uint32(rank)))  # of another dtype it would copy the column
    left = rank - (seen.item(block - 1) if block else 0)
    start = block * magnitudes.block
    stop = min(start + magnitudes.block, vector.numel)
    return loops().find_tie(*native, start, stop, size, left)


def _position_tiled(vector: TaskVector, size: float, rank: int) -> int:
    for start, delta in vector.pieces():
        places = (delta.abs() == size).nonzero().flatten()
        if len(places) >= rank:
            return start + int(places[rank - 1])
        rank -= len(places)
    raise AssertionError("counted and not found")


def _between(vector: TaskVector, magnitudes: Magnitudes, at: int, rank: int) -> Cut:
    """The cut among the elements of a bin that don't lie on the grid."""
    number, count = magnitudes.bins.item(at), magnitudes.between.item(at)
    native = vector.native
    if native is None:
        sizes, places = _off_grid_tiled(vector, number)
    else:
        sizes, places = np.empty(count, np.float32), np.empty(count, np.int64)
        loops().off_grid(*native, vector.numel, number, sizes, places)
    order = np.argsort(-sizes, kind="stable")
    last = order[rank - 1]
    return Cut(float(sizes[last]), int(places[last]) + 1)


def _off_grid_tiled(vector: TaskVector, number: int) -> tuple[np.ndarray, np.ndarray]:
    sizes: list[torch.Tensor] = []
    places: list[torch.Tensor] = []
    for start, delta in vector.pieces():
        size = delta.abs()
        bits = size.view(torch.int32)
        inside = ((bits >> 16 == number) & (bits & 0xFFFF != 0)).nonzero().flatten()
        sizes.append(size[inside].cpu())
        places.append(inside.cpu() + start)
    return torch.cat(sizes).numpy(), torch.cat(places).numpy()


def _count_tiled(vector: TaskVector) -> tuple[np.ndarray, np.ndarray]:
    counts = torch.zeros(BINS, dtype=torch.int64)
    grid = torch.zeros(BINS, dtype=torch.int64)
    for _, delta in vector.pieces():
        bits = delta.abs().view(torch.int32)
        counts += torch.bincount(bits >> 16, minlength=BINS).cpu()
        grid += torch.bincount(bits[bits & 0xFFFF == 0] >> 16, minlength=BINS).cpu()
    return counts.numpy(), grid.numpy()[None]


def _count_native(
    native: tuple[int, int, int, int], numel: int, block: int
) -> tuple[np.ndarray, np.ndarray]:
    counts = np.zeros(BINS, np.int64)
    grid = np.zeros((max(1, -(-numel // block)), BINS), np.uint32)
    loops().histogram(*native, numel, block, counts, grid)
    return counts, grid
