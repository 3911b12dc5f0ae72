"""What somebody else's code did to the live model, and the way back."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch

from search.checksums import checksum

_BUFFERS, _PASSING = "_buffers", "_non_persistent_buffers_set"
_PARTS = ("_parameters", "_modules", "_forward_hooks", "_forward_pre_hooks")


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A live tensor as it was: itself, its memory, whether it asks for gradients, its content."""

    itself: torch.Tensor
    data: torch.Tensor
    gradients: bool
    sum: tuple[int, ...]

    def same(self) -> bool:
        """Whether it lies where it lay, and holds what it held."""
        return _place(self.itself) == _place(self.data) and checksum(self.itself) == self.sum


@dataclass(frozen=True, slots=True)
class _Module:
    """A module as it was; buffers that no checkpoint has may change by being used."""

    itself: torch.nn.Module
    training: bool
    parts: tuple[dict[str, Any], ...]
    buffers: dict[str, torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class Untouched:
    """A live model as it was at one moment; of its weights there is no copy, only checksums.

    Attributes:
        model: The model.
        tensors: Its parameters and the buffers that a checkpoint has, by name.
        modules: All its modules, by name.
        gradients: Whether torch kept track of gradients.
    """

    model: torch.nn.Module
    tensors: Mapping[str, _Tensor]
    modules: Mapping[str, _Module]
    gradients: bool

    def changes(self) -> str | None:
        """What is no longer as it was, in words; None if everything is."""
        found = (
            (self._tensors(), "tensor '{}'"),
            (self._asking(), "requires_grad of '{}'"),
            (self._training(), "the training mode of '{}'"),
            (self._built(), "parts or hooks of module '{}'"),
            (iter(["grad"] * (self.gradients != torch.is_grad_enabled())), "torch's {} mode"),
        )
        told = [_told(list(names), text) for names, text in found]
        return " and ".join(filter(None, told)) or None

    def restore(self) -> None:
        """Put together again what was taken apart; what the weights are is left to a merge."""
        torch.set_grad_enabled(self.gradients)
        for one in self.modules.values():
            one.itself.training = one.training
            for name, part in zip(_PARTS, one.parts, strict=True):
                known = getattr(one.itself, name)
                known.clear()
                known.update(part)
            getattr(one.itself, _BUFFERS).update(one.buffers)
        for one in self.tensors.values():
            one.itself.data = one.data
            one.itself.requires_grad_(one.gradients)

    def _tensors(self) -> Iterator[str]:
        live = _live(self.model)
        yield from (name for name in live if name not in self.tensors)
        for name, one in self.tensors.items():
            if live.get(name) is not one.itself or not one.same():
                yield name

    def _asking(self) -> Iterator[str]:
        for name, one in self.tensors.items():
            if one.itself.requires_grad != one.gradients:
                yield name

    def _training(self) -> Iterator[str]:
        for name, one in self.modules.items():
            if one.itself.training != one.training:
                yield name or type(one.itself).__name__

    def _built(self) -> Iterator[str]:
        for name, one in self.modules.items():
            if not all(map(_same_entries, _parts(one.itself), one.parts)):
                yield name or type(one.itself).__name__


def untouched(model: torch.nn.Module) -> Untouched:
    """Remember how a live model is now."""
    tensors = {
        name: _Tensor(one, one.data, one.requires_grad, checksum(one))
        for name, one in _live(model).items()
    }
    named = cast("Iterable[tuple[str, torch.nn.Module]]", model.named_modules())
    modules = {
        name: _Module(one, one.training, tuple(map(dict[str, Any], _parts(one))), _buffers(one))
        for name, one in named
    }
    return Untouched(model, tensors, modules, torch.is_grad_enabled())


def _live(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A model's tensors by name; those under several names once."""
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def _parts(module: torch.nn.Module) -> list[Mapping[Any, Any]]:
    return [getattr(module, name) for name in _PARTS]


def _buffers(module: torch.nn.Module) -> dict[str, torch.Tensor | None]:
    passing = getattr(module, _PASSING)
    return {name: one for name, one in getattr(module, _BUFFERS).items() if name not in passing}


def _same_entries(now: Mapping[Any, Any], before: Mapping[Any, Any]) -> bool:
    return list(now) == list(before) and all(now[key] is before[key] for key in before)


def _place(one: torch.Tensor) -> tuple[Any, ...]:
    return one.data_ptr(), one.shape, one.stride(), one.dtype, one.device


def _told(names: list[str], text: str) -> str | None:
    if not names:
        return None
    more = f" (and {len(names) - 1} more)" if names[1:] else ""
    return text.format(names[0]) + more
