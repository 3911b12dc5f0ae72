"""Kinds of layers: a hybrid's or mixture's layers don't all hold the same tensors.

Where `config.json` tells the kinds by a list (`layer_types`), the list follows the layers that are
moved. Where it tells them by a rule (every fourth, the first few), layers must keep their places.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, cast

from merge_core.checkpoint import Checkpoint, TensorSpec
from merge_core.errors import RecipeError
from merge_core.naming import Key
from merge_core.slices import Part, Site, layer_span

_Kind = tuple[tuple[str, int], ...]


def check_kinds(site: Site, parts: tuple[Part, ...]) -> None:
    """Where layers differ in their tensors and no list says how, each kind must keep its place."""
    for stack in site.donor.layout.stacks:
        kinds = _kinds(site.donor)[stack.name]
        made = [kind for part in parts if part.stack == stack.name for kind in _made(site, part)]
        stated = _states_kinds(site.donor.config, stack.key, kinds)
        for at, kind in enumerate(made):
            if kind not in kinds if stated else kind != _expected(kinds, at):
                raise RecipeError(
                    f"layer {at} of the output has other tensors than '{site.donor.name}' has "
                    "there, and no list in its config.json tells its kinds of layers apart, so the "
                    "model could not be loaded; keep the number of layers and the order of kinds"
                )


def _expected(kinds: Sequence[_Kind], at: int) -> _Kind | None:
    """The kind of a layer by its place; beyond the last, that of all layers but the first few."""
    if at < len(kinds):
        return kinds[at]
    changes = sum(one != other for one, other in pairwise(kinds))
    settled = changes == 0 or (changes == 1 and kinds[-2:-1] == kinds[-1:])
    return kinds[-1] if settled else None


def _made(site: Site, part: Part) -> Sequence[_Kind]:
    """Kinds of the layers that a slice makes: those of its first source."""
    first = part.inputs.sources[0]
    start, end = layer_span(site, first, part.stack)
    return _kinds(site.parents[first.model])[part.stack][start:end]


@lru_cache(maxsize=64)
def _kinds(parent: Checkpoint) -> Mapping[str, Sequence[_Kind]]:
    """What each layer holds, by stack: names and numbers of axes."""
    return {
        stack: [tuple((rest, len(spec.shape)) for rest, spec in table.items()) for table in tables]
        for stack, tables in layer_tables(parent).items()
    }


def _states_kinds(config: Mapping[str, Any], key: Key, kinds: Sequence[_Kind]) -> bool:
    """Whether a list with one entry per layer tells the kinds apart; it follows the layers."""
    for name in key[:-1]:
        config = config[name]
    for told in config.values():
        if isinstance(told, list) and len(told) == len(kinds):  # pyright: ignore[reportUnknownArgumentType]
            entries = [str(entry) for entry in cast("list[object]", told)]
            if len(set(zip(entries, kinds, strict=True))) == len(set(entries)):
                return True
    return False


@lru_cache(maxsize=64)
def layer_tables(parent: Checkpoint) -> Mapping[str, tuple[Mapping[str, TensorSpec], ...]]:
    """A parent's tensors by stack, layer and the rest of their names, in name order."""
    tables: dict[str, tuple[dict[str, TensorSpec], ...]] = {
        stack.name: tuple({} for _ in range(stack.depth)) for stack in parent.layout.stacks
    }
    for name, spec in parent.tensors.items():
        if stack := parent.layout.stack(name):
            number, _, rest = name.removeprefix(stack.prefix).partition(".")
            tables[stack.name][int(number)][rest] = spec
    return tables
