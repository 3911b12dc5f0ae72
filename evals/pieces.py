"""What some rungs of a role's items gave: enough to join it with the rest, to the bit.

Rungs have batches of their own, so who answers them, and where, changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evals.scorecard import Value

Results = Mapping[str, Sequence[Value]]
"""A benchmark's per-item results: metric key → values in the ledger's order."""

Tally = tuple[int, int]
"""Generations that show a symptom, of how many; shares of parts could not be joined exactly."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The results of neighbouring rungs; benchmarks in study order.

    Attributes:
        counts: Items of each benchmark, `(benchmarks,)`.
        results: Of each benchmark.
        symptoms: Of each benchmark what went wrong with how many of its generations.
        seconds: Wall time of answering and judging the items.
    """

    counts: tuple[int, ...]
    results: tuple[Results, ...]
    symptoms: tuple[Mapping[str, Tally], ...]
    seconds: float


def joined(first: Piece, then: Piece) -> Piece:
    """Two pieces as one.

    Args:
        first: Up to some rung.
        then: From the next rung on.
    """
    return Piece(
        tuple(a + b for a, b in zip(first.counts, then.counts, strict=True)),
        tuple(_results(a, b) for a, b in zip(first.results, then.results, strict=True)),
        tuple(_tallies(a, b) for a, b in zip(first.symptoms, then.symptoms, strict=True)),
        first.seconds + then.seconds,
    )


def _results(first: Results, then: Results) -> Results:
    return {key: [*first.get(key, ()), *then.get(key, ())] for key in {**first, **then}}


def _tallies(first: Mapping[str, Tally], then: Mapping[str, Tally]) -> Mapping[str, Tally]:
    pairs = {name: (first.get(name, (0, 0)), then.get(name, (0, 0))) for name in {**first, **then}}
    return {name: (a[0] + b[0], a[1] + b[1]) for name, (a, b) in pairs.items()}
