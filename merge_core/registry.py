"""Merge methods by name. A method is one decorated function; its signature is its search space.

    @merge_method(title="TIES", reference="https://arxiv.org/abs/2306.01708", base=Base.REQUIRED)
    def ties(
        group: TensorGroup,
        *,
        weight: Annotated[PerParent, Range(0.0, 1.5)],
        density: Annotated[PerParent, Range(0.05, 1.0), Default(1.0)],
        normalize: bool = True,
    ) -> Combination: ...

`PerParent` is one number for each parent, everything else one value for the tensor. A parameter
without a default is required. A `Range` says where a search looks when the study does not, `Bounds`
what any recipe may say. A `Literal` of words is a parameter that is one of them.
"""

import enum
import inspect
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_args, get_origin

from merge_core.combination import Combination
from merge_core.errors import RecipeError
from merge_core.recipe import Scalar, nearest

PerParent = tuple[float, ...]
"""One number for each parent that the method takes, in recipe order: `(parents,)`."""


class Base(enum.Enum):
    """What a method does with the base model.

    REQUIRED: task vectors are taken from it; it is no parent. ENDPOINT: it is required and is the
    first of the parents. INPUT: where given, it is a parent like the others, the last if unlisted.
    OPTIONAL: it may be absent; where given, task vectors are taken from it and it is no parent.
    """

    REQUIRED = "required"
    ENDPOINT = "endpoint"
    INPUT = "input"
    OPTIONAL = "optional"

    @property
    def needed(self) -> bool:
        """Whether a recipe must name a base."""
        return self in {Base.REQUIRED, Base.ENDPOINT}

    @property
    def apart(self) -> bool:
        """Whether a base that is given is no parent."""
        return self in {Base.REQUIRED, Base.OPTIONAL}


@dataclass(frozen=True, slots=True)
class Range:
    """Where a search looks by default, both ends included."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True, slots=True)
class Bounds:
    """The numbers that mean something, both ends included; any other is refused."""

    least: float
    most: float = math.inf

    @property
    def words(self) -> str:
        """As an error says it."""
        if math.isinf(self.most):
            return f"{self.least:g} or more"
        return f"from {self.least:g} to {self.most:g}"


SHARE = Bounds(0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Default:
    """The value of a per-parent parameter that a recipe does not give."""

    value: float


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a method, read from its signature.

    `choices` are the words that a `str` may be: `Literal["a", "b"]` in the signature.
    """

    name: str
    kind: type[float] | type[bool] | type[str]
    per_parent: bool
    default: Scalar | None
    range: Range | None
    choices: tuple[str, ...] = ()
    bounds: Bounds | None = None

    @property
    def required(self) -> bool:
        """Whether a recipe must give it."""
        return self.default is None


Check = Callable[..., str | None]
"""Says why a method can't merge with its parameters, or None if it can.

It gets the parents' names, `(parents,)`, and the parameters by keyword as recipes call them.
"""


@dataclass(frozen=True, slots=True)
class MergeMethod:
    """A registered method and what it asks for."""

    name: str
    title: str
    reference: str
    base: Base
    inputs: tuple[int, int | None]
    parameters: tuple[Parameter, ...]
    combine: Callable[..., Combination]
    check: Check | None = None

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of that name, if the method has it."""
        return next((p for p in self.parameters if p.name == name), None)


_METHODS: dict[str, MergeMethod] = {}
_Function = TypeVar("_Function", bound=Callable[..., Combination])


def merge_method(
    *,
    title: str,
    reference: str,
    base: Base,
    inputs: tuple[int, int | None] = (1, None),
    check: Check | None = None,
) -> Callable[[_Function], _Function]:
    """Register a function as the merge method of its name.

    Args:
        title: Name in prose.
        reference: Paper, or the page that defines it.
        base: What it does with the base model.
        inputs: Fewest and most parents, the base not counted unless it is a parent.
        check: Refuses numbers that are in bounds each but don't go together; asked while planning.
    """

    def register(function: _Function) -> _Function:
        name = function.__name__
        parameters = tuple(_read_parameters(function))
        _METHODS[name] = MergeMethod(
            name, title, reference, base, inputs, parameters, function, check
        )
        return function

    return register


def merge_methods() -> Mapping[str, MergeMethod]:
    """All methods by name, in name order."""
    import merge_core.methods  # noqa: F401  # pyright: ignore[reportUnusedImport]  # registers them

    return dict(sorted(_METHODS.items()))


def find_method(name: str) -> MergeMethod:
    """The method of that name.

    Raises:
        RecipeError: If there is none; names the nearest.
    """
    if name not in _METHODS and name not in (methods := merge_methods()):
        raise RecipeError(f"merge_method: '{name}' is unknown; {nearest(name, methods)}")
    return _METHODS[name]


def _read_parameters(function: Callable[..., Combination]) -> list[Parameter]:
    hints = typing.get_type_hints(function, include_extras=True)
    return [
        _read_parameter(parameter, hints[parameter.name])
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]


def _read_parameter(parameter: inspect.Parameter, hint: Any) -> Parameter:
    extras = get_args(hint)[1:] if get_origin(hint) is typing.Annotated else ()
    kind = get_args(hint)[0] if extras else hint
    span = next((extra for extra in extras if isinstance(extra, Range)), None)
    bounds = next((extra for extra in extras if isinstance(extra, Bounds)), None)
    default = next((extra.value for extra in extras if isinstance(extra, Default)), None)
    if parameter.default is not inspect.Parameter.empty:
        default = parameter.default
    per_parent = kind == PerParent
    name = parameter.name.rstrip("_")  # lambda is a word of Python's
    if get_origin(kind) is typing.Literal:
        return Parameter(name, str, False, default, None, get_args(kind))
    kind = bool if kind is bool else float
    return Parameter(name, kind, per_parent, default, span, bounds=bounds)
