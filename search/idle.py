"""Workers for whom a batch has no candidate: said before anything is spent."""

from search.bench import CheckedStudy
from search.config import RayConfig
from search.samplers import UNRACED


def idle_warning(
    study: CheckedStudy, ray: RayConfig | None, rungs: int | None = None
) -> str | None:
    """What to know where there are more workers than candidates in a batch.

    Args:
        study: With its batch.
        ray: The workers; None where there are none.
        rungs: In how many steps the search items are scored; None before that is known.

    Returns:
        None where every worker has a candidate.
    """
    search = study.config.search
    if ray is None or search.asynchronous or ray.workers <= search.batch:
        return None
    return (
        f"ray: {ray.workers} workers for batches of {search.batch}: "
        f"{_what_they_do(ray.workers, search.batch, _splits(study, rungs))}; search: {{batch: "
        f"{ray.workers}}} has a candidate for each (and proposes other candidates)"
    )


def _what_they_do(workers: int, batch: int, splits: bool | None) -> str:
    spare = f"{workers - batch} of them idle"
    if splits is None:
        return f"{spare}, unless candidates' items can be split over two of them (docs/workers.md)"
    if not splits:
        return spare
    halves = min(workers - batch, batch)
    told = f"the items of {halves} of {batch} candidates are split over two of them"
    if workers > 2 * batch:
        return f"{told}, and {workers - 2 * batch} of them idle"
    # The others are not done sooner, and the batch is told when all are.
    return told if halves == batch else f"{told}, which ends no batch sooner"


def _splits(study: CheckedStudy, rungs: int | None) -> bool | None:
    """Whether a candidate's items can be split over workers; None if rungs decide it."""
    raced = all(one.has_items for one in study.config.objectives if one.maximized)
    if not study.config.search.racing or rungs == 1:
        return False
    if raced and study.sampler[0] not in UNRACED:
        return False  # a race may end after the first rung
    return None if rungs is None else True
