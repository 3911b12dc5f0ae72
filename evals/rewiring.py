# pyright: standard
"""The live model's layers, put together anew for every plan: depth, order and kinds, no weights.

Each position has a module that knows its number (a cache is indexed by it) and owns the tensors of
that position. Where a plan wants a layer of another kind there (full attention instead of sliding),
a second module of that kind shares those tensors. Such modules are taken from a skeleton:
a model without weights that transformers builds from the plan's own configuration. What such a
skeleton has outside its layers (rotary frequencies, which masks are made) is taken over too, and
where it says that a layer depends on the depth, the plan is refused.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from evals.configuration import Config, decoder_config, decoder_part, layer_lists
from evals.errors import EvaluationError

Kind = tuple[Any, ...]
"""A layer's entries in the configuration's lists that have one per layer."""

_BARE = frozenset(vars(torch.nn.Module()))  # what every module has, training for one
_PLAIN = (bool, int, float, str, torch.dtype, type(None))
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Wish:
    """What a configuration says of its layers.

    Attributes:
        depth: How many they are.
        lists: The lists with one entry per layer, by name.
    """

    depth: int
    lists: tuple[tuple[str, tuple[Any, ...]], ...]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Of each layer, `(depth,)`."""
        told = [entries for _, entries in self.lists]
        return tuple(zip(*told, strict=True)) if told else ((),) * self.depth


class Wiring:
    """Makes a live model have another plan's layers.

    Args:
        model: As it was built, on its device: the deepest that will be wanted.
        config: Its `config.json`.
        parse: Makes a configuration object of a `config.json`.
        build: Makes a model without weights of a `config.json`; its buffers are filled.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: Config,
        parse: Callable[[Config], Any],
        build: Callable[[Config], PreTrainedModel],
    ) -> None:
        self._model, self._built, self._parse, self._build = model, config, parse, build
        self._config: Any = decoder_config(model.config)
        self._part = decoder_part(model.config)
        self._lists = layer_lists(self._config)
        self._now = self._first = self._read(model.config)
        self._stack = find_stack(model)
        layers = [] if self._stack is None else list(self._stack)
        kinds = self._first.kinds
        self._layers: dict[tuple[int, Kind], torch.nn.Module] = {
            (at, kinds[at]): layer for at, layer in enumerate(layers)
        }
        self._own = layers  # whose tensors the slots are
        self._outside = dict(_outside(model, self._stack))
        self._shells: dict[tuple[int, frozenset[Kind]], Mapping[_Place, Any]] = {
            self._frame(self._first): {}
        }
        self._changed: set[_Place] = set()  # outside the layers, from how it was built
        self._wishes: dict[Any, Wish] = {}
        self._read_depths = set[int]()  # that the family's class took

    @property
    def depth(self) -> int:
        """Layers that the model has now."""
        return self._now.depth

    @property
    def deepest(self) -> int:
        """Layers that it can have at most."""
        return self._first.depth

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Of the layers that the model has now."""
        return self._now.kinds

    def rewire(self, config: Config) -> None:
        """Have the layers that a configuration describes; no weight is read or written.

        Args:
            config: A plan's `config.json`, of the family and sizes that the model was built with.

        Raises:
            EvaluationError: If the live model can't have such layers; it then stays as it is.
        """
        wish = self._wish(config)
        if wish == self._now:
            return
        if wish != self._first:
            self._prepare(wish, config)
        self._put(wish)

    @property
    def present(self) -> Config:
        """A configuration with the layers that the model has now."""
        return self._as(self._now)

    @property
    def layers(self) -> tuple[torch.nn.Module, ...]:
        """The modules of the layers that the model has now; empty if it isn't plain which."""
        return () if self._stack is None else tuple(self._stack)

    def turns(self) -> Iterator[Config]:
        """Configurations under which each kind of layer stands at each place once, the first as is.

        Those of the depth that the model was built with, their lists turned step by step.
        """
        seen = set[tuple[int, Kind]]()
        for step in range(self.deepest):
            turned = {*enumerate(self._turned(step).kinds)}
            if not turned <= seen:
                seen |= turned
                yield self._as(self._turned(step))

    def _turned(self, step: int) -> Wish:
        lists = tuple((n, (*e[step:], *e[:step])) for n, e in self._first.lists)
        return Wish(self._first.depth, lists)

    def _as(self, wish: Wish) -> Config:
        """The configuration that it was built with, its layers changed."""
        if wish == self._first:
            return self._built
        part = self._built if self._part is None else self._built[self._part]
        names = (self._config.attribute_map.get("num_hidden_layers"), "num_hidden_layers")
        changed = dict(part) | {name: wish.depth for name in names if name in part}
        changed |= {name: list(entries) for name, entries in wish.lists}
        return changed if self._part is None else {**self._built, self._part: changed}

    def _put(self, wish: Wish) -> None:
        """Everything is there: set the layers, what is around them, and the configuration."""
        if self._stack is not None:
            modules = (self._layers[place] for place in enumerate(wish.kinds))
            self._stack._modules = {str(at): module for at, module in enumerate(modules)}
        shell = self._shells[self._frame(wish)]
        for place in self._changed - shell.keys():
            place.set(self._model, self._outside.get(place, _ABSENT))
        for place, value in shell.items():
            place.set(self._model, value)
        self._changed = set(shell)
        self._config.num_hidden_layers = wish.depth
        for name, entries in wish.lists:
            setattr(self._config, name, list(entries))
        self._now = wish

    def _prepare(self, wish: Wish, config: Config) -> None:
        """See that all modules are there; a skeleton of this configuration has what is not."""
        if wish.depth > self.deepest:
            raise EvaluationError(
                f"the plan has {wish.depth} layers, and the live model was built for at most "
                f"{self.deepest}"
            )
        if self._stack is None:
            raise EvaluationError(
                f"{type(self._model).__name__}: its layers are in no single list of modules, so "
                "only plans with the depth and the order of its kinds of layers can be scored"
            )
        there = all(place in self._layers for place in enumerate(wish.kinds))
        if not there or self._frame(wish) not in self._shells:
            self._add(wish, self._build(config))

    def _add(self, wish: Wish, skeleton: PreTrainedModel) -> None:
        """Take from a skeleton what isn't there, and compare with it what is."""
        stack = find_stack(skeleton)
        if stack is None or len(stack) != wish.depth:
            raise EvaluationError(f"{type(skeleton).__name__}: its layers can't be told apart")
        found: dict[tuple[int, Kind], torch.nn.Module] = {}
        for (at, kind), layer in zip(enumerate(wish.kinds), stack, strict=True):
            if (known := self._layers.get((at, kind))) is not None:
                _check_alike(at, known, layer, wish)
            else:
                found[at, kind] = self._grafted(at, layer, skeleton)
        outside = dict(_outside(skeleton, stack))
        shell = {
            place: value.to(self._model.device) if isinstance(value, torch.Tensor) else value
            for place, value in outside.items()
            if not _equal(value, self._outside.get(place, _ABSENT))
        }
        self._layers |= found
        self._shells[self._frame(wish)] = shell

    def _grafted(
        self, at: int, layer: torch.nn.Module, skeleton: PreTrainedModel
    ) -> torch.nn.Module:
        """A skeleton's layer with the tensors and the configuration of the live one there."""
        own = dict(self._own[at].state_dict(keep_vars=True))
        wanted = dict(layer.state_dict(keep_vars=True))
        for name in sorted(own.keys() ^ wanted.keys()):
            has, lacks = ("this plan's", "the live model's")[:: 1 if name in wanted else -1]
            raise EvaluationError(
                f"layer {at}: {has} has a tensor '{name}' there and {lacks} has none; layers of "
                "kinds that hold different tensors must keep their places"
            )
        for name, tensor in own.items():
            if tensor.shape != wanted[name].shape:
                raise EvaluationError(
                    f"layer {at}: '{name}' has shape {tuple(wanted[name].shape)} in this plan and "
                    f"{tuple(tensor.shape)} in the live model; layers of kinds whose tensors "
                    "differ must keep their places"
                )
            path, _, leaf = name.rpartition(".")
            part = layer.get_submodule(path)
            held = part._parameters if leaf in part._parameters else part._buffers
            held[leaf] = tensor
        texts = decoder_config(skeleton.config)
        for part in layer.modules():
            for name, buffer in part._buffers.items():
                part._buffers[name] = None if buffer is None else buffer.to(self._model.device)
            for name, value in vars(part).items():
                if value is texts or value is skeleton.config:
                    setattr(part, name, self._config if value is texts else self._model.config)
        return layer.eval().requires_grad_(False)

    def _frame(self, wish: Wish) -> tuple[int, frozenset[Kind]]:
        """Of what may depend what is outside the layers."""
        return wish.depth, frozenset(wish.kinds)

    def _wish(self, config: Config) -> Wish:
        part = config if self._part is None else config[self._part]
        names = ("num_hidden_layers", self._config.attribute_map.get("num_hidden_layers"))
        key = tuple(_frozen(part.get(name)) for name in (*names, *self._lists))
        if (known := self._wishes.get(key)) is not None:
            return known
        given = [part.get(name) for name in self._lists]
        depth = len(given[0]) if given and isinstance(given[0], list) else 0
        stated = all(isinstance(one, list) and len(one) == depth for one in given)
        if stated and depth in self._read_depths and self._follows:  # the class takes a millisecond
            entries = (tuple(cast("list[Any]", one)) for one in given)
            wish = Wish(depth, tuple(zip(self._lists, entries, strict=True)))
        else:
            wish = self._checked(self._read(self._parse(config)), part)
            self._read_depths.add(wish.depth)
        self._wishes[key] = wish
        return wish

    @cached_property
    def _follows(self) -> bool:
        """Whether the family's class was seen to go by lists that no rule would give."""
        for step in range(1, self.deepest):
            turned = self._turned(step)
            if turned != self._first:
                try:
                    return self._read(self._parse(self._as(turned))) == turned
                except EvaluationError:
                    return False
        return False

    def _checked(self, wish: Wish, part: Config) -> Wish:
        """Refuse a list that the family's class doesn't go by."""
        for name, entries in wish.lists:
            stated = part.get(name)
            if isinstance(stated, list) and tuple(stated) != entries:
                family = type(self._model).__name__
                raise EvaluationError(
                    f"config.json: by '{name}' layers are {stated}, but {family} makes them "
                    f"{list(entries)}; where a family has a rule of its own, layers must keep "
                    "their places"
                )
        return wish

    def _read(self, config: Any) -> Wish:
        found = decoder_config(config)
        lists = tuple((name, tuple(getattr(found, name))) for name in self._lists)
        depth = int(found.num_hidden_layers)
        for name, entries in lists:
            if len(entries) != depth:
                raise EvaluationError(
                    f"config.json: '{name}' has {len(entries)} entries for {depth} layers"
                )
        return Wish(depth, lists)


def find_stack(model: Any) -> torch.nn.ModuleList | None:
    """The list of a model's decoder layers; None if it isn't plain which one it is."""
    depth = decoder_config(model.config).num_hidden_layers
    stacks = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth
    }
    # A list within another one's modules is something in a layer: its experts.
    outer = [m for n, m in stacks.items() if not any(n.startswith(f"{o}.") for o in stacks)]
    return outer[0] if len(outer) == 1 else None


def _frozen(value: Any) -> Any:
    return tuple(cast("list[Any]", value)) if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a module keeps something that is no weight."""

    module: str
    name: str
    buffer: bool

    def set(self, model: torch.nn.Module, value: Any) -> None:
        """Put a value there, or take it away."""
        module = model.get_submodule(self.module)
        held = module._buffers if self.buffer else vars(module)
        if value is _ABSENT:
            held.pop(self.name, None)
            module._non_persistent_buffers_set.discard(self.name)
            return
        held[self.name] = value
        if self.buffer:
            module._non_persistent_buffers_set.add(self.name)


def _outside(model: Any, stack: torch.nn.Module | None) -> Iterator[tuple[_Place, Any]]:
    """What a model holds outside its layers that is no weight."""
    inside = {id(module) for module in stack.modules()} if stack is not None else set[int]()
    for path, module in model.named_modules():
        if id(module) not in inside:
            yield from _held(path, module)


def _held(path: str, module: torch.nn.Module) -> Iterator[tuple[_Place, Any]]:
    for name, value in vars(module).items():
        if name not in _BARE and _is_plain(value):
            yield _Place(path, name, False), value
    for name in module._non_persistent_buffers_set:
        if (buffer := module._buffers.get(name)) is not None:
            yield _Place(path, name, True), buffer


def _is_plain(value: Any) -> bool:
    """Numbers, words and what is made of them; not modules, functions or configurations."""
    if isinstance(value, Mapping):
        return all(_is_plain(part) for part in cast("Mapping[Any, Any]", value).values())
    if isinstance(value, list | tuple | set | frozenset):
        return all(_is_plain(part) for part in cast("Sequence[Any]", value))
    return isinstance(value, _PLAIN)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.equal(one.cpu(), other.cpu())
    return type(one) is type(other) and bool(one == other)


def _check_alike(at: int, known: torch.nn.Module, fresh: torch.nn.Module, wish: Wish) -> None:
    """Refuse a plan under which a layer of the same place and kind would be another one."""
    expected = {p: v for path, part in fresh.named_modules() for p, v in _held(path, part)}
    found = {p: v for path, part in known.named_modules() for p, v in _held(path, part)}
    lists = [list(entries) for _, entries in wish.lists]  # a layer goes by its own entry of them
    for place in expected.keys() | found.keys():
        mine, other = found.get(place, _ABSENT), expected.get(place, _ABSENT)
        if not _equal(mine, other) and not (isinstance(other, list) and other in lists):
            where = ".".join(filter(None, (place.module, place.name)))
            raise EvaluationError(
                f"layer {at} depends on more than its own kind: '{where}' is {other} in a model "
                f"of {wish.depth} layers like this plan's, and {mine} in the live one; such "
                "layers can't be moved"
            )
