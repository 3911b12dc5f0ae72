"""A walk through the layers of all parents, as Sakana's data-flow search writes it.

Akiba et al. 2025 (https://doi.org/10.1038/s42256-024-00975-8): the layers of all models stand in a
row, the row is repeated r times, an indicator says which of them the walk takes, and a scale
multiplies the stream where it jumps. Here indicators lean to the first parent's own walk: one of
its layers is left out, or one of another's is put in, where a number is far from the middle.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from search.dimensions import Dimension, Real, Values
from search.layouts import Step, own_walk, within
from search.picks import Place
from search.scales import Scales

_TAKEN = (0.25, 0.75)  # thresholds: of the first parent's own walk, of all other layers


@dataclass(frozen=True, slots=True)
class Walk:
    """Indicators for the layers of all origins, r times.

    Attributes:
        indicators: In the order of the walk.
        row: What each takes.
        leanings: The number above which each is taken.
        depths: Of each origin; the first is what the indicators lean to.
        depth: The fewest and the most layers of the output.
        scales: Of the stream at jumps, if they are searched.
    """

    indicators: tuple[Real, ...]
    row: tuple[Step, ...]
    leanings: tuple[float, ...]
    depths: tuple[tuple[str, int], ...]
    depth: tuple[int, int]
    scales: Scales | None

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """See `Form`."""
        return (*self.indicators, *(() if self.scales is None else self.scales.numbers.values()))

    def steps(self, values: Values) -> Sequence[Step]:
        """See `Form`: the clearest indicators, where the depth allows no more, or no less."""
        clear = [
            cast("float", values[d.name]) - leaning
            for d, leaning in zip(self.indicators, self.leanings, strict=True)
        ]
        taken = sum(one > 0 for one in clear)
        taken = min(max(taken, self.depth[0]), self.depth[1])
        order = sorted(range(len(clear)), key=lambda at: (-clear[at], at))
        steps = [self.row[at] for at in sorted(order[:taken])]
        found = within(steps, self.depth)
        return found if self.scales is None else self.scales.apply(found, values)

    def starts(self) -> Sequence[Values]:
        """See `Form`."""
        return [self._only(name) for name, _ in self.depths]

    def _only(self, origin: str) -> Values:
        """One origin's own walk, once."""
        first: dict[str, float | int | bool | str] = {}
        seen: set[Step] = set()
        for d, step, leaning in zip(self.indicators, self.row, self.leanings, strict=True):
            taken = step.origin == origin and step not in seen
            seen.add(step)
            agrees = taken == (leaning < 0.5)
            first[d.name] = 0.5 if agrees else (0.9 if taken else 0.1)
        return first

    def extremes(self) -> Sequence[Values]:
        """See `Form`."""
        return [{d.name: far for d in self.indicators} for far in (1.0, 0.0)]

    def told(self) -> str:
        """See `Form`."""
        names = " and ".join(f"{depth} of {name}" for name, depth in self.depths)
        times = len(self.row) // sum(depth for _, depth in self.depths)
        again = "" if times == 1 else f", {times} times"
        low, high = self.depth
        return f"a walk through {names}{again}; {low} to {high} layers"


def walk(
    repetitions: int,
    depths: tuple[tuple[str, int], ...],
    depth: tuple[int, int],
    place: Place,
    scales: Scales | None,
) -> Walk:
    """Make the indicators.

    Args:
        repetitions: How often the row of all layers is repeated.
        depths: Of each origin, the one to lean to first.
        depth: The fewest and the most layers of the output.
        place: What begins the names of the dimensions; their methods; under what they exist.
        scales: See `Walk`.
    """
    prefix, methods, under = place
    row = [step for name, count in depths for step in own_walk(name, count)]
    first = depths[0][0]
    names: list[str] = []
    leanings: list[float] = []
    for time in range(repetitions):
        for step in row:
            again = f"again{time}." if time else ""
            names.append(f"{prefix}{again}{step.origin}.layer{step.layer:02d}")
            leanings.append(_TAKEN[0] if not time and step.origin == first else _TAKEN[1])
    marks = tuple(Real(n, 0.0, 1.0, False, methods, "layer", under, 0.5) for n in names)
    return Walk(marks, tuple(row * repetitions), tuple(leanings), depths, depth, scales)
