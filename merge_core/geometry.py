"""What is the same in every trial: norms, angles and the order of magnitudes of the parents.

Computed once per tensor when first asked for and kept for the life of the study. Task vectors are
never stored: they are formed piece by piece from the parents, which stay in their files.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
import torch

from merge_core.backends import address, native, native_loops
from merge_core.combination import (
    Bernoulli,
    Cut,
    Nothing,
    Scored,
    Selection,
    Stream,
    TensorRef,
    Window,
)
from merge_core.magnitudes import find_cut, measure
from merge_core.mapped import lay_down, make_room
from merge_core.masks import BLOCK, LEVELS, density_limit, random_bits, random_stream, select
from merge_core.parents import Parents

# Elements per piece. On a CPU a piece and its temporaries stay in the cache (fresh memory costs
# five times the merge itself); on an accelerator one launch should cover much.
_PIECE = {"cpu": 1 << 18}
_PIECE_ELSEWHERE = 1 << 25
_KEPT_DECISIONS = 4  # per task vector: a study that fixes a density asks for the same one always
_STEP = BLOCK // LEVELS
_DERIVED = ""  # no parent's name

_T = TypeVar("_T")


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
        compat: Whether mergekit's known faults are wanted too.
    """

    name: str
    inputs: tuple[TensorRef, ...]
    base: TensorRef | None
    dtype: torch.dtype | None
    seed: int
    geometry: "Geometry"
    compat: bool = False
    figures: dict[Hashable, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Find the figures of these inputs."""
        key = (self.inputs, self.base, self.dtype)
        object.__setattr__(self, "figures", self.geometry.figures.setdefault(key, {}))

    @property
    def parents(self) -> int:
        """Number of parents."""
        return len(self.inputs)

    @property
    def shape(self) -> torch.Size:
        """Shape of every tensor of the group."""
        return self.geometry.tensor(self.inputs[0]).shape

    def gram(self) -> tuple[tuple[float, ...], ...]:
        """Inner products of the task vectors, or of the parents where there is no base.

        Returns:
            `(parents, parents)`, accumulated in float64.
        """
        return self.once("gram", lambda: _gram(self))

    def largest(self, parent: int, density: float) -> Selection:
        """Keep the given share of a task vector by magnitude: k = max(1, int(density * numel))."""
        if density >= 1:
            return None
        numel = self.shape.numel()
        return Nothing() if density <= 0 else self.band(parent, 0, max(1, int(density * numel)))

    def band(self, parent: int, skipped: int, kept: int) -> Selection:
        """Keep `kept` elements of a task vector after the `skipped` largest by magnitude.

        Among equal magnitudes the first positions count as the larger.
        """
        if kept <= 0:
            return Nothing()
        vector = _vector(self, parent)
        first = self._cut(vector, skipped) if skipped > 0 else None
        if skipped > 0 and first is None:
            return Nothing()  # only zeros are left
        last = self._cut(vector, skipped + kept)
        return None if first is None and last is None else Window(first, last)

    def random(self, parent: int, density: float) -> Selection:
        """Keep each element of a task vector with probability `density`, in steps of 1/4096."""
        if density <= 0:
            return Nothing()
        limit = density_limit(density)
        return None if limit >= BLOCK else Bernoulli(limit, self.stream(parent))

    def ranked(self, parent: int, density: float, epsilon: float) -> Selection:
        """Keep an element of rank r of n in its row with probability density + epsilon * s.

        s runs evenly from -1 for the row's smallest |delta| to 1 for its largest. The density
        counts in steps of 1/4096.
        """
        known = self.once(("scores", parent, self.name, self.seed), dict[float, torch.Tensor])
        scores = _kept_few(known, epsilon, lambda: _scores(self, parent, epsilon))
        return Scored(density_limit(density), f"{self.name}/{parent}/{epsilon}", scores)

    def rescale(self, parent: int, selection: Selection) -> float:
        """Sum |delta| / sum |kept delta|, or 1 where either is below 1e-7 (as mergekit does)."""
        if selection is None:
            return 1.0
        whole = self.l1(parent, None)
        rest = self.l1(parent, selection)
        return 1.0 if whole < 1e-7 or rest < 1e-7 else whole / rest

    def l1(self, parent: int, selection: Selection) -> float:
        """Sum of the magnitudes of the selected elements of a task vector, in float64."""
        match selection:
            case Bernoulli(limit, stream):
                key = ("levels", parent, stream)
                levels = self.once(key, lambda: _levels(self, parent, selection))
                return float(levels[limit // _STEP])
            case Scored(limit, name):
                known = self.once(("levels", parent), dict[str, np.ndarray])
                levels = _kept_few(known, name, lambda: _levels(self, parent, selection))
                return float(levels[limit // _STEP])
            case _:
                sums = self.once(("l1", parent), dict[Selection, float])
                return _kept_few(sums, selection, lambda: _l1(self, parent, selection))

    def once(self, key: Hashable, compute: Callable[[], _T]) -> _T:
        """A figure of this group's inputs, computed when first asked for, then kept.

        Args:
            key: Name of the figure and whatever it depends on besides the inputs, their base and
                their rounding.
            compute: Makes it.
        """
        if key not in self.figures:
            self.figures[key] = compute()
        return cast("_T", self.figures[key])

    def derived(self, key: Hashable, build: Callable[[], torch.Tensor]) -> TensorRef:
        """A tensor made of the inputs once, laid down in a mapped file: a source for `Linear`.

        Args:
            key: As in `once`.
            build: Makes it, in any floating dtype and the group's shape.
        """

        def make() -> TensorRef:
            ref = TensorRef(_DERIVED, f"{self.name}/{len(self.geometry.derived)}")
            self.geometry.derived[ref] = self.geometry.keep(build())
            return ref

        return self.once(("derived", key), make)

    def pieces(self, parent: int) -> Iterator[tuple[int, torch.Tensor]]:
        """The parent's task vector (or itself, without a base) in pieces of float32."""
        for start, end in spans(self.geometry.flat(self.inputs[parent])):
            yield start, self.piece(parent, start, end)

    def piece(self, parent: int, start: int, end: int) -> torch.Tensor:
        """The same from one position to another, `(end - start,)`; not to be written to."""
        values = widen(self.geometry.flat(self.inputs[parent])[start:end], self.dtype)
        if self.base is None:
            return values
        return values - widen(self.geometry.flat(self.base)[start:end], self.dtype)

    def deltas(self) -> Iterator[tuple[int, torch.Tensor]]:
        """All parents' task vectors together, `(parents, count)` float32, piece by piece."""
        for pieces in zip(*(self.pieces(i) for i in range(self.parents)), strict=True):
            yield pieces[0][0], torch.stack([values for _, values in pieces])

    def whole(self, parent: int) -> torch.Tensor:
        """The parent's whole task vector (or itself, without a base) in float32 and its shape."""
        values = widen(self.geometry.tensor(self.inputs[parent]), self.dtype)
        if self.base is None:
            return values
        return values - widen(self.geometry.tensor(self.base), self.dtype)

    def _cut(self, vector: "_Vector", count: int) -> Cut | None:
        magnitudes = self.once(("magnitudes", vector.parent), lambda: measure(vector))
        cuts = self.once(("cuts", vector.parent), dict[int, Cut | None])
        return _kept_few(cuts, count, lambda: find_cut(vector, magnitudes, count))

    def stream(self, parent: int) -> Stream:
        """The parent's stream of random numbers for this tensor."""
        return random_stream(self.seed, self.name, parent)


@dataclass(frozen=True, slots=True)
class Packed:
    """Several of a parent's tensors in one.

    Attributes:
        tensor: The whole.
        parts: Views of it, one for each.
    """

    tensor: torch.Tensor
    parts: tuple[torch.Tensor, ...]


@dataclass(slots=True)
class Geometry:
    """The figures of a study's parents, filled as they are asked for.

    Attributes:
        parents: Where the tensors are.
        figures: By inputs, base and rounding, then by name.
        derived: Tensors that no parent holds.
        packed: Layers' packed weights as a parent has them, by their content (see `packs`).
        places: Addresses of the parents' and derived tensors, which stay as long as this does.
    """

    parents: Parents
    figures: dict[object, dict[Hashable, Any]] = field(
        default_factory=dict[object, dict[Hashable, Any]]
    )
    derived: dict[TensorRef, torch.Tensor] = field(default_factory=dict[TensorRef, torch.Tensor])
    packed: dict[object, Packed] = field(default_factory=dict[object, Packed])
    places: dict[TensorRef, tuple[int, int] | None] = field(
        default_factory=dict[TensorRef, tuple[int, int] | None]
    )

    def place(self, ref: TensorRef) -> tuple[int, int] | None:
        """Address and dtype code of a tensor that compiled loops can read, else None."""
        if ref not in self.places:
            self.places[ref] = address(self.tensor(ref))
        return self.places[ref]

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        """A parent's or derived tensor, in its stored dtype."""
        if self.made(ref):
            return self.derived[ref]
        return self.parents.tensor(ref.parent, ref.name)

    def made(self, ref: TensorRef) -> bool:
        """Whether it is a derived tensor."""
        return ref.parent == _DERIVED

    def flat(self, ref: TensorRef) -> torch.Tensor:
        """The same as one dimension."""
        return self.tensor(ref).reshape(-1)

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """A derived tensor on the merge's device; on the CPU where memory pressure can drop it."""
        if self.parents.device.type == "cpu":
            return lay_down(tensor, self.parents.scratch)
        return tensor.to(self.parents.device)

    def room(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """An empty derived tensor on the CPU, as `keep` would have it.

        Raises:
            MergeError: If there is none.
        """
        return make_room(shape, dtype, self.parents.scratch)


@dataclass(frozen=True, slots=True)
class _Vector:
    """One task vector of a group, as `magnitudes` reads it."""

    group: TensorGroup
    parent: int
    numel: int
    native: tuple[int, int, int, int] | None

    def pieces(self) -> Iterator[tuple[int, torch.Tensor]]:
        return self.group.pieces(self.parent)


def _vector(group: TensorGroup, parent: int) -> _Vector:
    native = None
    if group.dtype is None and native_loops():
        source = group.geometry.place(group.inputs[parent])
        base = group.geometry.place(group.base) if group.base else (0, 0)
        native = (base[0], base[1], source[0], source[1]) if base and source else None
    return _Vector(group, parent, group.shape.numel(), native)


def spans(tensor: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Start and end of the pieces in which a flat tensor is worked on."""
    size = _PIECE.get(tensor.device.type, _PIECE_ELSEWHERE)
    for start in range(0, tensor.numel(), size):
        yield start, min(start + size, tensor.numel())


def widen(values: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """Round to `dtype` if one is given, then to float32, in which all arithmetic is done."""
    return (values if dtype is None else values.to(dtype)).to(torch.float32)


def _gram(group: TensorGroup) -> tuple[tuple[float, ...], ...]:
    total = torch.zeros(group.parents, group.parents, dtype=torch.float64)
    for _, rows in group.deltas():
        # float64 products: float32 dots of 100M elements lose the angle of near parents
        wide = rows.double()
        total += (wide @ wide.T).cpu()
    return tuple(tuple(float(v) for v in row) for row in total)


def _l1(group: TensorGroup, parent: int, selection: Selection) -> float:
    total = 0.0
    for start, delta in group.pieces(parent):
        total += float(select(selection, delta, start).abs().sum(dtype=torch.float64))
    return total


def _levels(group: TensorGroup, parent: int, selection: Bernoulli | Scored) -> np.ndarray:
    """Kept L1 norm at every level of a random mask's limit, `(4097,)` float64."""
    sums = torch.zeros(LEVELS, dtype=torch.float64)
    for start, delta in group.pieces(parent):
        if isinstance(selection, Scored):
            numbers = selection.scores[start : start + delta.numel()].to(torch.int32)
        else:
            numbers = random_bits(selection.stream, start, delta.numel(), delta.device)
        sums += torch.bincount(numbers // _STEP, delta.abs().double(), minlength=LEVELS).cpu()
    return np.concatenate(([0.0], sums.cumsum(0).numpy()))


def _scores(group: TensorGroup, parent: int, epsilon: float) -> torch.Tensor:
    """uint16 scores, `(numel,)`, so that `score < 65536 * density` keeps as `ranked` promises.

    u < density - epsilon + 2 epsilon q, with q the rank from 0 to 1, is the same as
    u + epsilon - 2 epsilon q < density.
    """
    count = group.shape.numel()
    columns = max(1, group.shape[-1]) if len(group.shape) else 1
    stream = group.stream(parent)
    scores = group.geometry.keep(torch.empty(count, dtype=torch.uint16))
    step = columns * max(1, _PIECE["cpu"] // columns)  # whole rows
    for start in range(0, count, step):
        part = group.piece(parent, start, min(start + step, count)).abs().view(-1, columns)
        ranks = _row_ranks(part)
        share = ranks.double() / (columns - 1) if columns > 1 else ranks.double() + 0.5
        numbers = random_bits(stream, start, part.numel(), part.device).view(part.shape)
        score = (numbers + BLOCK * epsilon * (1 - 2 * share)).floor_().clamp_(0, BLOCK - 1)
        scores[start : start + part.numel()] = score.to(torch.uint16).reshape(-1)
    return scores


def _row_ranks(sizes: torch.Tensor) -> torch.Tensor:
    """Places in the ascending order of each row, `(rows, columns)`; equal ones keep theirs."""
    if native_loops() and sizes.device.type == "cpu":
        ranks = torch.empty(sizes.shape, dtype=torch.int32)
        native().row_ranks(sizes.contiguous().numpy(), ranks.numpy())
        return ranks
    order = sizes.argsort(dim=1, stable=True)
    places = torch.arange(sizes.shape[1], device=sizes.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def _kept_few(known: dict[Any, _T], key: Hashable, compute: Callable[[], _T]) -> _T:
    """A value that only a few recent keys are remembered for."""
    if key not in known:
        if len(known) > _KEPT_DECISIONS:
            known.pop(next(iter(known)))
        known[key] = compute()
    return known[key]
