"""What samplers look at: a space as distributions, recipes as points in a cube, trials by merit."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.space import Choice, Dimension, Real, SearchSpace

Number = FloatDistribution | IntDistribution
Params = Mapping[str, Any]

CONSTRAINTS = "constraints"  # a trial's user attribute: a list of floats, feasible at 0 and below
_MOST_PLACES = 64  # whole numbers of more values than this are searched as if they were real


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """All dimensions of a space in order, also those that only some choices have.

    What can take one value only is left out: there is nothing to learn about it.
    """
    known = {d.name: distribution(d) for d in space.dimensions}
    return {name: one for name, one in known.items() if not one.single()}


def distribution(dimension: Dimension) -> BaseDistribution:
    """What Optuna calls a dimension."""
    match dimension:
        case Choice():
            return CategoricalDistribution(dimension.options)
        case Real():
            return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
        case _:
            return IntDistribution(dimension.low, dimension.high, log=dimension.log)


@dataclass(frozen=True, slots=True)
class Cube:
    """Numbers as a point in the unit cube, choices as places in their lists.

    A parameter that a recipe lacks (its method has none) is in the middle, or in the first place.

    Attributes:
        numbers: In the cube's order: those of few whole values last.
        choices: In the order of the space.
        whole: How many values each of the last numbers can take.
    """

    numbers: Mapping[str, Number]
    choices: Mapping[str, CategoricalDistribution]
    whole: tuple[int, ...]

    def point(self, params: Params) -> NDArray[np.float64]:
        """A recipe's numbers: (numbers,) float64 between 0 and 1."""
        found = [
            _share(one, params[name]) if name in params else 0.5
            for name, one in self.numbers.items()
        ]
        return np.array(found, np.float64)

    def picks(self, params: Params) -> list[int]:
        """A recipe's choices, as places in their lists."""
        return [
            int(one.to_internal_repr(params[name])) if name in params else 0
            for name, one in self.choices.items()
        ]

    def params(self, point: Sequence[float], picks: Sequence[int]) -> dict[str, Any]:
        """The values of a point and of places; what is outside the cube is put on its wall."""
        numbers = zip(self.numbers.items(), point, strict=True)
        choices = zip(self.choices.items(), picks, strict=True)
        return {name: _value(one, share) for (name, one), share in numbers} | {
            name: one.to_external_repr(pick) for (name, one), pick in choices
        }

    def filled(self, params: Params) -> dict[str, Any]:
        """The values of all dimensions, where a recipe has only some."""
        middle = self.params([0.5] * len(self.numbers), [0] * len(self.choices))
        return middle | dict(params)


def cube(known: Mapping[str, BaseDistribution]) -> Cube:
    """The cube of a space's distributions."""
    choices = {n: d for n, d in known.items() if isinstance(d, CategoricalDistribution)}
    numbers = {n: cast("Number", d) for n, d in known.items() if n not in choices}
    numbers = dict(sorted(numbers.items(), key=lambda item: _places(item[1]) > 0))
    return Cube(numbers, choices, tuple(p for one in numbers.values() if (p := _places(one))))


def told(history: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials with values, in order of number; what racing stopped counts with what it reached."""
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    trials = [t for t in history if t.state in ended and t.values]
    return sorted(trials, key=lambda trial: trial.number)


def merit(trial: FrozenTrial, direction: StudyDirection) -> tuple[float, float]:
    """Smaller is better: feasible trials by value, and behind all of them the others.

    Those are ordered by the sum of what they exceed their constraints by, as in constrained
    domination (Deb et al. 2002, doi:10.1109/4235.996017).
    """
    sign = -1.0 if direction is StudyDirection.MAXIMIZE else 1.0
    return violation(trial), sign * cast("list[float]", trial.values)[0]


def violation(trial: FrozenTrial) -> float:
    """The sum of what a trial exceeds its constraints by; 0 for a feasible one."""
    stated = trial.user_attrs.get(CONSTRAINTS) or trial.constraints.values()
    return sum(max(0.0, value) for value in stated)


def view(study: Study, trials: Sequence[FrozenTrial]) -> Study:
    """A study in which a sampler sees these trials only.

    Optuna's samplers look for trials in their study, where a trial that is adopted after a kill
    would find what it stored itself, and where thousands are read for every proposal.
    """

    def visible(_: bool = True, states: Any = None, **__: object) -> list[FrozenTrial]:
        return [t for t in trials if states is None or t.state in states]

    seen = cast("Any", copy.copy(study))
    seen._get_trials = visible
    return seen


def filled(trials: Sequence[FrozenTrial], known: Cube) -> list[FrozenTrial]:
    """The trials, with a value for every dimension."""
    dimensions = len(known.numbers) + len(known.choices)
    return [t if len(t.params) >= dimensions else _filled(t, known) for t in trials]


def _filled(trial: FrozenTrial, known: Cube) -> FrozenTrial:
    whole = copy.copy(trial)
    whole.params = known.filled(trial.params)
    whole.distributions = {**known.numbers, **known.choices}
    return whole


def _places(one: Number) -> int:
    """How many values a whole number can take, or 0 if it is searched like a real one."""
    if isinstance(one, FloatDistribution) or one.log:
        return 0
    places = (one.high - one.low) // one.step + 1
    return places if places <= _MOST_PLACES else 0


def _share(one: Number, value: float) -> float:
    low, high = _ends(one)
    return ((math.log(value) if one.log else value) - low) / (high - low)


def _value(one: Number, share: float) -> float | int:
    low, high = _ends(one)
    value = low + min(max(float(share), 0.0), 1.0) * (high - low)
    value = min(max(math.exp(value) if one.log else value, one.low), one.high)
    if isinstance(one, FloatDistribution):
        return value
    return one.low + round((value - one.low) / one.step) * one.step


def _ends(one: Number) -> tuple[float, float]:
    low, high = float(one.low), float(one.high)
    return (math.log(low), math.log(high)) if one.log else (low, high)
