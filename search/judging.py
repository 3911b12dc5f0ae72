"""What a trial is worth by a study's goals: its values, and what it misses of limits."""

from collections.abc import Sequence
from dataclasses import replace

from search.goals import Goals, Result
from search.record import Record


def valued(record: Record, goals: Goals, parents: Sequence[Result]) -> Record:
    """A record with its values and what it misses, if it has scores.

    Args:
        record: Of a trial that ended.
        goals: The study's.
        parents: What is known of every parent on the search items.
    """
    if record.scorecard is None:
        return record
    if record.stopped is not None:
        return _estimated(record, record.stopped.values, goals)
    result = Result((record.scorecard,), record.figures)
    values = goals.values(result) if goals.pareto else None
    missed = goals.missed(result, parents)
    return replace(record, value=goals.mean(result), values=values, missed=missed)


def _estimated(record: Record, values: tuple[float, ...], goals: Goals) -> Record:
    """A stopped candidate's record: whether it keeps to limits isn't known, so it does."""
    missed = {aim.name: 0.0 for aim in goals.limited}
    mean = goals.estimated(values)
    return replace(record, value=mean, values=values if goals.pareto else None, missed=missed)
