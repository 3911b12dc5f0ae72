"""One candidate from recipe to scorecard: the one place where the three packages meet."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from evals.guards import health
from evals.harness import Harness
from evals.items import Role
from evals.scorecard import Scorecard
from merge_core.apply import Workbench, apply
from merge_core.errors import MergeError
from merge_core.plan import MergePlan
from merge_core.recipe import Recipe
from search.bench import Bench


@dataclass(frozen=True, slots=True)
class Outcome:
    """What trying a recipe gave.

    Attributes:
        scorecard: None if it could not be scored.
        failure: Why not.
        merge_seconds: Wall time of the merge.
    """

    scorecard: Scorecard | None
    failure: str | None
    merge_seconds: float


def evaluate(recipe: Recipe, bench: Bench, role: Role) -> Outcome:
    """Merge a recipe into the live model and score it on one role's items.

    Whatever goes wrong with this one candidate becomes its reason; the study goes on.
    """
    return attempt(lambda: bench.study.plan(recipe), bench.workbench, bench.harness, role)


def attempt(
    plan: Callable[[], MergePlan], workbench: Workbench, harness: Harness, role: Role
) -> Outcome:
    """Make the live model be what a plan describes, and score it."""
    start = time.perf_counter()
    merged = start
    try:
        apply(plan(), workbench)
        merged = time.perf_counter()
        if reason := health(harness.lm.model, workbench.slots, harness.prompt()):
            return Outcome(None, reason, merged - start)
        card = harness.score(role)
    except MergeError as error:
        return Outcome(None, str(error), time.perf_counter() - start)
    except Exception as error:  # a model or task may fail in any way on a strange candidate
        return Outcome(None, f"{type(error).__name__}: {error}", merged - start)
    return Outcome(card if card.failure is None else None, card.failure, merged - start)
