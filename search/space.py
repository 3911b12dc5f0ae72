"""Values → recipe. Decoding is pure, and every value decodes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from merge_core.recipe import Recipe, Scalar, Slice, Source, from_dict
from merge_core.registry import find_method
from search.dimensions import METHOD as METHOD
from search.dimensions import Choice as Choice
from search.dimensions import Dimension as Dimension
from search.dimensions import Real as Real
from search.dimensions import Values as Values
from search.dimensions import Whole as Whole
from search.dimensions import exists
from search.layouts import MERGE, Layout

BRANCH = "choice"  # stands for the whole recipe where sub-recipes are chosen from


@dataclass(frozen=True, slots=True)
class Spread:
    """How the numbers of a hole are spread over a model: by groups of tensors and over depth.

    Attributes:
        groups: Names of the groups; (None,) for one number for all tensors.
        filters: mergekit's filters in the order in which they are tried, each with the place of
            its group in `groups`; None matches every tensor.
        knots: Numbers over depth of each group.
        steps: For each layer the number that it takes, `(layers,)`; None interpolates.
    """

    groups: tuple[str | None, ...] = (None,)
    filters: tuple[tuple[str | None, int], ...] = ((None, 0),)
    knots: int = 1
    steps: tuple[int, ...] | None = None

    def names(self, name: str) -> tuple[tuple[str, ...], ...]:
        """Names of the dimensions, `(groups, knots)`."""
        heads = [name + (f"[{group}]" if group else "") for group in self.groups]
        many = self.knots > 1
        return tuple(
            tuple(head + (f"@{knot}" if many else "") for knot in range(self.knots))
            for head in heads
        )

    def write(self, numbers: Sequence[Sequence[Scalar]]) -> Any:
        """Numbers, `(groups, knots)`, in mergekit's form: scalar, gradient, or filtered ones."""
        written = [self._over_depth(of_group) for of_group in numbers]
        if self.filters == ((None, 0),):
            return written[0]
        return [
            {"value": written[at]} | ({} if name is None else {"filter": name})
            for name, at in self.filters
        ]

    def _over_depth(self, numbers: Sequence[Scalar]) -> Any:
        if self.steps is not None and len(numbers) > 1:
            return [numbers[step] for step in self.steps]
        return list(numbers) if len(numbers) > 1 else numbers[0]


@dataclass(frozen=True, slots=True)
class Hole:
    """Numbers that a search fills in: dimensions of shape `(groups, knots)`."""

    spread: Spread
    numbers: tuple[tuple[Real | Whole, ...], ...]

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """All dimensions in order."""
        return tuple(dimension for knots in self.numbers for dimension in knots)

    def fill(self, values: Values) -> Any:
        """The value in mergekit's form."""
        return self.spread.write(
            [[d.value(cast("float", values[d.name])) for d in knots] for knots in self.numbers]
        )


@dataclass(frozen=True, slots=True)
class Share:
    """One model's part of weights that sum to one.

    Each of the first models takes a share of what those before it left, and the last the rest: one
    dimension fewer than models, any values sum to one, and every model can get all or nothing. A
    uniform coordinate u is the share 1 - (1 - u)^(1/k) with k models to come, which makes uniform
    coordinates uniform on the simplex (a stick is broken, Devroye 1986, "Non-Uniform Random
    Variate Generation", V.2), whatever the order of the models.

    Attributes:
        spread: As of a hole.
        numbers: The dimensions, `(groups, knots, models - 1)`.
        place: Which model it is.
    """

    spread: Spread
    numbers: tuple[tuple[tuple[Real, ...], ...], ...]
    place: int

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The dimensions of all models, with the first; none with the others."""
        return () if self.place else tuple(d for g in self.numbers for knot in g for d in knot)

    def fill(self, values: Values) -> Any:
        """The model's weights in mergekit's form."""
        return self.spread.write(
            [
                [broken([cast("float", values[d.name]) for d in knot])[self.place] for knot in g]
                for g in self.numbers
            ]
        )


def broken(coordinates: Sequence[float]) -> list[float]:
    """Weights that sum to one, `(models,)`, from coordinates 0 to 1, `(models - 1,)`."""
    left, weights = 1.0, list[float]()
    for at, u in enumerate(coordinates):
        weight = left * (1 - (1 - u) ** (1 / (len(coordinates) - at)))
        weights.append(weight)
        left -= weight
    return [*weights, left]


def unbroken(weights: Sequence[float]) -> list[float]:
    """Coordinates of weights that sum to one; the inverse of `broken`."""
    left, coordinates = 1.0, list[float]()
    for at, weight in enumerate(weights[:-1]):
        share = min(max(weight / left, 0.0), 1.0) if left > 0 else 0.0
        coordinates.append(1 - (1 - share) ** (len(weights) - 1 - at))
        left -= weight
    return coordinates


@dataclass(frozen=True, slots=True)
class Branch:
    """A choice: of a word, a model, or any part of a recipe with holes of its own."""

    choice: Choice
    nodes: tuple[Any, ...]

    def node(self, values: Values) -> Any:
        """The chosen one."""
        return self.nodes[self.choice.options.index(values[self.choice.name])]


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """All recipes that a study may propose.

    Attributes:
        template: The recipe with `Hole`, `Share` and `Branch` objects in it; under the one key
            `choice`, beside what all have in common, where whole recipes are chosen from.
        methods: The methods that it may use.
        dimensions: In the order in which they are asked for: choices before what they decide.
        points: What is tried first, in order.
        depths: How many layers each parent has, by alias; none where that isn't known.
    """

    template: Mapping[str, Any]
    methods: tuple[str, ...]
    dimensions: tuple[Dimension, ...]
    points: tuple[Values, ...] = field(default=(), repr=False)
    depths: Mapping[str, int] = field(default_factory=dict[str, int], repr=False)

    @property
    def has_choices(self) -> bool:
        """Whether anything but numbers is searched."""
        return any(isinstance(dimension, Choice) for dimension in self.dimensions)

    @property
    def base(self) -> str | None:
        """The base model, the first one where several are chosen from."""
        return next(iter(bases(self.template)), None)

    @property
    def models(self) -> tuple[str, ...]:
        """Aliases of all models that a candidate may list, in order of appearance."""
        return listed(self.template)

    def method(self, values: Values) -> str:
        """The merge method that the values choose."""
        return str(_word(_body(self.template, values)[METHOD], values))

    def active(self, values: Values) -> tuple[Dimension, ...]:
        """The dimensions that exist under the values of those before them."""
        return tuple(d for d in self.dimensions if exists(d, values))

    def draw(self, ask: Callable[[Dimension], float | int | bool | str]) -> Values:
        """Ask for every dimension that exists under what was answered before, in order."""
        values: dict[str, float | int | bool | str] = {}
        for dimension in self.dimensions:
            if exists(dimension, values):
                values[dimension.name] = ask(dimension)
        return values

    def decode(self, values: Values) -> Recipe:
        """The recipe that the values describe; what the method lacks is left out."""
        layout, recipe = self.layout(values), self.merged(values)
        return recipe if layout is None else layout.apply(recipe, values)

    def merged(self, values: Values) -> Recipe:
        """The same before its layers are put in order: what `merge` is, of all layers."""
        body = _body(self.template, values)
        method, layout = str(_word(body[METHOD], values)), self.layout(values)
        if layout is not None:
            body = {key: value for key, value in body.items() if key != "slices"}
            body.setdefault("models", [layout.origins[0]])
        return from_dict(_fill(body, values, method) | {METHOD: method})

    def layout(self, values: Values) -> Layout | None:
        """The hole for the order of layers, where the recipe that the values choose has one."""
        found = _word(_body(self.template, values).get("slices"), values)
        return found if isinstance(found, Layout) else None

    def starts(self) -> tuple[Values, ...]:
        """What is tried first: the study's starts, known recipes, usual values; all different."""
        return self.points

    def probes(self) -> Iterator[Values]:
        """Values that show every option of every choice at least once, the starts' first ones."""
        yield from {self.method(values): values for values in reversed(self.points)}.values()
        for dimension in self.dimensions:
            for option in dimension.options if isinstance(dimension, Choice) else ():
                yield self._probe(dict(dimension.under) | {dimension.name: (option,)})
        for node in holes(self.template):
            if isinstance(node, Layout):
                under = dict(node.dimensions[0].under)
                for values in node.form.extremes():
                    yield self._probe(under | {name: (v,) for name, v in values.items()})

    def _probe(self, wanted: Mapping[str, tuple[Scalar, ...]]) -> Values:
        def ask(d: Dimension) -> float | int | bool | str:
            if d.name in wanted:
                return wanted[d.name][0]
            return d.options[0] if isinstance(d, Choice) else d.coordinate(d.value(d.middle))

        return self.draw(ask)

    def everyone(self) -> Recipe:
        """A recipe of all models that any candidate may have, with what all have in common."""
        models = dict.fromkeys((*self.models, *bases(self.template)))
        first = self.decode(self.points[0])
        slices = (Slice(tuple(Source(model) for model in models)),)
        return Recipe(
            "linear",
            slices,
            self.base,
            tokenizer=first.tokenizer,
            chat_template=first.chat_template,
            compat=first.compat,
        )

    def describe(self) -> list[Any]:
        """A canonical description, for the study's protocol."""
        return [_describe(dimension) for dimension in self.dimensions]


def tensor_groups(space: SearchSpace) -> Iterator[str]:
    """The tensor-name filters that the holes use."""
    for node in holes(space.template):
        if isinstance(node, Hole | Share):
            yield from (name for name, _ in node.spread.filters if name is not None)


def holes(node: Any) -> Iterator[Hole | Share | Layout | Branch]:
    """All holes of a template in the order in which they are asked for."""
    if isinstance(node, Hole | Share | Layout):
        yield node
    elif isinstance(node, Branch):
        yield node
        for option in node.nodes:
            yield from holes(option)
    elif isinstance(node, Mapping):
        for value in cast("Mapping[str, Any]", node).values():
            yield from holes(value)
    elif isinstance(node, list):
        for value in cast("list[Any]", node):
            yield from holes(value)


def dimensions_of(template: Any) -> Iterator[Dimension]:
    """The dimensions of all holes."""
    for node in holes(template):
        if isinstance(node, Branch):
            yield node.choice
        else:
            yield from node.dimensions


def listed(template: Any) -> tuple[str, ...]:
    """Aliases of the models that the sources of a template may name, in order."""
    return tuple(dict.fromkeys(_named(template, "model")))


def bases(template: Any) -> tuple[str, ...]:
    """Aliases of its base models."""
    return tuple(dict.fromkeys(_named(template, "base_model")))


def plain(node: Any) -> Any:
    """A template as JSON; what its holes' dimensions are is left to `SearchSpace.describe`."""
    if isinstance(node, Mapping):
        return {str(key): plain(value) for key, value in cast("Mapping[Any, Any]", node).items()}
    if isinstance(node, list):
        return [plain(value) for value in cast("list[Any]", node)]
    match node:
        case Hole(spread):
            names = [d.name for d in node.dimensions]
            return names if spread.steps is None else [*names, list(spread.steps)]
        case Share(spread, _, place):
            return {"share": place, "steps": spread.steps and list(spread.steps)}
        case Branch(choice, nodes):
            return {choice.name: [plain(option) for option in nodes]}
        case Layout():
            return {"layout": node.told()}
        case _:
            return node


def _named(node: Any, key: str) -> Iterator[str]:
    if isinstance(node, Branch):
        for option in node.nodes:
            yield from _named(option, key)
    elif isinstance(node, Layout):
        yield from (name for name in node.origins if name != MERGE and key == "model")
    elif isinstance(node, list):
        for value in cast("list[Any]", node):
            yield from _named(value, key)
    elif isinstance(node, Mapping):
        for name, value in cast("Mapping[str, Any]", node).items():
            if name == key:
                yield from _words(value)
            elif name != "parameters":
                yield from _named(value, key)


def _words(node: Any) -> Iterator[str]:
    if isinstance(node, Branch):
        for option in node.nodes:
            yield from _words(option)
    elif node is not None:
        yield str(node)


def _word(node: Any, values: Values) -> Any:
    return node.node(values) if isinstance(node, Branch) else node


def _body(template: Mapping[str, Any], values: Values) -> Mapping[str, Any]:
    """The recipe itself, or the chosen one with what all have in common."""
    if BRANCH not in template:
        return template
    common = {key: value for key, value in template.items() if key != BRANCH}
    return common | dict(_word(template[BRANCH], values))


def _fill(node: Any, values: Values, method: str) -> Any:
    if isinstance(node, Hole | Share):
        return node.fill(values)
    if isinstance(node, Branch):
        return _fill(node.node(values), values, method)
    if isinstance(node, list):
        return [_fill(value, values, method) for value in cast("list[Any]", node)]
    if not isinstance(node, Mapping):
        return node
    filled: dict[str, Any] = {}
    for key, value in cast("Mapping[str, Any]", node).items():
        if key == "parameters":
            known = {p.name for p in find_method(method).parameters}
            value = {name: v for name, v in _word(value, values).items() if name in known}
            if not value:
                continue
        filled[key] = _fill(value, values, method)
    return filled


def _describe(dimension: Dimension) -> list[Any]:
    """Name and range or options; the rest only where it is not as usual."""
    if isinstance(dimension, Choice):
        told: list[Any] = [dimension.name, list(dimension.options), list(dimension.methods)]
    else:
        told = [dimension.name, dimension.low, dimension.high, dimension.log]
        told.append(list(dimension.methods))
    if isinstance(dimension, Whole):
        told.append("whole")
    if isinstance(dimension, Real) and (prior := dimension.prior):
        told.append([prior.mean, prior.sd, prior.low, prior.high])
    if dimension.under:
        told.append([[name, list(allowed)] for name, allowed in dimension.under])
    return told
