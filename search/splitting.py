"""One candidate's items on several workers: each merges it and answers some of the rungs.

Rungs have batches of their own, raced or not, so the joined outcome is that of one worker, to the
bit. What finishes last counts: of rungs at every eighth, two, four and eight workers have equal
parts; of rungs at 1/8, 1/4, 1/2 and all, two have, and a third has nothing to gain.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import combinations, pairwise

from evals.answering import Practice
from evals.harness import Harness
from evals.items import Role
from evals.pieces import joined
from search.evaluators import Job
from search.trial import Outcome, judged, reason_of


def split(job: Job, ends: Sequence[Sequence[int]], most: int) -> tuple[Job, ...]:
    """A job as the jobs of several workers, or as it is where that wins nothing.

    A race is not split, since it may end early; nor are other items than the search's, which are
    scored in one go.

    Args:
        job: Of a whole candidate.
        ends: Items of each benchmark up to each rung, `(rungs, benchmarks)`: `Harness.rungs`.
        most: Workers that are free for it.
    """
    if job.race is not None or job.role is not Role.SEARCH:
        return (job,)
    totals = [0, *map(sum, ends)]
    parts = divided([end - start for start, end in pairwise(totals)], most)
    if len(parts) == 1:
        return (job,)
    return tuple(
        replace(job, rungs=part, measure=job.measure and part.start == 0) for part in parts
    )


def divided(sizes: Sequence[float], most: int) -> tuple[range, ...]:
    """Neighbouring rungs in groups, the largest as small as can be; of equals the fewest groups.

    Args:
        sizes: Items of each rung.
        most: Groups at most; one in any case.
    """
    count = len(sizes)
    edges = (
        (0, *cuts, count)
        for extra in range(min(max(most, 1), count))
        for cuts in combinations(range(1, count), extra)
    )
    ways = (tuple(range(*pair) for pair in pairwise(one)) for one in edges)
    return min(ways, key=lambda parts: max(sum(sizes[at] for at in part) for part in parts))


def join(
    parts: Sequence[Outcome], harness: Harness, worst: Mapping[str, Mapping[str, float]]
) -> Outcome:
    """The outcome that one worker would have given for all rungs.

    Args:
        parts: Of all the jobs that `split` made, in its order.
        harness: Of this study, to make scores of results.
        worst: As in `judged`.
    """
    first, practice = parts[0], _practice(parts)
    pieces = [part.piece for part in parts if part.piece is not None]
    if len(pieces) < len(parts):
        lost = next(part for part in parts if part.piece is None)
        return replace(lost, practice=practice)
    try:
        card = harness.card(Role.SEARCH, reduce(joined, pieces))
    except Exception as error:  # a task's own code
        return Outcome(None, reason_of(error), first.merge_seconds, practice=practice)
    # One worker takes figures without items last, so their failure comes last.
    if (reason := card.failure or first.failure) is not None:
        return Outcome(None, reason, first.merge_seconds, practice=practice)
    return judged(replace(first, scorecard=card, piece=None, practice=practice), worst)


def _practice(parts: Sequence[Outcome]) -> Practice | None:
    known = [part.practice for part in parts if part.practice is not None]
    return reduce(Practice.joined, known) if known else None
