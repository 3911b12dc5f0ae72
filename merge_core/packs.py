"""Packed weights, such as the experts of a layer: lent whole where all of it is one parent's.

A parent stores an expert's matrices apart and the live model holds them in one tensor, so a layer
that is passed through can't simply be the parent's memory. It is packed once, laid down where
memory pressure can drop it, and from then on handed to every place that wants it.
"""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

import torch

from merge_core.errors import MergeError
from merge_core.geometry import Geometry, Packed
from merge_core.plan import MergeStep


@dataclass(frozen=True, slots=True)
class Pack:
    """A live tensor that holds several of a checkpoint's: all experts' matrices of a layer.

    Attributes:
        live: The whole.
        names: The slots that are views of it, in an order that is the same in every layer.
    """

    live: torch.Tensor
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Own:
    """A lent pack's own memory, and what is in it."""

    packed: Packed
    done: Mapping[str, MergeStep]


@dataclass(slots=True)
class Packs:
    """A live model's packs.

    Attributes:
        packs: All of them.
        slots: The live tensors by output name.
        done: The step that made each slot's present content.
        owns: The own memory of packs that are lent something at present, by position.
    """

    packs: Sequence[Pack]
    slots: Mapping[str, torch.Tensor]
    done: MutableMapping[str, MergeStep]
    owns: dict[int, _Own] = field(default_factory=dict[int, _Own])

    def plan(self, steps: Iterable[MergeStep], geometry: Geometry) -> "Loan":
        """Work out which packs are lent; those that were lent something else own theirs again."""
        asked = {step.out: step for step in steps} if self.packs else {}
        loan = Loan(self)
        for at, pack in enumerate(self.packs):
            wanted = [asked[name] for name in pack.names if name in asked]
            if not wanted or all(self.done.get(step.out) == step for step in wanted):
                continue
            whole = len(wanted) == len(pack.names) and all(step.copies for step in wanted)
            if not (whole and loan.ask(at, pack, wanted, geometry)):
                self._take_back(at)
        return loan

    def lend(self, at: int, packed: Packed) -> None:
        """Have a pack be what is packed already; no byte moves."""
        pack = self.packs[at]
        slots = [self.slots[name] for name in pack.names]
        if at not in self.owns:
            done = {name: self.done[name] for name in pack.names if name in self.done}
            self.owns[at] = _Own(Packed(pack.live.data, tuple(slot.data for slot in slots)), done)
        _point(pack.live, slots, packed)

    def _take_back(self, at: int) -> None:
        if (own := self.owns.pop(at, None)) is None:
            return
        pack = self.packs[at]
        _point(pack.live, [self.slots[name] for name in pack.names], own.packed)
        for name in pack.names:
            self.done.pop(name, None)
        self.done.update(own.done)


@dataclass(slots=True)
class Loan:
    """What one plan lends to packs.

    Attributes:
        packs: Of the live model.
        lent: Position of each pack that is lent something, what, and by which steps.
        jobs: What has to be packed first, and where to.
        new: Keys in the geometry of what is packed for the first time.
    """

    packs: Packs
    lent: list[tuple[int, Packed, Sequence[MergeStep]]] = field(
        default_factory=list[tuple[int, Packed, Sequence[MergeStep]]]
    )
    jobs: list[tuple[MergeStep, torch.Tensor]] = field(
        default_factory=list[tuple[MergeStep, torch.Tensor]]
    )
    new: list[object] = field(default_factory=list[object])

    @property
    def names(self) -> set[str]:
        """The slots that are lent."""
        return {step.out for _, _, steps in self.lent for step in steps}

    def ask(self, at: int, pack: Pack, steps: Sequence[MergeStep], geometry: Geometry) -> bool:
        """Lend a pack what a parent holds; False where there is no room to keep it packed."""
        live = pack.live
        if live.device.type != "cpu" or not live.is_contiguous():
            return False  # an accelerator copies a layer in milliseconds; its memory is scarcer
        key = (tuple(live.shape), live.dtype, *((s.inputs, s.rounding, s.dtype) for s in steps))
        if key not in geometry.packed:
            try:
                tensor = geometry.room(live.shape, live.dtype)
            except MergeError:
                return False
            self.new.append(key)
            parts = tuple(_parts(pack, self.packs.slots, tensor))
            geometry.packed[key] = Packed(tensor, parts)
            self.jobs.extend(zip(steps, parts, strict=True))
        self.lent.append((at, geometry.packed[key], steps))
        return True

    def settle(self) -> None:
        """Everything is packed: hand it over."""
        for at, packed, steps in self.lent:
            self.packs.lend(at, packed)
            self.packs.done.update((step.out, step) for step in steps)

    def drop(self, geometry: Geometry) -> None:
        """Nothing was packed after all."""
        for key in self.new:
            geometry.packed.pop(key, None)


def _parts(
    pack: Pack, slots: Mapping[str, torch.Tensor], tensor: torch.Tensor
) -> Iterator[torch.Tensor]:
    """The slots' views of another tensor of a pack's form."""
    for name in pack.names:
        slot = slots[name]
        offset = slot.storage_offset() - pack.live.storage_offset()
        yield tensor.as_strided(slot.shape, slot.stride(), tensor.storage_offset() + offset)


def _point(live: torch.Tensor, slots: Iterable[torch.Tensor], packed: Packed) -> None:
    live.data = packed.tensor
    for slot, part in zip(slots, packed.parts, strict=True):
        slot.data = part
