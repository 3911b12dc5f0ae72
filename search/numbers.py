"""Read one hole of a parameter: a range, or a choice of values."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from merge_core.errors import RecipeError
from merge_core.keys import nearest
from merge_core.recipe import Scalar, read_settings
from merge_core.registry import MergeMethod, Parameter, Range
from search.dimensions import Choice, Prior, Real, Whole, is_number
from search.scopes import Scope
from search.space import Branch, Hole, Share, Spread, unbroken
from search.spreads import read_spread

_RANGE_KEYS = ("range", "by", "knots", "per", "log", "integer", "start", "prior")
_HOLE_KEYS = (*_RANGE_KEYS, "choice", "simplex")
_SIMPLEX_KEYS = ("simplex", "by", "knots", "per")

Tell = Callable[[str], None]


def read_value(
    value: Any, scope: Scope, parameter: str, owners: list[MergeMethod], tell: Tell
) -> Any:
    """A parameter's value, with a hole if it is one.

    Args:
        value: As the file has it.
        scope: Its place; the prefix is the name of its dimensions.
        parameter: Whose value.
        owners: The methods that have the parameter.
        tell: Is told every mistake.
    """
    place = scope.where
    if isinstance(value, list) and any(holes_in(entry) for entry in cast("list[Any]", value)):
        tell(f"{place}: a hole can't stand in a list; write one hole with 'by' and 'knots'")
        return cast("Any", value)
    if not isinstance(value, Mapping) or "value" in value:
        _check_plain(cast("Any", value), place, parameter, owners, tell)
        return cast("Any", value)
    hole = cast("Mapping[str, Any]", value)
    if unknown := [key for key in hole if key not in _HOLE_KEYS]:
        for key in unknown:
            tell(f"{place}.{key}: unknown key; {nearest(str(key), _HOLE_KEYS)}")
        if "range" not in hole and "choice" not in hole:
            return Hole(Spread(), ())
    if "choice" in hole:
        return _choice(hole, scope, parameter, owners, tell)
    if "range" in hole:
        return _range(hole, scope, parameter, owners, tell)
    if "simplex" in hole:
        tell(f"{place}: weights that sum to one stand beside the models, under 'parameters'")
    else:
        tell(f"{place}: a hole needs 'range', 'choice' or 'simplex'")
    return Hole(Spread(), ())


def _check_plain(
    value: Any, place: str, parameter: str, owners: list[MergeMethod], tell: Tell
) -> None:
    """Tell what is wrong with a value that is no hole."""
    try:
        settings = read_settings(value, place)
    except RecipeError as error:
        tell(str(error))
        return
    asked = [p for m in owners if (p := m.parameter(parameter))]
    for setting in settings:
        given = setting.value if isinstance(setting.value, tuple) else (setting.value,)
        for word in (one for one in given if isinstance(one, str)):
            if not all(_fits(one, word) for one in asked):
                tell(f"{place}: '{parameter}' can't be {word!r}{_hint(word, parameter, owners)}")


def _hint(word: str, parameter: str, owners: list[MergeMethod]) -> str:
    words = parameter_words(parameter, owners)
    return f"; {nearest(word, words)}" if words else ""


def holes_in(entry: object) -> bool:
    """Whether a list entry tries to be a hole, itself or in its `value`."""
    if not isinstance(entry, Mapping):
        return False
    data = cast("Mapping[str, object]", entry)
    return "range" in data or "choice" in data or holes_in(data.get("value"))


def is_simplex(value: object) -> bool:
    """Whether a parameter's value says that those of the models sum to one."""
    return isinstance(value, Mapping) and "simplex" in value


def read_shares(
    hole: Mapping[str, Any], scope: Scope, names: list[str], parameter: str, tell: Tell
) -> list[Share]:
    """The parts of weights that sum to one, `(models,)`.

    Args:
        hole: `{simplex: true}`, perhaps with `by`, `knots` or `per`.
        scope: The place of the models.
        names: What each model's weight is called, `(models,)`.
        parameter: Whose values they are.
        tell: Is told every mistake.
    """
    place = scope.where
    for key in hole:
        if key not in _SIMPLEX_KEYS:
            tell(f"{place}.{key}: no key of a simplex; known: {', '.join(_SIMPLEX_KEYS)}")
    if hole["simplex"] is not True:
        tell(f"{place}.simplex: expected true, got {hole['simplex']!r}")
    owners = [m for m in scope.methods if m.parameter(parameter)]
    methods, under = tuple(m.name for m in owners), scope.owned(owners)
    spread = read_spread(hole, scope.layers, place, tell)
    starts = unbroken([1 / len(names)] * len(names))
    cut = [spread.names(name) for name in names[:-1]]
    numbers = tuple(
        tuple(
            tuple(
                Real(own[group][knot], 0.0, 1.0, False, methods, parameter, under, start)
                for own, start in zip(cut, starts, strict=True)
            )
            for knot in range(spread.knots)
        )
        for group in range(len(spread.groups))
    )
    return [Share(spread, numbers, at) for at in range(len(names))]


def _choice(
    hole: Mapping[str, Any],
    scope: Scope,
    parameter: str,
    owners: list[MergeMethod],
    tell: Tell,
) -> Any:
    place, name = scope.where, scope.prefix
    if set(hole) - {"choice", "start"}:
        tell(f"{place}: 'choice' takes no other key than 'start'")
    pairs = _options(hole["choice"])
    if pairs is None:
        tell(f"{place}.choice: expected a list of two or more values")
        return Hole(Spread(), ())
    asked = [p for m in owners if (p := m.parameter(parameter))]
    for _, option in pairs:
        if not isinstance(option, list | Mapping) and not all(_fits(p, option) for p in asked):
            hint = _hint(str(option), parameter, owners)
            tell(f"{place}.choice: '{parameter}' can't be {option!r}{hint}")
    labels = tuple(label for label, _ in pairs)
    if len(set(map(str, labels))) < len(labels):
        tell(f"{place}.choice: each value once")
    start = hole.get("start")
    if start is not None and start not in labels:
        tell(f"{place}.start: {start!r} is none of {', '.join(map(str, labels))}")
    methods, under = tuple(m.name for m in owners), scope.owned(owners)
    choice = Choice(name, labels, methods, parameter, under, start)
    inner = replace(scope, under=under)

    def node(at: int, label: Scalar, option: Any) -> Any:
        if not isinstance(option, list | Mapping):
            return option  # is checked above
        place = inner.option(at, name, cast("str", label), f"{name}.{label}")
        return read_value(option, place, parameter, owners, tell)

    nodes = tuple(node(at, label, option) for at, (label, option) in enumerate(pairs))
    return Branch(choice, nodes)


def _options(options: Any) -> list[tuple[Scalar, Any]] | None:
    """Values to choose from, each with what it is called."""
    if isinstance(options, Mapping):
        pairs = cast("Mapping[Any, Any]", options).items()
        return [(str(label), _number(option)) for label, option in pairs]
    if not isinstance(options, list) or len(cast("list[Any]", options)) < 2:
        return None
    found = [_number(option) for option in cast("list[Any]", options)]
    return [(_label(option, at), option) for at, option in enumerate(found)]


def _label(option: Any, at: int) -> Scalar:
    if isinstance(option, Mapping):
        return f"option{at}"
    return str(cast("Any", option)) if isinstance(option, list) else option


def _range(
    hole: Mapping[str, Any],
    scope: Scope,
    parameter: str,
    owners: list[MergeMethod],
    tell: Tell,
) -> Hole:
    place = scope.where
    if words := parameter_words(parameter, owners):
        tell(
            f"{place}: '{parameter}' is one of {', '.join(words)}, so it has no range; write "
            "{choice: [...]} of them"
        )
        return Hole(Spread(), ())
    spread = read_spread(hole, scope.layers, place, tell)
    one = _number_dimension(hole, scope, parameter, owners, spread, tell)
    names = spread.names(scope.prefix)
    return Hole(spread, tuple(tuple(replace(one, name=name) for name in row) for row in names))


def _number_dimension(
    hole: Mapping[str, Any],
    scope: Scope,
    parameter: str,
    owners: list[MergeMethod],
    spread: Spread,
    tell: Tell,
) -> Real | Whole:
    place = scope.where
    span = _span(hole, place, parameter, owners, tell)
    methods, under = tuple(m.name for m in owners), scope.owned(owners)
    start = _start(hole.get("start"), span, place, tell)
    prior = _prior(hole, span, place, tell)
    if _flag(hole, "integer", place, tell):
        if spread.knots > 1 and spread.steps is None:
            tell(f"{place}: whole numbers can't be interpolated between knots; write 'per'")
        if not (span.low.is_integer() and span.high.is_integer()):
            tell(f"{place}.range: expected whole numbers with integer: true, got {hole['range']}")
        if start is not None and not start.is_integer():
            tell(f"{place}.start: expected a whole number with integer: true, got {start:g}")
        whole = None if start is None else int(start)
        low, high = int(span.low), int(span.high)
        return Whole("", low, high, span.log, methods, parameter, under, whole)
    if prior is None:
        return Real("", span.low, span.high, span.log, methods, parameter, under, start)
    first = prior.share(min(max(prior.mean if start is None else start, span.low), span.high))
    return Real("", 0.0, 1.0, False, methods, parameter, under, first, prior)


def _span(
    hole: Mapping[str, Any], place: str, parameter: str, owners: list[MergeMethod], tell: Tell
) -> Range:
    stated, log = hole["range"], _flag(hole, "log", place, tell)
    if stated == "auto":
        declared = _declared(parameter, owners)
        if declared is None:
            tell(f"{place}.range: '{parameter}' declares no range; give one")
        return declared or Range(0.0, 1.0)
    if isinstance(stated, list):
        stated = [_number(end) for end in cast("list[Any]", stated)]
    match stated:
        case [int() | float() as low, int() | float() as high] if _ordered(low, high):
            if log and low <= 0:
                tell(f"{place}.range: a logarithmic range must start above 0")
            _check_bounds(low, high, place, parameter, owners, tell)
            return Range(float(low), float(high), log and low > 0)
        case _:
            tell(f"{place}.range: expected [low, high] with low < high, or auto, got {stated!r}")
            return Range(0.0, 1.0)


def _check_bounds(
    low: float, high: float, place: str, parameter: str, owners: list[MergeMethod], tell: Tell
) -> None:
    for method in owners:
        found = method.parameter(parameter)
        bounds = found.bounds if found else None
        if bounds and not bounds.least <= low <= high <= bounds.most:
            tell(
                f"{place}.range: '{parameter}' of '{method.name}' must be {bounds.words}, "
                f"got [{low:g}, {high:g}]"
            )


def _start(start: Any, span: Range, place: str, tell: Tell) -> float | None:
    if start is None:
        return None
    value = _number(start)
    if not is_number(value) or not span.low <= value <= span.high:
        tell(f"{place}.start: expected a number from {span.low:g} to {span.high:g}, got {start!r}")
        return None
    return float(value)


def _prior(hole: Mapping[str, Any], span: Range, place: str, tell: Tell) -> Prior | None:
    stated = hole.get("prior")
    if stated is None:
        return None
    if span.log or hole.get("integer"):
        tell(f"{place}.prior: stands with neither 'log' nor 'integer'; leave one out")
    match stated:
        case {"mean": mean, "sd": sd, **rest} if not rest and is_number(mean) and is_number(sd):
            if sd > 0:
                return _reachable(Prior(float(mean), float(sd), span.low, span.high), place, tell)
        case _:
            pass
    tell(f"{place}.prior: expected {{mean: number, sd: number above 0}}, got {stated!r}")
    return None


def _reachable(prior: Prior, place: str, tell: Tell) -> Prior | None:
    """A prior far off its range leaves nothing of it to draw from."""
    nearest_in = min(max(prior.mean, prior.low), prior.high)
    if abs(nearest_in - prior.mean) > 5 * prior.sd:
        tell(f"{place}.prior: the range lies more than 5 sd from the mean; move one of them")
        return None
    return prior


def _flag(hole: Mapping[str, Any], key: str, place: str, tell: Tell) -> bool:
    value = hole.get(key, False)
    if not isinstance(value, bool):
        tell(f"{place}.{key}: expected true or false, got {value!r}")
        return False
    return value


def _number(value: Any) -> Any:
    """A number that YAML reads as a word (1e-3) as a number; anything else as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _fits(parameter: Parameter, value: Any) -> bool:
    if parameter.kind is str:
        return value in parameter.choices
    if parameter.kind is bool:
        return isinstance(value, bool)
    return isinstance(value, int | float) and not isinstance(value, bool)


def parameter_words(parameter: str, owners: list[MergeMethod]) -> tuple[str, ...]:
    """The words that a parameter may be; none for numbers and booleans."""
    found = [m.parameter(parameter) for m in owners]
    return next((p.choices for p in found if p and p.choices), ())


def _declared(parameter: str, owners: list[MergeMethod]) -> Range | None:
    found = [m.parameter(parameter) for m in owners]
    return next((p.range for p in found if p and p.range), None)


def _ordered(low: float, high: float) -> bool:
    booleans = isinstance(low, bool) or isinstance(high, bool)
    return not booleans and math.isfinite(low) and math.isfinite(high) and low < high
