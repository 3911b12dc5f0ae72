"""Hidden states kept from one candidate to the next: equal layers give equal activations.

Where two candidates have the same embeddings and the same first layers, the second starts at the
first layer that differs, from what the first had there. Nothing is approximated: the layers above
get the very numbers that they would get otherwise.
"""

import contextlib
from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from evals.rewiring import find_stack

Keys = Sequence[Hashable]
"""What stands for the weights before the layers, then for each layer's, `(1 + layers,)`."""

LIMIT = 256 << 20  # bytes of hidden states, all depths together; for each kind of request


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
        self._kept: dict[int, _Kept] = {}  # by depth: where it started, and where the next may
        self._last: tuple[Hashable, ...] | None = None
        self._start = self._keep = 0

    def clear(self) -> None:
        """Forget everything: the passes have changed."""
        self._kept.clear()
        self._last = None

    @property
    def start(self) -> int:
        """Layers that the present candidate leaves out."""
        return self._start

    @property
    def bytes(self) -> int:
        """What it holds."""
        return sum(kept.bytes for kept in self._kept.values())

    def begin(self, keys: Keys | None) -> None:
        """A candidate comes: see where it can start, and from where the next one may want to.

        Args:
            keys: Its weights; None where nothing is known of them.
        """
        self._start = self._keep = 0
        self._layers = () if keys is None else find_layers(self._model)
        if keys is None or len(self._layers) < 2 or len(keys) != len(self._layers) + 1:
            return
        now = tuple(keys)
        kept = self._kept.items()
        self._kept = {d: k for d, k in kept if k.states and k.keys == now[: d + 1]}
        self._start = max((d for d in self._kept if d < len(self._layers)), default=0)
        # What the last two have in common is what the next one probably has too.
        common = 0 if self._last is None else _common(self._last, now)
        self._last = now
        if common > self._start:
            self._kept = {d: k for d, k in self._kept.items() if d == self._start}
            self._keep = common
            self._kept[common] = _Kept(now[: common + 1])

    def complete(self, passes: range) -> bool:
        """Whether all of these passes can start above the bottom."""
        return self._start > 0 and all(i in self._kept[self._start].states for i in passes)

    @contextlib.contextmanager
    def layers(self, number: int, skip: bool = True) -> Generator[None]:
        """Leave out and record what this candidate's plan says while one pass runs.

        Args:
            number: Of the pass.
            skip: Whether it may leave out layers.
        """
        with contextlib.ExitStack() as stack:
            kept = self._kept.get(self._start) if skip else None
            if kept is not None and (state := kept.states.get(number)) is not None:
                blanks = kept.blanks
                output = state if blanks is None else (state, *(None,) * blanks)
                stack.enter_context(_standing_in(self._layers[: self._start], output))
            if self._keep:
                stack.enter_context(self._recording(number))
            yield

    @contextlib.contextmanager
    def whole(self) -> Generator[None]:
        """Leave out and record nothing meanwhile."""
        plan = self._start, self._keep
        self._start = self._keep = 0
        try:
            yield
        finally:
            self._start, self._keep = plan

    @contextlib.contextmanager
    def _recording(self, number: int) -> Generator[None]:
        kept = self._kept[self._keep]

        def record(_layer: Any, _inputs: Any, output: Any) -> None:
            more: tuple[Any, ...] | None = None
            state: torch.Tensor = output
            if isinstance(output, tuple):  # as some families do, with what they don't always have
                state, *others = cast("tuple[Any, ...]", output)
                more = tuple(others)
            kept.blanks = None if more is None else len(more)
            if self.bytes + state.nbytes <= self._limit:
                kept.states[number] = state

        hook = self._layers[self._keep - 1].register_forward_hook(record)
        try:
            yield
        finally:
            hook.remove()


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
