"""Where the reader of a recipe with holes stands: what it will say in names, errors, conditions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from merge_core.registry import MergeMethod
from search.dimensions import METHOD, Condition
from search.space import Branch
from search.spreads import Layers


@dataclass(frozen=True, slots=True)
class Scope:
    """A place in the recipe.

    Attributes:
        where: Its YAML path, for errors.
        prefix: Begins the names of its dimensions.
        layers: The layers that it is about.
        methods: The methods that the recipe may use.
        method_name: The dimension that chooses from them.
        under: Conditions under which the place exists.
        outer: The parameters of the places around it, the recipe's first.
        base: The recipe's or slice's base model.
    """

    where: str
    prefix: str
    layers: Layers
    methods: tuple[MergeMethod, ...] = ()
    method_name: str = METHOD
    under: tuple[Condition, ...] = ()
    outer: tuple[Any, ...] = ()
    base: str | None = None

    def at(self, where: str, prefix: str = "") -> "Scope":
        """A place inside."""
        return replace(self, where=f"{self.where}{where}", prefix=f"{self.prefix}{prefix}")

    def option(self, at: int, name: str, label: str, prefix: str) -> "Scope":
        """A place that exists only where a choice is `label`."""
        return replace(
            self,
            where=f"{self.where}.choice[{at}]",
            prefix=prefix,
            under=(*self.under, (name, (label,))),
        )

    def owned(self, owners: Sequence[MergeMethod]) -> tuple[Condition, ...]:
        """The conditions of what only some methods have."""
        if len(self.methods) == len(owners):
            return self.under
        return (*self.under, (self.method_name, tuple(method.name for method in owners)))

    def gives(self, parameter: str) -> bool:
        """Whether the places around give a value, whatever is chosen."""
        return any(all(parameter in leaf for leaf in leaves(node)) for node in self.outer)


def leaves(parameters: Any) -> Iterator[dict[str, Any]]:
    """The mappings that a place's parameters may be."""
    if isinstance(parameters, Branch):
        for node in parameters.nodes:
            yield from leaves(node)
    else:
        yield cast("dict[str, Any]", parameters)


def labelled(options: Any) -> list[tuple[str, Any]] | None:
    """Parts of a recipe to choose from, with what they are called; None if they are none.

    A mapping gives the names; the parts of a list are called by their method or model where that
    tells them apart, else by their place.
    """
    if isinstance(options, Mapping):
        pairs = cast("Mapping[Any, Any]", options).items()
        return [(str(name), option) for name, option in pairs] if len(pairs) > 1 else None
    if not isinstance(options, list) or len(cast("list[Any]", options)) < 2:
        return None
    parts = cast("list[Any]", options)
    names = [_own_name(part) for part in parts]
    if None in names or len(set(names)) < len(names):
        names = [f"option{at}" for at in range(len(parts))]
    return list(zip(cast("list[str]", names), parts, strict=True))


def _own_name(part: Any) -> str | None:
    if isinstance(part, Mapping):
        known = cast("Mapping[str, Any]", part)
        part = known.get("merge_method", known.get("model"))
    return part if isinstance(part, str) else None
