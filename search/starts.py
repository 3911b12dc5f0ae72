"""What a study tries first: its own start values and usual ones."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from merge_core.recipe import Scalar
from search.dimensions import METHOD, Choice, Dimension, Values, exists
from search.space import BRANCH, SearchSpace

Frame = Mapping[str, Scalar]
"""What is chosen of methods and of whole recipes."""


def first_points(space: SearchSpace) -> tuple[Values, ...]:
    """The study's own starts, then usual values; all different."""
    return _different([*_stated(space), *_usual_points(space)])


def frames(space: SearchSpace) -> list[dict[str, Scalar]]:
    """Every combination of methods and whole recipes."""
    found: list[dict[str, Scalar]] = [{}]
    for d in space.dimensions:
        if isinstance(d, Choice) and d.parameter in (METHOD, BRANCH):
            found = [
                frame | more
                for frame in found
                for more in ([{d.name: o} for o in d.options] if exists(d, frame) else [{}])
            ]
    return found


def usual(dimension: Dimension, level: float) -> Any:
    """The study's start value, or a usual one: weights at `level`, else the high end or middle."""
    if dimension.start is not None:
        return dimension.start
    if isinstance(dimension, Choice):
        return dimension.options[0]
    if dimension.parameter == "density":
        return dimension.high
    known = {"weight": level, "t": 0.5, "scale": 1.0, "lambda": 1.0}
    return dimension.coordinate(known.get(dimension.parameter, dimension.value(dimension.middle)))


def _stated(space: SearchSpace) -> Iterator[Values]:
    """The point of all start values, if the study says any."""
    said = any(d.start is not None for d in space.dimensions)
    if said:
        level = _average(space)
        yield space.draw(lambda d: usual(d, level))


def _usual_points(space: SearchSpace) -> Iterator[Values]:
    """Recipes that people try first: equal weights, from the plain average's to full ones."""
    for level in dict.fromkeys((_average(space), 0.5, 1.0)):
        for frame in frames(space):
            yield space.draw(partial(_answer, frame=frame, level=level))


def _answer(dimension: Dimension, frame: Frame, level: float) -> Any:
    chosen = frame.get(dimension.name)
    return usual(dimension, level) if chosen is None else chosen


def _average(space: SearchSpace) -> float:
    return 1 / max(1, len(set(space.models) - {space.base}))


def _different(points: list[Values]) -> tuple[Values, ...]:
    return tuple(point for at, point in enumerate(points) if point not in points[:at])
