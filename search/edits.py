"""Layers in their order: from whom each block is, which are left out and which come twice."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import cast

from search.dimensions import Dimension, Real, Values, Whole
from search.layouts import Step
from search.picks import Pick, Place, pick

_KEPT = (0.25, 0.75)  # of an indicator: below it a layer is left out, above it comes twice
_USELESS = 2 / 3  # of the depth: where layers are missed least (arXiv:2403.03853)


@dataclass(frozen=True, slots=True)
class Edits:
    """Blocks with an origin each, and a depth budget around the parents' depth.

    Attributes:
        picks: The origin of each block.
        size: Layers of a block; the last may have fewer.
        length: Of all origins, in layers.
        depth: The fewest and the most layers of the output.
        drops: The number of layers left out and which they are; none in numbers.
        repeats: The number of layers that come once more and which they are; none in numbers.
        indicators: One number for each layer, which says whether it is left out or comes twice;
            then, where the depth allows that, one more for each further time. Empty where layers
            are counted.
        scale: Of what a layer adds when it comes again; None: as the first time.
    """

    picks: tuple[Pick, ...]
    size: int
    length: int
    depth: tuple[int, int]
    drops: tuple[Whole, ...]
    repeats: tuple[Whole, ...]
    indicators: tuple[Real, ...]
    scale: Real | None

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """See `Form`."""
        origins = [d for one in self.picks for d in one.dimensions]
        scale = () if self.scale is None else (self.scale,)
        return (*origins, *self.drops, *self.repeats, *self.indicators, *scale)

    def steps(self, values: Values) -> Sequence[Step]:
        """See `Form`."""
        origins = [one.option(values) for one in self.picks]
        times = self._indicated(values) if self.indicators else self._counted(values)
        factor = self._factor(values)
        return [
            Step(origins[layer // self.size], layer, factor if again else 1.0)
            for layer in range(self.length)
            for again in range(times[layer])
        ]

    def starts(self) -> Sequence[Values]:
        """See `Form`: then with layers left out or repeated where that costs least."""
        plain = self._edited(0, 0)
        options = self.picks[0].options
        whole = [self._everywhere(option) | plain for option in options]
        least, most = self.length - self.depth[0], self.depth[1] - self.length
        counts = [(least, 0), (least // 2, 0), (0, most), (0, most // 2)]
        wanted = dict.fromkeys((max(a, 0), max(b, 0)) for a, b in counts)
        edited = [whole[0] | self._edited(*pair) for pair in wanted if pair != (0, 0)]
        return [*whole, *edited]

    def extremes(self) -> Sequence[Values]:
        """See `Form`."""
        least, most = self.length - self.depth[0], self.depth[1] - self.length
        return [self._edited(max(least, 0), 0), self._edited(0, max(most, 0))]

    def told(self) -> str:
        """See `Form`."""
        blocks, options = len(self.picks), self.picks[0].options
        told = f"{self.length} layers"
        if len(options) > 1:
            each = "each" if self.size == 1 else f"in {blocks} blocks of {self.size}, each"
            told += f", {each} from {', '.join(options)}"
        low, high = self.depth
        if low < self.length:
            told += f", up to {self.length - low} left out"
        if high > self.length:
            told += f", up to {high - self.length} repeated"
        return told + (f"; {low} to {high} layers" if low < high else "")

    def _everywhere(self, option: str) -> dict[str, float | int | bool | str]:
        return {name: v for one in self.picks for name, v in one.values(option).items()}

    def _factor(self, values: Values) -> float:
        if self.scale is None or self.scale.name not in values:
            return 1.0
        return self.scale.value(cast("float", values[self.scale.name]))

    def _counted(self, values: Values) -> list[int]:
        """How often each layer comes: one less for each drop of it, one more for each repeat."""
        gone = set(_named(self.drops, values))
        more = Counter(_named(self.repeats, values))
        times = [int(at not in gone) + more[at] for at in range(self.length)]
        for at in _by_use(self.length):  # a layer that is named twice can be left out but once
            if sum(times) > self.depth[1] and times[at]:
                times[at] -= 1
        return times

    def _indicated(self, values: Values) -> list[int]:
        """The same of indicators; the clearest ones, where the depth allows no more."""
        numbers = [cast("float", values[d.name]) for d in self.indicators]
        order = sorted(range(len(numbers)), key=lambda at: numbers[at])
        out = sum(number < _KEPT[0] for number in numbers[: self.length])
        more = sum(number > _KEPT[1] for number in numbers)
        low, high = (bound - self.length for bound in self.depth)
        out = min(out, max(-low, 0))
        more = min(more, max(high, 0))
        if more - out > high:
            out = more - high
        if more - out < low:
            more = out + low
        gone = set([at for at in order if at < self.length][:out])
        again = Counter(at % self.length for at in order[len(order) - more :])
        return [int(at not in gone) + again[at] for at in range(self.length)]

    def _edited(self, out: int, again: int) -> dict[str, float | int | bool | str]:
        """Values that leave out or repeat so many, beginning where it matters least."""
        order = _by_use(self.length)
        if self.indicators:
            numbers = {d.name: 0.5 for d in self.indicators}
            numbers |= {self.indicators[at].name: 0.1 for at in order[:out]}
            times = range(0, len(self.indicators), self.length)
            places = [first + at for first in times for at in order]
            return dict(numbers | {self.indicators[at].name: 0.9 for at in places[:again]})
        repeated = list(islice(cycle(order), again))
        return {**_stated(self.drops, order[:out]), **_stated(self.repeats, repeated)}


def edits(
    picks: tuple[Pick, ...],
    size: int,
    length: int,
    depth: tuple[int, int],
    place: Place,
    *,
    numbers: bool,
    scale: Real | None,
) -> Edits:
    """Make the dimensions of what is left out and repeated.

    Args:
        picks: See `Edits`, as `size`, `length`, `depth` and `scale`.
        size: Of a block.
        length: Of all origins.
        depth: The fewest and the most layers.
        place: What begins the names of the dimensions; their methods; under what they exist.
        numbers: Whether every layer has indicators, or drops and repeats are counted and placed.
        scale: Of repeated layers.
    """
    prefix, methods, under = place
    low, high = depth
    if numbers and low < high:
        times = range(max(1, -(-high // length) - 1))  # that a layer may come beside the first
        again = [f"again{time}." if time else "" for time in times]
        names = [f"{prefix}{one}layer{at:02d}" for one in again for at in range(length)]
        marks = tuple(Real(n, 0.0, 1.0, False, methods, "layer", under, 0.5) for n in names)
        return Edits(picks, size, length, depth, (), (), marks, scale if high > length else None)
    drops = _places("drop", max(length - high, 0), max(length - low, 0), length, place)
    repeats = _places("repeat", max(low - length, 0), max(high - length, 0), length, place)
    scale = scale if repeats else None
    if scale is not None and repeats[0].low == 0:  # without a repeated layer it means nothing
        counts = (repeats[0].name, tuple(range(1, repeats[0].high + 1)))
        scale = replace(scale, under=(*scale.under, counts))
    return Edits(picks, size, length, depth, drops, repeats, (), scale)


def _places(
    what: str,
    least: int,
    most: int,
    length: int,
    place: Place,
) -> tuple[Whole, ...]:
    """How many, then which layers, each only where there are as many."""
    prefix, methods, under = place
    if most == 0:
        return ()
    start = min(max(least, 0), most)
    count = f"{prefix}{what}s"
    first = Whole(count, least, most, False, methods, what, under, start)
    which = [
        Whole(
            f"{prefix}{what}{at + 1}",
            0,
            length - 1,
            False,
            methods,
            what,
            (*under, (count, tuple(range(at + 1, most + 1)))),
        )
        for at in range(most)
    ]
    return (first, *which)


def _by_use(length: int) -> list[int]:
    """Layers, those that are missed least first."""
    return sorted(range(length), key=lambda at: abs(at / max(length - 1, 1) - _USELESS))


def _named(places: Sequence[Whole], values: Values) -> list[int]:
    """The layers that the values name."""
    if not places:
        return []
    count = int(values[places[0].name])
    return [int(values[d.name]) for d in places[1 : count + 1]]


def _stated(places: Sequence[Whole], layers: Sequence[int]) -> dict[str, int]:
    """Values that name layers; as many as must be named, if those are more."""
    if not places:
        return {}
    count = max(len(layers), places[0].low)
    named = dict(zip((d.name for d in places[1:]), layers, strict=False))
    return {places[0].name: count} | named


def origin_picks(
    origins: tuple[str, ...],
    blocks: int,
    place: Place,
    *,
    numbers: bool,
    between: str,
) -> tuple[Pick, ...]:
    """The origin of each block."""
    prefix, methods, under = place
    return tuple(
        pick(f"{prefix}origin{at:02d}", origins, methods, under, numbers=numbers, between=between)
        for at in range(blocks)
    )
