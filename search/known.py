"""Known recipes as points of a search space, where it contains them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Any, cast

from merge_core.canonical import canonical
from merge_core.errors import RecipeError
from merge_core.recipe import Parameters, Recipe, Scalar
from merge_core.registry import find_method
from search.baselines import baselines
from search.dimensions import METHOD, Choice, Dimension, Values, exists
from search.layouts import Layout
from search.space import BRANCH, Branch, Hole, SearchSpace, Share, holes, unbroken

_MOST_FRAMES = 16
_CLOSE = 1e-9


def known_points(space: SearchSpace) -> Iterator[Values]:
    """The parents themselves and the merges that need no search, as far as the space has them."""
    for recipe in baselines(space).values():
        if (values := encode(space, recipe)) is not None:
            yield values


def known_names(space: SearchSpace) -> dict[str, str]:
    """The merges that need no search: fingerprint → name, of equal models the first one's."""
    recipes = baselines(space)
    return {fingerprint(recipes[name], space.depths): name for name in reversed(list(recipes))}


def encode(space: SearchSpace, recipe: Recipe) -> Values | None:
    """Values that decode to a recipe's model.

    Args:
        space: Where to look.
        recipe: With one number for all tensors of a model, as people write them by hand.

    Returns:
        None if no values were found; what is found is proved by its canonical form.
    """
    wish = _wish(canonical(recipe))
    if wish is None:
        return None
    wanted = fingerprint(recipe, space.depths)
    places = _places(space)
    largest = max((abs(w) for w in wish.weights.values()), default=1.0) or 1.0
    for frame, order, normalize, factor in product(
        list(islice(frames(space), _MOST_FRAMES)),
        _orders(space),
        (None, False, True),
        (1.0, 1 / largest),
    ):
        if factor == 1.0 or largest != 1.0:
            said = {**frame, **order}
            values = _answers(space, _Asked(wish, places, said, normalize, factor))
            if fingerprint(space.decode(values), space.depths) == wanted:
                return values
    return None


def frames(space: SearchSpace) -> Iterator[dict[str, Scalar]]:
    """Every combination of methods and of whole recipes."""

    def grow(frame: dict[str, Scalar], rest: Sequence[Dimension]) -> Iterator[dict[str, Scalar]]:
        if not rest:
            yield frame
            return
        first = rest[0]
        if isinstance(first, Choice) and exists(first, frame):
            for option in first.options:
                yield from grow(frame | {first.name: option}, rest[1:])
        else:
            yield from grow(frame, rest[1:])

    chosen = [d for d in space.dimensions if d.parameter in (METHOD, BRANCH)]
    return grow({}, chosen)


def _orders(space: SearchSpace) -> list[Values]:
    """Each origin's own layers with all ends, where the order of layers is searched."""
    return [
        {**order, **node.ends.values(end)}
        for node in holes(space.template)
        if isinstance(node, Layout)
        for order in node.whole()
        for end in node.ends.options
    ] or [{}]


def fingerprint(recipe: Recipe, depths: Mapping[str, int] | None = None) -> str:
    """Equal for candidates that are the same model.

    Args:
        recipe: A candidate.
        depths: How many layers each model has; where that isn't known, as many as slices take.
    """
    if depths:
        found = {depths[model] for model in recipe.models if model in depths}
        depth = found.pop() if len(found) == 1 else None
    else:
        ends = {s.layers[1] for part in recipe.slices for s in part.sources if s.layers}
        depth = max(ends, default=None)
    try:
        return canonical(recipe, depth).fingerprint
    except RecipeError:
        return recipe.fingerprint


@dataclass(frozen=True, slots=True)
class _Wish:
    """What a recipe says of each model and of all."""

    weights: Mapping[str, float]
    own: Mapping[tuple[str, str], Scalar]
    shared: Mapping[str, Scalar]


def _wish(recipe: Recipe) -> _Wish | None:
    """None where a number isn't the same for all tensors."""
    if len(recipe.slices) != 1 or recipe.slices[0].scale:
        return None
    own: dict[tuple[str, str], Scalar] = {}
    for source in recipe.slices[0].sources:
        numbers = _plain(source.parameters)
        if numbers is None:
            return None
        own |= {(source.model, name): value for name, value in numbers.items()}
    shared = _plain((*recipe.parameters, *recipe.slices[0].parameters))
    weights = {m: float(cast("float", w)) for (m, name), w in own.items() if name == "weight"}
    total = sum(weights.values())
    if abs(total - 1) < _CLOSE:  # thirds are cut to 12 digits
        weights = {model: weight / total for model, weight in weights.items()}
    return None if shared is None else _Wish(weights, own, shared)


def _plain(parameters: Parameters) -> dict[str, Scalar] | None:
    found: dict[str, Scalar] = {}
    for name, settings in parameters:
        (value, filtered) = (settings[0].value, settings[0].filter)
        if len(settings) > 1 or filtered is not None or isinstance(value, tuple):
            return None
        found[name] = value
    return found


@dataclass(slots=True)
class _Places:
    """Of which model each dimension is, and which models share a simplex."""

    models: dict[str, Any] = field(default_factory=dict[str, Any])
    bases: dict[str, str | None] = field(default_factory=dict[str, str | None])
    shares: dict[str, dict[int, Any]] = field(default_factory=dict[str, dict[int, Any]])
    ranks: dict[str, int] = field(default_factory=dict[str, int])


def _places(space: SearchSpace) -> _Places:
    found = _Places()
    _visit(space.template, None, None, found)
    return found


def _visit(node: Any, model: Any, base: str | None, found: _Places) -> None:
    """Note for each dimension the source and the base that it stands under."""
    match node:
        case Hole():
            for d in node.dimensions:
                found.models[d.name], found.bases[d.name] = model, base
        case Share(_, numbers, place):
            for knot in (knot for group in numbers for knot in group):
                for rank, d in enumerate(knot):
                    found.shares.setdefault(d.name, {})[place] = model
                    found.ranks[d.name] = rank
        case Branch(choice, nodes):
            found.models[choice.name], found.bases[choice.name] = model, base
            for option in nodes:
                _visit(option, model, base, found)
        case dict():
            entries = cast("dict[str, Any]", node)
            base = entries.get("base_model", base)
            for name, value in entries.items():
                owner = entries["model"] if "model" in entries and name == "parameters" else model
                _visit(value, owner, base, found)
        case list():
            for value in cast("list[Any]", node):
                _visit(value, model, base, found)
        case _:
            pass


@dataclass(frozen=True, slots=True)
class _Asked:
    wish: _Wish
    places: _Places
    frame: Mapping[str, Scalar]
    normalize: bool | None
    factor: float

    def weight(self, model: Any, values: Values) -> float:
        """What the recipe gives to a model, which may be chosen."""
        if isinstance(model, Branch):
            model = values.get(model.choice.name)
        return self.factor * self.wish.weights.get(str(model), 0.0)


def _answers(space: SearchSpace, asked: _Asked) -> Values:
    values: dict[str, Any] = {}
    for d in space.dimensions:
        if exists(d, values):
            values[d.name] = asked.frame.get(d.name)
            if values[d.name] is None:
                values[d.name] = _answer(d, asked, values, space)
    return values


def _answer(d: Dimension, asked: _Asked, values: Values, space: SearchSpace) -> Any:
    if d.name in asked.places.shares:
        models = asked.places.shares[d.name]
        weights = [asked.weight(models[at], values) / asked.factor for at in sorted(models)]
        return unbroken(weights)[asked.places.ranks[d.name]]
    if isinstance(d, Choice) and set(d.options) & set(space.models):  # a model
        return max(d.options, key=lambda model: asked.weight(model, values))
    value = _value(d, asked, values, space)
    if isinstance(d, Choice):
        same = [o for o in d.options if o == value or _close(o, value)]
        inside = [o for o in d.options if isinstance(o, str) and not isinstance(value, str)]
        return (same or inside or d.options)[0]
    return d.coordinate(d.value(d.middle) if value is None else float(cast("float", value)))


def _value(d: Dimension, asked: _Asked, values: Values, space: SearchSpace) -> Scalar | None:
    """What the recipe says of a dimension's parameter, else the method's default."""
    model = asked.places.models.get(d.name)
    if d.parameter == "normalize" and asked.normalize is not None:
        return asked.normalize
    if d.parameter in ("weight", "scale"):
        if model is None:  # one weight for all models
            return asked.factor * max(asked.wish.weights.values(), default=1.0)
        return asked.weight(model, values)
    if d.parameter == "t":
        return 1.0 - asked.wish.weights.get(str(asked.places.bases.get(d.name)), 0.0)
    said = asked.wish.own.get((str(model), d.parameter), asked.wish.shared.get(d.parameter))
    if said is None and model is None:
        said = next((v for (_, name), v in asked.wish.own.items() if name == d.parameter), None)
    parameter = find_method(space.method(values)).parameter(d.parameter)
    return said if said is not None or parameter is None else parameter.default


def _close(one: Scalar, other: Scalar | None) -> bool:
    if isinstance(one, bool | str) or isinstance(other, bool | str) or other is None:
        return False
    return abs(one - other) <= _CLOSE
