"""Hidden states kept from some candidates to the next: equal layers give equal activations.

Where two candidates have the same embeddings and the same first layers, the second starts at the
first layer that differs, from what the first had there. Nothing is approximated: the layers above
get the very numbers that they would get otherwise.

Kept is what the last two candidates have in common, since the next one probably has it too. Once
candidates are seen to begin alike (orders of layers from the same parents do), states between the
layers of the last few are kept as well, as many as there is room for.
"""

import contextlib
from collections import deque
from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from evals.rewiring import find_stack

Keys = Sequence[Hashable]
"""What stands for the weights before the layers, then for each layer's, `(1 + layers,)`."""

LIMIT = 256 << 20  # bytes of hidden states, all depths together; for each kind of request
_RECENT = 8  # candidates whose beginnings are remembered
_CANDIDATES = 4  # candidates whose states share the room

_Mark = tuple[int, int]
"""A number of layers, and a hash of all weights up to there."""


@dataclass(slots=True)
class _Kept:
    """Hidden states after so many layers, for each pass that there was room for.

    Attributes:
        keys: Of the weights that they come from.
        states: By pass, `(rows, width, hidden)`.
        blanks: How many more values a layer returns, or None where it returns a bare state.
    """

    keys: tuple[Hashable, ...]
    states: dict[int, torch.Tensor] = field(default_factory=dict[int, torch.Tensor])
    blanks: int | None = None

    @property
    def bytes(self) -> int:
        return sum(state.nbytes for state in self.states.values())


class Activations:
    """A bounded store of hidden states for the same passes, run for one candidate after another.

    Args:
        model: A causal language model.
        limit: Bytes that all stores for requests of one kind may hold.
        share: What this one may hold of them.

    """

    def __init__(self, model: Any, limit: int = LIMIT, *, share: float = 1.0) -> None:
        self._model = model
        self._layers: Sequence[torch.nn.Module] = ()  # the present candidate's
        self._limit = int(share * limit)
        self._kept: dict[_Mark, _Kept] = {}  # the least recently used first
        self._held = 0  # bytes
        self._unit = 0  # bytes of all passes at one depth, as far as was seen
        self._last: tuple[Hashable, ...] | None = None
        self._begun: deque[int] = deque(maxlen=_RECENT)  # hashes of the last ones' first layers
        self._from: _Mark | None = None  # where the present candidate starts
        self._keep: dict[int, _Mark] = {}  # what is kept of it, by depth

    def clear(self) -> None:
        """Forget everything: the passes have changed."""
        self._kept.clear()
        self._begun.clear()
        self._last = self._from = None
        self._keep, self._held, self._unit = {}, 0, 0

    def begin(self, keys: Keys | None) -> None:
        """A candidate comes: see where it can start, and from where later ones may want to.

        Args:
            keys: Its weights; None where nothing is known of them.
        """
        self._unit = max([self._unit, *(self._kept[mark].bytes for mark in self._keep.values())])
        self._from, self._keep = None, {}
        self._layers = () if keys is None else find_layers(self._model)
        if keys is None or len(self._layers) < 2 or len(keys) != len(self._layers) + 1:
            return
        now = tuple(keys)
        first = hash(now[:2])
        # Whoever begins like none of the last ones finds nothing; all of its hashes cost a while.
        marks = _marks(now) if first in self._begun else []
        for mark in marks:
            if (kept := self._kept.get(mark)) and kept.states and kept.keys == now[: mark[0] + 1]:
                self._kept[mark] = self._kept.pop(mark)  # the latest now
                self._from = mark
        wanted = self._between() if marks else set[int]()
        common = 0 if self._last is None else _common(self._last, now)
        if common > self.start:
            wanted.add(common)
        self._last = now
        self._begun.append(first)
        self._keep = {mark[0]: mark for mark in marks if mark[0] in wanted}
        for depth, mark in self._keep.items():
            self._drop(mark)
            self._kept[mark] = _Kept(now[: depth + 1])

    def _between(self) -> set[int]:
        """Depths above the start, evenly: as many as a candidate's part of the room allows."""
        free = len(self._layers) - 1 - self.start
        room = self._limit // (_CANDIDATES * self._unit) if self._unit else 0
        count = min(free, room)
        return {self.start + (free + 1) * (at + 1) // (count + 1) for at in range(count)}

    def _drop(self, mark: _Mark) -> None:
        if (gone := self._kept.pop(mark, None)) is not None:
            self._held -= gone.bytes

    @property
    def start(self) -> int:
        """Layers that the present candidate leaves out."""
        return 0 if self._from is None else self._from[0]

    @property
    def bytes(self) -> int:
        """What it holds."""
        return self._held

    def complete(self, passes: range) -> bool:
        """Whether all of these passes can start above the bottom."""
        known = self._kept[self._from].states if self._from is not None else {}
        return bool(known) and all(number in known for number in passes)

    @contextlib.contextmanager
    def layers(self, number: int, skip: bool = True) -> Generator[None]:
        """Leave out and record what this candidate's plan says while one pass runs.

        Args:
            number: Of the pass.
            skip: Whether it may leave out layers.
        """
        with contextlib.ExitStack() as stack:
            kept = self._kept[self._from] if skip and self._from is not None else None
            if kept is not None and (state := kept.states.get(number)) is not None:
                blanks = kept.blanks
                output = state if blanks is None else (state, *(None,) * blanks)
                stack.enter_context(_standing_in(self._layers[: self.start], output))
            for depth, mark in self._keep.items():
                stack.enter_context(self._recording(number, depth, self._kept[mark]))
            yield

    @contextlib.contextmanager
    def whole(self) -> Generator[None]:
        """Leave out and record nothing meanwhile."""
        plan = self._from, self._keep
        self._from, self._keep = None, {}
        try:
            yield
        finally:
            self._from, self._keep = plan

    @contextlib.contextmanager
    def _recording(self, number: int, depth: int, kept: _Kept) -> Generator[None]:
        def record(_layer: Any, _inputs: Any, output: Any) -> None:
            more: tuple[Any, ...] | None = None
            state: torch.Tensor = output
            if isinstance(output, tuple):  # as some families do, with what they don't always have
                state, *others = cast("tuple[Any, ...]", output)
                more = tuple(others)
            kept.blanks = None if more is None else len(more)
            if number not in kept.states and self._room(state.nbytes):
                kept.states[number] = state
                self._held += state.nbytes

        hook = self._layers[depth - 1].register_forward_hook(record)
        try:
            yield
        finally:
            hook.remove()

    def _room(self, wanted: int) -> bool:
        """Make room by forgetting what was used longest ago; the present candidate's stays."""
        mine = {self._from, *self._keep.values()}
        for mark in [mark for mark in self._kept if mark not in mine]:
            if self._held + wanted <= self._limit:
                break
            self._drop(mark)
        return self._held + wanted <= self._limit


def find_layers(model: Any) -> Sequence[torch.nn.Module]:
    """A model's decoder layers in order; empty if it isn't plain which they are."""
    stack = find_stack(model)
    return [] if stack is None or len({type(layer) for layer in stack}) > 1 else list(stack)


@torch.inference_mode()
def used_after(model: Any) -> list[torch.Tensor]:
    """The parameters that only work on what the last layer gives: the last norm, an untied head.

    No table of names: one pass over one token shows what runs when. Empty if the layers aren't
    known.
    """
    layers = find_layers(model)
    if not layers:
        return []
    own = [m for m in model.modules() if next(m.parameters(recurse=False), None) is not None]
    early: list[torch.nn.Module] = []
    late: list[torch.nn.Module] = []
    running = early

    def note(module: torch.nn.Module, _inputs: Any) -> None:
        running.append(module)

    def pass_over(*_: Any) -> None:
        nonlocal running
        running = late

    with contextlib.ExitStack() as stack:
        for module in own:
            stack.callback(module.register_forward_pre_hook(note).remove)
        stack.callback(layers[-1].register_forward_hook(pass_over).remove)
        model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device), use_cache=False)
    before = {id(p) for module in own if module not in late for p in module.parameters(False)}
    before |= {id(p) for module in early for p in module.parameters(False)}
    return [p for module in late for p in module.parameters(False) if id(p) not in before]


def _marks(keys: tuple[Hashable, ...]) -> list[_Mark]:
    """Of each depth but none and all of the layers, `(layers - 1,)`."""
    marks: list[_Mark] = []
    seen = hash(keys[0])
    for depth in range(1, len(keys) - 1):
        seen = hash((seen, keys[depth]))
        marks.append((depth, seen))
    return marks


def _common(one: Keys, other: Keys) -> int:
    """Leading layers that are equal, all but the last at most; 0 if what is outside differs."""
    same = 0
    for a, b in zip(one, other, strict=False):  # their depths may differ
        if a != b:
            break
        same += 1
    return max(0, min(same, len(one) - 1, len(other) - 1) - 1)


@contextlib.contextmanager
def _standing_in(layers: Sequence[Any], output: Any) -> Generator[None]:
    """Have layers give a known output instead of computing."""

    def forward(*_: Any, **__: Any) -> Any:
        return output

    for layer in layers:
        layer.forward = forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
