"""Where candidates are scored: in this process, or wherever a pool of workers is."""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from evals.items import Role
from merge_core.recipe import Recipe
from search.bench import Bench, Reference
from search.racing import Race
from search.trial import Outcome, evaluate


@dataclass(frozen=True, slots=True)
class Job:
    """One model to be scored; everything that a worker needs to know of it.

    Attributes:
        recipe: What to merge.
        role: On whose items.
        measure: Whether the norms of its tensors are wanted too.
        race: What it has to keep up with, or its scoring is stopped; None: nothing.
        rungs: Of the search items; the outcome is a piece for `search.splitting.join`. None: all
            items, and their scorecard.
    """

    recipe: Recipe
    role: Role
    measure: bool = False
    race: Race | None = None
    rungs: range | None = None


Begin = Callable[[int], bool]
"""Asked with a job's position just before it begins; False: neither it nor any later one."""


class Evaluators(Protocol):
    """Whoever scores candidates. They keep nothing between jobs that could change a result."""

    def learn(self, reference: Reference) -> None:
        """Hold every later candidate against the parents."""

    def score(
        self, jobs: Iterable[Job], begin: Begin | None = None
    ) -> Generator[tuple[int, Outcome]]:
        """Score jobs; each outcome with its job's position, as they come.

        A job is taken from `jobs` when somebody is free to do it and not before.
        """
        ...

    def ways(self) -> Sequence[str]:
        """How log-likelihoods are computed and why so, once something was scored."""
        ...


class InProcess:
    """Scores one candidate after another with a bench of this process."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def learn(self, reference: Reference) -> None:
        """See `Evaluators`."""
        self._bench.learn(reference)

    def score(
        self, jobs: Iterable[Job], begin: Begin | None = None
    ) -> Generator[tuple[int, Outcome]]:
        """See `Evaluators`."""
        for position, job in enumerate(jobs):
            if begin is not None and not begin(position):
                return
            yield position, score_job(job, self._bench)

    def ways(self) -> Sequence[str]:
        """See `Evaluators`."""
        return self._bench.harness.answering.ways


def score_job(job: Job, bench: Bench) -> Outcome:
    """Do a job with a bench."""
    return evaluate(
        job.recipe, bench, job.role, measure=job.measure, race=job.race, rungs=job.rungs
    )
