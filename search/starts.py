"""What a study tries first: its own start values, known recipes, and usual values."""

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import accumulate, product
from typing import Any

from merge_core.recipe import Scalar
from search.dimensions import Choice, Dimension, Values
from search.known import fingerprint, frames, known_names, known_points
from search.layouts import Layout
from search.space import SearchSpace, holes

Frame = Mapping[str, Scalar]
"""What is chosen of methods and of whole recipes."""

_SHARE = 3  # one in so many trials: from all others a sampler learns what it asks for


def first_points(space: SearchSpace) -> tuple[Values, ...]:
    """The study's own starts, known recipes that it contains, usual values: different models."""
    points = [*_stated(space), *known_points(space), *_usual_points(space), *_orders(space)]
    different: dict[str, Values] = {}
    for point in points:
        different.setdefault(fingerprint(space.decode(point), space.depths), point)
    return tuple(different.values())


def starts_within(space: SearchSpace, trials: int, taken: int = 0) -> int:
    """How many of a space's points are tried before a sampler proposes, counted from the first.

    Known recipes cost nothing. All others together get a third of the trials; the candidates of an
    earlier study come first, and one more has room in any case: the study's own start values.

    Args:
        space: With its points.
        trials: The budget.
        taken: How many of the first points are candidates of an earlier study.
    """
    free = known_names(space)
    costs = [fingerprint(space.decode(p), space.depths) not in free for p in space.points]
    room = max(trials // _SHARE, sum(costs[:taken]) + 1)
    return sum(spent <= room for spent in accumulate(costs))


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
    for level in _levels(space):
        for frame in frames(space):
            yield space.draw(partial(_answer, frame=frame, level=level))


def _orders(space: SearchSpace) -> Iterator[Values]:
    """Orders of layers that are tried first: each origin's own, then others of the plain average.

    At other levels the others would only show again what a cut or a repeated layer costs.
    """
    first, *more = _levels(space)
    for node in (node for node in holes(space.template) if isinstance(node, Layout)):
        whole = node.whole()
        others = node.starts()[len(whole) :]
        pairs = [*product((first, *more), whole), *product((first,), others)]
        for level, start in pairs:
            fixed = {name: allowed[0] for name, allowed in node.dimensions[0].under} | dict(start)
            yield space.draw(partial(_answer, frame=fixed, level=level))


def _answer(dimension: Dimension, frame: Frame, level: float) -> Any:
    chosen = frame.get(dimension.name)
    return usual(dimension, level) if chosen is None else chosen


def _levels(space: SearchSpace) -> list[float]:
    """Of equal weights."""
    return list(dict.fromkeys((_average(space), 0.5, 1.0)))


def _average(space: SearchSpace) -> float:
    return 1 / max(1, len(set(space.models) - {space.base}))
