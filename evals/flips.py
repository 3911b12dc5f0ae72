"""Items fixed and items broken: where two models differ, with the item's text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from evals.harness import Benchmark, Item
from evals.items import Role
from evals.objective import item_scores, reading, unchanged
from evals.scorecard import Scorecard

_LENGTH = 100


@dataclass(frozen=True, slots=True)
class Flip:
    """An item on which a candidate differs from a reference.

    Attributes:
        task: The benchmark.
        place: Position among the role's items.
        text: The end of its question, on one line.
        change: The candidate's score minus the reference's; higher is better.
    """

    task: str
    place: int
    text: str
    change: float


def flips(
    candidate: Scorecard, reference: Scorecard, benchmarks: Sequence[Benchmark], role: Role
) -> tuple[Flip, ...]:
    """Every item that the candidate fixes or breaks, the largest changes of a benchmark first."""
    readings = [reading(benchmark) for benchmark in benchmarks]
    ours, theirs = item_scores(candidate, readings), item_scores(reference, readings)
    found: list[Flip] = []
    for benchmark, one, first, second in zip(benchmarks, readings, ours, theirs, strict=True):
        items = benchmark.items[role]
        moved = (first - second) * ~unchanged(one, candidate, reference)
        changes = [
            Flip(benchmark.name, at, item_text(items[at]), float(change))
            for at, change in enumerate(moved)
            if change
        ]
        found += sorted(changes, key=lambda flip: (-abs(flip.change), flip.place))
    return tuple(found)


def item_text(item: Item) -> str:
    """The end of an item's question on one line: what tells it from the others."""
    task: Any = item.task  # lm-eval declares less than it does
    found = (_text(ask, item.document) for ask in (task.doc_to_text, task.doc_to_target))
    question = next((text for text in found if text), None)
    if question is None:
        values = (value for value in item.document.values() if isinstance(value, str))
        question = " ".join(values)
    line = " ".join(question.split())
    return line if len(line) <= _LENGTH else f"…{line[1 - _LENGTH :]}"


def _text(ask: Callable[[Any], object], document: Any) -> str | None:
    """A text, if the task gives one here: some give an option's number, and some nothing."""
    try:
        text = ask(document)
    except Exception:  # a task's own code; the text is only for people
        return None
    return text if isinstance(text, str) and text.strip() else None
