"""What is the same in every trial: norms, angles and the order of magnitudes of the parents.

Computed once per tensor when first asked for and kept for the life of the study. Task vectors are
never stored: they are formed piece by piece from the parents, which stay in their files.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from merge_core.combination import Bernoulli, Magnitude, Nothing, Selection
from merge_core.masks import select, stream_key
from merge_core.parents import Parents

# Elements per piece. On a CPU a piece and its temporaries stay in the cache (fresh memory costs
# five times the merge itself); on an accelerator one launch should cover much.
_PIECE = {"cpu": 1 << 18}
_PIECE_ELSEWHERE = 1 << 25
_KEPT_DECISIONS = 4  # per task vector: a study that fixes a density asks for the same one always


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor of a parent."""

    parent: str
    name: str


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """One output tensor's inputs, as a merge method sees them.

    Attributes:
        name: Name of the output tensor.
        inputs: One tensor for each parent that the method takes.
        base: Where task vectors start, or None for methods without them.
        dtype: Inputs are rounded to it first; None leaves them.
        seed: Seed of the random masks.
        geometry: Where the figures are kept.
    """

    name: str
    inputs: tuple[TensorRef, ...]
    base: TensorRef | None
    dtype: torch.dtype | None
    seed: int
    geometry: "Geometry"

    @property
    def parents(self) -> int:
        """Number of parents."""
        return len(self.inputs)

    def gram(self) -> tuple[tuple[float, ...], ...]:
        """Inner products of the task vectors, or of the parents where there is no base.

        Returns:
            `(parents, parents)`, accumulated in float64.
        """
        return self.geometry.gram(self)

    def largest(self, parent: int, density: float) -> Selection:
        """Keep the given share of a task vector by magnitude: k = max(1, int(density * numel))."""
        if density >= 1:
            return None
        return Nothing() if density <= 0 else self.geometry.largest(self, parent, density)

    def random(self, parent: int, density: float) -> Selection:
        """Keep each element of a task vector with probability `density`."""
        if density >= 1:
            return None
        if density <= 0:
            return Nothing()
        return Bernoulli(density, stream_key(self.seed, self.name, parent))

    def rescale(self, parent: int, selection: Selection) -> float:
        """Sum |delta| / sum |kept delta|, or 1 where either is below 1e-7 (as mergekit does)."""
        if selection is None:
            return 1.0
        whole = self.geometry.l1(self, parent, None)
        rest = self.geometry.l1(self, parent, selection)
        return 1.0 if whole < 1e-7 or rest < 1e-7 else whole / rest

    def pieces(self, parent: int) -> Iterator[tuple[int, torch.Tensor]]:
        """The parent's task vector (or itself, without a base) in pieces of float32."""
        source = self.geometry.flat(self.inputs[parent])
        base = self.geometry.flat(self.base) if self.base else None
        for start, end in spans(source):
            values = widen(source[start:end], self.dtype)
            if base is not None:
                values = values - widen(base[start:end], self.dtype)
            yield start, values


@dataclass(slots=True)
class Geometry:
    """The figures of a study's parents, filled as they are asked for."""

    parents: Parents
    _grams: dict[object, tuple[tuple[float, ...], ...]] = field(
        default_factory=dict[object, tuple[tuple[float, ...], ...]]
    )
    _histograms: dict[object, tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict[object, tuple[torch.Tensor, torch.Tensor]]
    )
    _decisions: dict[object, dict[float, Selection]] = field(
        default_factory=dict[object, dict[float, Selection]]
    )
    _l1: dict[object, dict[Selection, float]] = field(
        default_factory=dict[object, dict[Selection, float]]
    )

    def flat(self, ref: TensorRef) -> torch.Tensor:
        """A parent's tensor as one dimension, in its stored dtype."""
        return self.parents.tensor(ref.parent, ref.name).reshape(-1)

    def gram(self, group: TensorGroup) -> tuple[tuple[float, ...], ...]:
        """See `TensorGroup.gram`."""
        key = (group.inputs, group.base, group.dtype)
        if key not in self._grams:
            total = torch.zeros(group.parents, group.parents, dtype=torch.float64)
            for pieces in zip(*(group.pieces(i) for i in range(group.parents)), strict=True):
                # float64 products: float32 dots of 100M elements lose the angle of near parents
                rows = torch.stack([values for _, values in pieces]).double()
                total += (rows @ rows.T).cpu()
            self._grams[key] = tuple(tuple(float(v) for v in row) for row in total)
        return self._grams[key]

    def largest(self, group: TensorGroup, parent: int, density: float) -> Selection:
        """See `TensorGroup.largest`."""
        decisions = self._decisions.setdefault(_delta_key(group, parent), {})
        if density not in decisions:
            _bound(decisions)
            decisions[density] = self._threshold(group, parent, density)
        return decisions[density]

    def l1(self, group: TensorGroup, parent: int, selection: Selection) -> float:
        """Sum of the magnitudes of the selected elements of a task vector, in float64."""
        sums = self._l1.setdefault(_delta_key(group, parent), {})
        if selection not in sums:
            _bound(sums)
            total = 0.0
            for start, delta in group.pieces(parent):
                total += float(select(selection, delta, start).abs().sum(dtype=torch.float64))
            sums[selection] = total
        return sums[selection]

    def _threshold(self, group: TensorGroup, parent: int, density: float) -> Selection:
        """The k-th largest magnitude and the index after the last kept element of that size."""
        bins, counts = self._histogram(group, parent)
        if not counts.numel():
            return None  # an empty tensor
        keep = max(1, int(density * int(counts[-1])))
        at = int(torch.searchsorted(counts, keep))
        if int(bins[at]) == 0:
            return None  # all that isn't zero is kept; which of the zeros are makes no difference
        sizes, places = _in_bin(group, parent, int(bins[at]))
        rank = keep - (int(counts[at - 1]) if at else 0)
        threshold = sizes.topk(rank, sorted=False).values.min()
        ties = places[sizes == threshold]
        kept_ties = rank - int((sizes > threshold).sum())
        return Magnitude(float(threshold), int(ties[kept_ties - 1]) + 1)

    def _histogram(self, group: TensorGroup, parent: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Bins of magnitude, largest first, and how many elements lie in them or above.

        A bin is the upper half of the float32 pattern: 8 bits of exponent, 7 of mantissa.
        """
        key = _delta_key(group, parent)
        if key not in self._histograms:
            counts = torch.zeros(1 << 15, dtype=torch.int64)
            for _, delta in group.pieces(parent):
                counts += torch.bincount(_bins(delta), minlength=1 << 15).cpu()
            filled = counts.nonzero().flatten().flip(0)
            self._histograms[key] = (filled, counts[filled].cumsum(0))
        return self._histograms[key]


def spans(tensor: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Start and end of the pieces in which a flat tensor is worked on."""
    size = _PIECE.get(tensor.device.type, _PIECE_ELSEWHERE)
    for start in range(0, tensor.numel(), size):
        yield start, min(start + size, tensor.numel())


def widen(values: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """Round to `dtype` if one is given, then to float32, in which all arithmetic is done."""
    return (values if dtype is None else values.to(dtype)).to(torch.float32)


def _bins(delta: torch.Tensor) -> torch.Tensor:
    return delta.abs().view(torch.int32) >> 16


def _in_bin(group: TensorGroup, parent: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Magnitudes in one bin of the histogram and their positions, in order of position."""
    low, high = (
        torch.tensor([number, number + 1], dtype=torch.int32).mul(1 << 16).view(torch.float32)
    )
    sizes: list[torch.Tensor] = []
    places: list[torch.Tensor] = []
    for start, delta in group.pieces(parent):
        size = delta.abs()  # a piece may be the parent's own memory
        inside = ((size >= low) & ~(size >= high)).nonzero().flatten()
        sizes.append(size[inside].cpu())
        places.append(inside.cpu() + start)
    return torch.cat(sizes), torch.cat(places)


def _delta_key(group: TensorGroup, parent: int) -> object:
    return (group.inputs[parent], group.base, group.dtype)


def _bound(decisions: dict[float, Selection] | dict[Selection, float]) -> None:
    if len(decisions) > _KEPT_DECISIONS:
        decisions.pop(next(iter(decisions)))  # pyright: ignore[reportArgumentType, reportCallIssue]
