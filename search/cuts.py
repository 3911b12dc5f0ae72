"""A frankenmerge: ordered ranges of layers whose borders, donors and overlaps are searched."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from search.dimensions import Condition, Dimension, Real, Values, Whole
from search.layouts import Step, own_walk, within
from search.picks import Pick, Place, pick
from search.scales import Scales


@dataclass(frozen=True, slots=True)
class Cuts:
    """Pieces from bottom to top, each of one donor.

    A border lies at a share of the donor's depth, so that donors of different depths fit. Where an
    overlap is 4, the piece above the border begins 4 layers below it, and they come twice; where
    it is -2, two layers are left out.

    Attributes:
        count: How many borders are used; None: all.
        borders: Shares of the depth; any order.
        overlaps: In layers, at each border.
        donors: Of each piece: one more than borders.
        depths: Of each origin.
        depth: The fewest and the most layers of the output.
        scales: Of the stream at jumps, if they are searched.
    """

    count: Whole | None
    borders: tuple[Real, ...]
    overlaps: tuple[Whole, ...]
    donors: tuple[Pick, ...]
    depths: tuple[tuple[str, int], ...]
    depth: tuple[int, int]
    scales: Scales | None

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """See `Form`."""
        head = () if self.count is None else (self.count,)
        donors = [d for one in self.donors for d in one.dimensions]
        scales = () if self.scales is None else self.scales.numbers.values()
        return (*head, *donors, *self.borders, *self.overlaps, *scales)

    def steps(self, values: Values) -> Sequence[Step]:
        """See `Form`: the overlaps give way where the depth allows no more, or no less."""
        used = self._used(values)
        order = sorted(range(used), key=lambda at: cast("float", values[self.borders[at].name]))
        borders = [cast("float", values[self.borders[at].name]) for at in order]
        overlaps = [int(values[self.overlaps[at].name]) for at in order]
        donors = [self.donors[at].option(values) for at in range(used + 1)]
        steps = self._fitting(borders, overlaps, donors)
        return steps if self.scales is None else self.scales.apply(steps, values)

    def _used(self, values: Values) -> int:
        return len(self.borders) if self.count is None else int(values[self.count.name])

    def _fitting(
        self, borders: list[float], overlaps: list[int], donors: list[str]
    ) -> tuple[Step, ...]:
        low, high = self.depth
        steps = self._pieces(borders, overlaps, donors)
        while len(steps) > high and max(overlaps, default=0) > 0:
            overlaps[overlaps.index(max(overlaps))] -= 1
            steps = self._pieces(borders, overlaps, donors)
        while len(steps) < low and min(overlaps, default=0) < 0:
            overlaps[overlaps.index(min(overlaps))] += 1
            steps = self._pieces(borders, overlaps, donors)
        return within(steps or own_walk(*self.depths[0]), self.depth)

    def _pieces(
        self, borders: Sequence[float], overlaps: Sequence[int], donors: Sequence[str]
    ) -> tuple[Step, ...]:
        depths = dict(self.depths)
        edges = [0.0, *borders, 1.0]
        steps: list[Step] = []
        for at, donor in enumerate(donors):
            depth = depths[donor]
            start = round(edges[at] * depth) - (overlaps[at - 1] if at else 0)
            end = round(edges[at + 1] * depth)
            steps += [Step(donor, layer) for layer in range(max(start, 0), end)]
        return tuple(steps)

    def starts(self) -> Sequence[Values]:
        """See `Form`: then the first half of one origin under the second half of another."""
        options = [name for name, _ in self.depths]
        whole = [self._made([option] * len(self.donors)) for option in options]
        halves = [
            self._made([a if at <= len(self.borders) // 2 else b for at in range(len(self.donors))])
            for a in options
            for b in options
            if a != b
        ]
        return [*whole, *halves[:6]]

    def _made(self, donors: Sequence[str], overlap: int = 0) -> Values:
        made: dict[str, float | int | bool | str] = {}
        for one, donor in zip(self.donors, donors, strict=True):
            made |= one.values(donor)
        if self.count is not None:
            made[self.count.name] = len(self.borders) if len(set(donors)) > 1 else self.count.low
        kept = {d.name: d.coordinate(overlap) for d in self.overlaps}
        return made | {d.name: cast("float", d.start) for d in self.borders} | kept

    def extremes(self) -> Sequence[Values]:
        """See `Form`."""
        deepest = max(self.depths, key=lambda one: one[1])[0]
        lowest = min(self.depths, key=lambda one: one[1])[0]
        count = {} if self.count is None else {self.count.name: self.count.high}
        ends = [(deepest, self.depth[1]), (lowest, -self.depth[1])]
        return [{**self._made([name] * len(self.donors), far), **count} for name, far in ends]

    def told(self) -> str:
        """See `Form`."""
        names, borders = ", ".join(name for name, _ in self.depths), len(self.borders)
        pieces = f"{borders + 1}" if self.count is None else f"1 to {borders + 1}"
        low, high = self.depth
        spans = {(d.low, d.high) for d in self.overlaps}
        overlap = "".join(f", {a} to {b} layers of overlap at each border" for a, b in spans)
        return f"{pieces} pieces, each from {names}{overlap}; {low} to {high} layers"


def cuts(
    borders: int,
    overlap: tuple[int, int],
    depths: tuple[tuple[str, int], ...],
    depth: tuple[int, int],
    place: Place,
    *,
    numbers: bool,
    between: str,
    counted: bool,
    scales: Scales | None,
) -> Cuts:
    """Make the dimensions of a frankenmerge.

    Args:
        borders: How many.
        overlap: The smallest and the largest, in layers.
        depths: Of each origin.
        depth: The fewest and the most layers of the output.
        place: What begins the names of the dimensions; their methods; under what they exist.
        numbers: Whether donors are numbers.
        between: The origin that lies between two others.
        counted: Whether the number of borders is searched too.
        scales: See `Cuts`.
    """
    prefix, methods, under = place
    options = tuple(name for name, _ in depths)
    count = None
    if counted:
        count = Whole(f"{prefix}jumps", 0, borders, False, methods, "cut", under, 0)

    def exists(at: int) -> tuple[Condition, ...]:
        """Under what the border of that number exists, from 1 on."""
        used = tuple(range(at, borders + 1))
        return under if count is None or at == 0 else (*under, (count.name, used))

    donors = tuple(
        pick(f"{prefix}piece{at}", options, methods, exists(at), numbers=numbers, between=between)
        for at in range(borders + 1)
    )
    places = range(1, borders + 1)
    edges = tuple(
        Real(f"{prefix}cut{a}", 0.0, 1.0, False, methods, "cut", exists(a), a / (borders + 1))
        for a in places
    )
    usual = min(max(0, overlap[0]), overlap[1])
    laps = tuple(
        Whole(f"{prefix}overlap{a}", *overlap, False, methods, "overlap", exists(a), usual)
        for a in places
    )
    return Cuts(count, edges, laps, donors, depths, depth, scales)
