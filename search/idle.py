"""Workers for whom a batch has no candidate: said before anything is spent."""

from collections.abc import Sequence
from itertools import pairwise

from search.bench import CheckedStudy
from search.config import RayConfig
from search.samplers import UNRACED, Used
from search.splitting import divided


def idle_warning(
    study: CheckedStudy,
    ray: RayConfig | None,
    shares: Sequence[float] | None = None,
    used: Used = (),
) -> str | None:
    """What to know where there are more workers than candidates in a batch.

    Args:
        study: With its batch.
        ray: The workers; None where there are none.
        shares: Of the search items that have been scored after each step; None before that is
            known.
        used: What proposed in the study so far.

    Returns:
        None where every worker has a candidate.
    """
    search = study.config.search
    if ray is None or search.asynchronous or ray.workers <= search.batch:
        return None
    if _whole(study, used):
        told = _what_they_do(ray.workers, search.batch, (1.0,))
    elif shares is not None:
        told = _what_they_do(ray.workers, search.batch, shares)
    else:
        spare = ray.workers - search.batch
        told = f"{spare} of them idle, unless candidates' items can be split (docs/workers.md)"
    return (
        f"ray: {ray.workers} workers for batches of {search.batch}: {told}; search: {{batch: "
        f"{ray.workers}}} has a candidate for each (and proposes other candidates)"
    )


def _what_they_do(workers: int, batch: int, shares: Sequence[float]) -> str:
    """How many of them get a part of a candidate, and how many get nothing."""
    sizes = [end - start for start, end in pairwise((0.0, *shares))]
    parts: list[int] = []
    idle = workers
    for left in range(batch, 0, -1):  # as `search.ray_evaluators` begins them
        parts.append(len(divided(sizes, idle // left)))
        idle -= parts[-1]
    shared = [count for count in parts if count > 1]
    if not shared:
        return f"{idle} of them idle"
    several = " to ".join(map(str, dict.fromkeys((min(shared), max(shared)))))
    told = f"the items of {len(shared)} of {batch} candidates are split over {several} of them"
    if idle:
        told += f", and {idle} of them idle"
    # The others are not done sooner, and the batch is told when all are.
    return told if len(shared) == batch else f"{told}, which ends no batch sooner"


def _whole(study: CheckedStudy, used: Used) -> bool:
    """Whether candidates' items are never split: a race may end after the first step."""
    search = study.config.search
    raced = all(one.has_items for one in study.config.objectives if one.maximized)
    return not search.racing or (raced and study.sampler(used)[0] not in UNRACED)
