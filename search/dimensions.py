"""What a search draws: numbers, whole numbers and choices, and when each of them exists.

What a sampler draws is a coordinate. For most dimensions it is the value itself; under a prior it
is the share of the prior that lies below the value, and on a simplex a share of what is left. So
every sampler, whatever it knows of priors, draws from the same intervals.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from statistics import NormalDist

from merge_core.recipe import Scalar

Values = Mapping[str, float | int | bool | str]
"""Coordinates by dimension, of those dimensions that exist."""

METHOD = "merge_method"

Condition = tuple[str, tuple[Scalar, ...]]
"""A dimension's name, and its values under which another dimension exists."""


@dataclass(frozen=True, slots=True)
class Prior:
    """Where a number is likely: a normal distribution, cut to the range `low` to `high`."""

    mean: float
    sd: float
    low: float
    high: float

    def value(self, share: float) -> float:
        """The value below which that share of the prior lies, 0 to 1."""
        normal, (below, within) = self._parts()
        place = below + share * within
        if share >= 1 or place >= 1:
            return self.high
        if share <= 0 or place <= 0:
            return self.low
        return min(max(normal.inv_cdf(place), self.low), self.high)

    def share(self, value: float) -> float:
        """The share of the prior that lies below a value."""
        normal, (below, within) = self._parts()
        return min(max((normal.cdf(value) - below) / within, 0.0), 1.0)

    def _parts(self) -> tuple[NormalDist, tuple[float, float]]:
        normal = NormalDist(self.mean, self.sd)
        below = normal.cdf(self.low)
        return normal, (below, normal.cdf(self.high) - below)


@dataclass(frozen=True, slots=True)
class Real:
    """A number between `low` and `high`, in coordinates.

    Attributes:
        name: Unique in its space.
        low: Smallest coordinate.
        high: Largest coordinate.
        log: Whether to draw by the logarithm.
        methods: The methods that have the parameter.
        parameter: Whose value it is.
        under: All conditions must hold for it to exist.
        start: The coordinate that is tried first, if the study says one.
        prior: Turns the coordinate, a share from 0 to 1, into the value.
    """

    name: str
    low: float
    high: float
    log: bool
    methods: tuple[str, ...]
    parameter: str
    under: tuple[Condition, ...] = ()
    start: float | None = None
    prior: Prior | None = None

    def value(self, coordinate: float) -> float:
        """What a coordinate means."""
        return self.prior.value(coordinate) if self.prior else coordinate

    def coordinate(self, value: float) -> float:
        """The coordinate of the nearest value in range; the inverse of `value`."""
        found = self.prior.share(value) if self.prior else value
        return min(max(found, self.low), self.high)

    @property
    def middle(self) -> float:
        """The middle of the coordinates, on their scale."""
        return math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number from `low` to `high`; see Real."""

    name: str
    low: int
    high: int
    log: bool
    methods: tuple[str, ...]
    parameter: str
    under: tuple[Condition, ...] = ()
    start: int | None = None

    def value(self, coordinate: float) -> int:
        """What a coordinate means."""
        return round(coordinate)

    def coordinate(self, value: float) -> int:
        """The nearest whole number in range."""
        return min(max(round(value), self.low), self.high)

    @property
    def middle(self) -> float:
        """The middle of the range, on its scale."""
        return math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2


@dataclass(frozen=True, slots=True)
class Choice:
    """One of `options`; see Real."""

    name: str
    options: tuple[Scalar, ...]
    methods: tuple[str, ...]
    parameter: str
    under: tuple[Condition, ...] = ()
    start: Scalar | None = None


Dimension = Real | Whole | Choice


def exists(dimension: Dimension, values: Values) -> bool:
    """Whether a dimension exists under the values of those before it."""
    return all(values.get(name) in allowed for name, allowed in dimension.under)


def lone(dimension: Dimension) -> Scalar:
    """The one value of a dimension that can take no other."""
    return dimension.options[0] if isinstance(dimension, Choice) else dimension.low


def drawn(dimension: Dimension, chance: Random) -> Scalar:
    """A value of chance, each as likely as any other."""
    if isinstance(dimension, Choice):
        return chance.choice(dimension.options)
    if isinstance(dimension, Whole):
        return chance.randint(dimension.low, dimension.high)
    return chance.uniform(dimension.low, dimension.high)


def is_number(value: object) -> bool:
    """Whether it is a finite number; `true` is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
