"""One of several words as a dimension: a choice, or numbers for samplers that know only numbers."""

from dataclasses import dataclass
from typing import cast

from search.dimensions import Choice, Condition, Dimension, Real, Values

Place = tuple[str, tuple[str, ...], tuple[Condition, ...]]
"""What begins the names of a form's dimensions, the methods that have them, and what they need."""


@dataclass(frozen=True, slots=True)
class Pick:
    """A word of several.

    As numbers, up to three words lie on a line in the order in which they are given, so that what
    lies between two of them should stand between them; of more, the one with the largest number is
    taken.

    Attributes:
        options: The words, the usual one first.
        line: The words in their order on the line; empty where they aren't numbers.
        dimensions: None where there is one word only.
    """

    options: tuple[str, ...]
    line: tuple[str, ...]
    dimensions: tuple[Dimension, ...]

    def option(self, values: Values) -> str:
        """The word that the values mean."""
        if not self.dimensions:
            return self.options[0]
        if not self.line:
            return str(values[self.dimensions[0].name])
        numbers = [cast("float", values[d.name]) for d in self.dimensions]
        if len(numbers) == 1:
            return self.line[min(int(numbers[0] * len(self.line)), len(self.line) - 1)]
        return self.line[max(range(len(numbers)), key=lambda at: numbers[at])]

    def values(self, option: str) -> Values:
        """Values that mean a word."""
        if not self.dimensions:
            return {}
        if not self.line:
            return {self.dimensions[0].name: option}
        if len(self.dimensions) == 1:
            place = (self.line.index(option) + 0.5) / len(self.line)
            return {self.dimensions[0].name: place}
        pairs = zip(self.dimensions, self.line, strict=True)
        return {d.name: 0.75 if word == option else 0.25 for d, word in pairs}


def pick(
    name: str,
    options: tuple[str, ...],
    methods: tuple[str, ...],
    under: tuple[Condition, ...],
    *,
    numbers: bool,
    between: str | None = None,
) -> Pick:
    """One of several words.

    Args:
        name: Of its dimension, or the beginning of the names of several.
        options: The words.
        methods: As in `Real`.
        under: As in `Real`.
        numbers: Whether to write it as numbers.
        between: The word that stands in the middle of the line.
    """
    if len(options) == 1:
        return Pick(options, (), ())
    if not numbers:
        return Pick(options, (), (Choice(name, options, methods, "origin", under),))
    others = [option for option in options if option != between]
    middle = [between] if between in options else []
    half = (len(others) + 1) // 2
    line = (*others[:half], *middle, *others[half:])
    names = [name] if len(line) <= 3 else [f"{name}.{word}" for word in line]
    dimensions = [Real(own, 0.0, 1.0, False, methods, "origin", under) for own in names]
    return Pick(options, line, tuple(dimensions))
