"""Values → recipe. Decoding is pure, and every value decodes."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from merge_core.recipe import Recipe, Scalar, from_dict
from merge_core.registry import find_method

Values = Mapping[str, float | int | bool | str]
METHOD = "merge_method"


@dataclass(frozen=True, slots=True)
class Real:
    """A number between `low` and `high`, asked for only under `methods`."""

    name: str
    low: float
    high: float
    log: bool
    methods: tuple[str, ...]
    parameter: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One of `options`, asked for only under `methods`."""

    name: str
    options: tuple[Scalar, ...]
    methods: tuple[str, ...]
    parameter: str


Dimension = Real | Choice


@dataclass(frozen=True, slots=True)
class Hole:
    """What a search fills: groups of tensors, each with one dimension per knot."""

    groups: tuple[tuple[str | None, tuple[Dimension, ...]], ...]

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """All dimensions in order."""
        return tuple(dimension for _, knots in self.groups for dimension in knots)

    def fill(self, values: Values) -> Any:
        """The value in mergekit's form: a scalar, a gradient, or a list of filtered ones."""
        filled: list[tuple[str | None, Any]] = [
            (name, _scalar_or_list([values[knot.name] for knot in knots]))
            for name, knots in self.groups
        ]
        match filled:
            case [(None, value)]:
                return value
            case _:
                return [
                    {"value": value} | ({} if name is None else {"filter": name})
                    for name, value in filled
                ]


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """All recipes that a study may propose.

    Attributes:
        template: The recipe with `Hole` objects in it.
        methods: The methods that it may use.
        dimensions: In the order in which they are asked for; the method first.
    """

    template: Mapping[str, Any]
    methods: tuple[str, ...]
    dimensions: tuple[Dimension, ...]

    @property
    def has_choices(self) -> bool:
        """Whether anything but numbers is searched."""
        return any(isinstance(dimension, Choice) for dimension in self.dimensions)

    def method(self, values: Values) -> str:
        """The merge method that the values choose."""
        return str(values.get(METHOD, next(iter(self.methods))))

    def active(self, method: str) -> tuple[Dimension, ...]:
        """The dimensions that a method has, the choice of the method itself left out."""
        return tuple(d for d in self.dimensions if d.name != METHOD and method in d.methods)

    def decode(self, values: Values) -> Recipe:
        """The recipe that the values describe; what the method lacks is left out."""
        method = self.method(values)
        return from_dict(_fill(self.template, values, method) | {METHOD: method})

    def starts(self) -> tuple[Values, ...]:
        """Recipes that people try first: equal weights, from the plain average's to full ones."""
        parents = max(1, len(listed(self.template)) - self._lists_base())
        points = [
            {METHOD: method} | {d.name: _start(d, level) for d in self.active(method)}
            for level in dict.fromkeys((1 / parents, 0.5, 1.0))
            for method in self.methods
        ]
        names = {dimension.name for dimension in self.dimensions}
        kept = [{k: v for k, v in point.items() if k in names} for point in points]
        return tuple(point for i, point in enumerate(kept) if point not in kept[:i])

    def _lists_base(self) -> int:
        return int(self.template.get("base_model") in listed(self.template))

    def describe(self) -> list[Any]:
        """A canonical description, for the study's protocol."""
        return [
            [d.name, d.low, d.high, d.log, list(d.methods)]
            if isinstance(d, Real)
            else [d.name, list(d.options), list(d.methods)]
            for d in self.dimensions
        ]


def tensor_groups(space: SearchSpace) -> Iterator[str]:
    """The tensor-name filters that the holes use."""
    for hole in holes(space.template):
        yield from (name for name, _ in hole.groups if name is not None)


def sources(
    template: Mapping[str, Any],
) -> Iterator[tuple[str, Mapping[str, Any], dict[str, Any]]]:
    """Each source with the prefix of its dimensions' names, and what its slice and module say."""
    modules: Mapping[str, Any] = template.get("modules", {})
    bodies: list[tuple[str, dict[str, Any], Mapping[str, Any]]] = [("", {}, template)]
    bodies += [(f"{name}.", module["parameters"], module) for name, module in modules.items()]
    for prefix, outer, body in bodies:
        for source in body.get("models", []):
            yield prefix, outer, source
        for i, part in enumerate(body.get("slices", [])):
            for source in part["sources"]:
                yield f"{prefix}slice{i}.", outer | part["parameters"], source


def listed(template: Mapping[str, Any]) -> tuple[str, ...]:
    """Aliases of the models that a template lists, in order."""
    return tuple(dict.fromkeys(source["model"] for _, _, source in sources(template)))


def holes(node: Any) -> Iterator[Hole]:
    """All holes of a template, in its order."""
    if isinstance(node, Hole):
        yield node
    elif isinstance(node, Mapping):
        for value in cast("Mapping[str, Any]", node).values():
            yield from holes(value)
    elif isinstance(node, list):
        for value in cast("list[Any]", node):
            yield from holes(value)


def _scalar_or_list(values: list[float | int | bool | str]) -> Any:
    return values if len(values) > 1 else values[0]


def _fill(node: Any, values: Values, method: str) -> Any:
    if isinstance(node, Hole):
        return node.fill(values)
    if isinstance(node, list):
        return [_fill(value, values, method) for value in cast("list[Any]", node)]
    if not isinstance(node, Mapping):
        return node
    filled: dict[str, Any] = {}
    for key, value in cast("Mapping[str, Any]", node).items():
        if key == "parameters":
            known = {p.name for p in find_method(method).parameters}
            value = {name: v for name, v in value.items() if name in known}
            if not value:
                continue
        filled[key] = _fill(value, values, method)
    return filled


def _start(dimension: Dimension, level: float) -> float | int | bool | str:
    """A usual value: weights at `level`, everything else at its high end or middle."""
    if isinstance(dimension, Choice):
        return dimension.options[0]
    usual = {"weight": level, "density": dimension.high, "t": 0.5, "scale": 1.0, "lambda": 1.0}
    low, high = dimension.low, dimension.high
    middle = math.sqrt(low * high) if dimension.log else (low + high) / 2
    return min(max(usual.get(dimension.parameter, middle), low), high)
