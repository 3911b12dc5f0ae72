"""`by`, `knots` and `per` of a hole: one number for which tensors, and for which layers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from merge_core.checkpoint import Checkpoint
from merge_core.errors import RecipeError
from merge_core.keys import nearest
from merge_core.roles import ROLES, Filter, role_filters
from search.space import Spread

_MOST_KNOTS = 64


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers that a hole is about.

    Attributes:
        parents: The opened models; None where nothing is known of them.
        stack: Which stack of a model of several, or None for the only one.
        length: How many, where the slice says so.
    """

    parents: Mapping[str, Checkpoint] | None
    stack: str | None = None
    length: int | None = None

    def count(self) -> int | None:
        """How many layers, or None if that is unknown or differs."""
        if self.length is not None:
            return self.length
        stacks = [s for p in (self.parents or {}).values() for s in p.layout.stacks]
        depths = {s.depth for s in stacks if self.stack in (None, s.name)}
        return depths.pop() if len(depths) == 1 else None


def read_spread(
    hole: Mapping[str, Any], layers: Layers, place: str, tell: Callable[[str], None]
) -> Spread:
    """Read how the numbers of a hole are spread.

    Args:
        hole: With `by`, `knots`, `per`, or none of them.
        layers: Of what.
        place: YAML path of the hole, for errors.
        tell: Is told every mistake.
    """
    groups, filters = _groups(hole["by"], layers, place, tell) if "by" in hole else _everything()
    if "per" in hole:
        if "knots" in hole:
            tell(f"{place}: 'knots' are interpolated and 'per' makes steps; give one of them")
        steps = _steps(hole["per"], layers, f"{place}.per", tell)
        return Spread(groups, filters, steps[-1] + 1, steps)
    return Spread(groups, filters, _knots(hole.get("knots", 1), f"{place}.knots", tell))


def _everything() -> tuple[tuple[str | None, ...], tuple[Filter, ...]]:
    return (None,), ((None, 0),)


def _knots(knots: Any, place: str, tell: Callable[[str], None]) -> int:
    if isinstance(knots, bool) or not isinstance(knots, int) or not 1 <= knots <= _MOST_KNOTS:
        tell(f"{place}: expected a whole number from 1 to {_MOST_KNOTS}, got {knots!r}")
        return 1
    return knots


def _steps(per: Any, layers: Layers, place: str, tell: Callable[[str], None]) -> tuple[int, ...]:
    """For each layer the place of its number, `(layers,)`."""
    size = 1 if per == "layer" else per
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        tell(f"{place}: expected 'layer', or of how many layers a block is, got {per!r}")
        return (0,)
    if not layers.parents and layers.length is None:
        if layers.parents is None:
            tell(f"{place}: needs the models, to count their layers")
        return (0,)
    count = layers.count()
    if count is None:
        tell(f"{place}: the models have stacks of several depths; say it under each of 'modules'")
        return (0,)
    return tuple(layer // size for layer in range(max(count, 1)))


def _groups(
    by: Any, layers: Layers, place: str, tell: Callable[[str], None]
) -> tuple[tuple[str | None, ...], tuple[Filter, ...]]:
    if by == "roles" or isinstance(by, Mapping):
        return _roles(cast("Any", by), layers, f"{place}.by", tell)
    names = cast("list[Any]", by) if isinstance(by, list) else []
    if not names or not all(isinstance(name, str) for name in names):
        tell(f"{place}.by: expected parts of tensor names, got {by!r}")
        return _everything()
    if len(set(names)) < len(names) or "*" in names[:-1]:
        tell(f'{place}.by: each group once, "*" (the rest) last, got {by!r}')
    return tuple(names), tuple((None if n == "*" else n, at) for at, n in enumerate(names))


def _roles(
    by: Any, layers: Layers, place: str, tell: Callable[[str], None]
) -> tuple[tuple[str | None, ...], tuple[Filter, ...]]:
    """Roles, written as filters that mean their tensors in every parent."""
    asked = [*ROLES, "*"] if by == "roles" else by.get("roles") if len(by) == 1 else None
    if not isinstance(asked, list) or not asked:
        tell(f"{place}: expected parts of tensor names, 'roles', or {{roles: [...]}}, got {by!r}")
        return _everything()
    names = cast("list[str]", asked)
    unknown = [name for name in names if name not in (*ROLES, "*")]
    for name in unknown:
        tell(f"{place}.roles: '{name}' is no role; {nearest(str(name), (*ROLES, '*'))}")
    if not unknown and (len(set(names)) < len(names) or "*" in names[:-1]):
        tell(f'{place}.roles: each role once, "*" (the rest) last, got {names!r}')
        return _everything()
    if not layers.parents:
        if layers.parents is None and not unknown:
            tell(f"{place}: roles need the models, to read them from the tensors' names")
        return _everything()
    return _everything() if unknown else _proved(names, layers, place, tell, every=by == "roles")


def _proved(
    names: list[str], layers: Layers, place: str, tell: Callable[[str], None], *, every: bool
) -> tuple[tuple[str | None, ...], tuple[Filter, ...]]:
    parents = (layers.parents or {}).values()
    tensors = {name: parent.layout for parent in parents for name in parent.tensors}
    try:
        filters, missing = role_filters(names, tensors)
    except RecipeError as error:
        tell(f"{place}: {str(error).removeprefix('by: ')}")
        return _everything()
    if every:
        used = {at for _, at in _reached(filters, tensors)}
        kept = [name for at, name in enumerate(names) if at in used]
        return tuple(kept), role_filters(kept, tensors)[0]
    for name in missing:
        tell(f"{place}.roles: no parent has a tensor of the role '{name}'; leave it out")
    return tuple(names), filters


def _reached(filters: tuple[Filter, ...], tensors: Mapping[str, Any]) -> set[Filter]:
    """The filters that some tensor comes to."""
    return {
        next(((text, at) for text, at in filters if text is None or text in name), filters[-1])
        for name in tensors
    }
