"""One candidate from recipe to scorecard: the one place where the three packages meet."""

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace

import torch

from evals.activations import Keys
from evals.answering import Practice
from evals.guards import health, norm
from evals.harness import Harness
from evals.items import Role
from evals.racing import Verdict
from evals.scorecard import Scorecard
from evals.symptoms import failing, flags
from merge_core.apply import Workbench, apply
from merge_core.errors import MergeError
from merge_core.plan import MergePlan
from merge_core.recipe import Recipe
from search.bench import Bench
from search.racing import Race


@dataclass(frozen=True, slots=True)
class Outcome:
    """What trying a recipe gave.

    Attributes:
        scorecard: None if it could not be scored.
        failure: Why not.
        merge_seconds: Wall time of the merge.
        flags: What to know before believing the scores.
        norms: Of the merged tensors by name, if they were asked for.
        verdict: Why not all items were scored: the race was lost.
        practice: How the requests were answered.
    """

    scorecard: Scorecard | None
    failure: str | None
    merge_seconds: float
    flags: tuple[str, ...] = ()
    norms: Mapping[str, float] | None = None
    verdict: Verdict | None = None
    practice: Practice | None = None


def evaluate(
    recipe: Recipe, bench: Bench, role: Role, *, measure: bool = False, race: Race | None = None
) -> Outcome:
    """Merge a recipe into the live model and score it on one role's items.

    Whatever goes wrong with this one candidate becomes its reason; the study goes on.

    Args:
        recipe: What to merge.
        bench: With the role's items.
        role: Which items.
        measure: Whether to take the norms of the merged tensors too.
        race: What it has to keep up with; one that has lost isn't scored to the end.
    """
    outcome = attempt(
        lambda: bench.study.plan(recipe),
        bench.workbench,
        bench.harness,
        role,
        look=lambda: _unhealthy(bench),
        keys=lambda plan: layer_keys(plan, bench),
        race=race,
    )
    card = outcome.scorecard
    practice = bench.harness.answering.practice
    if card is None:
        return replace(outcome, practice=practice)
    reason = failing(card, bench.worst) if bench.worst else None
    told = flags(card, bench.worst)
    norms = norms_of(bench.workbench.slots) if measure else None
    return replace(
        outcome,
        scorecard=card if reason is None else None,
        failure=reason,
        flags=told,
        norms=norms,
        practice=practice,
    )


def norms_of(slots: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The norm of every live tensor that holds weights, by name."""
    return {name: norm(slot) for name, slot in slots.items() if slot.is_floating_point()}


def attempt(
    plan: Callable[[], MergePlan],
    workbench: Workbench,
    harness: Harness,
    role: Role,
    look: Callable[[], str | None] | None = None,
    keys: Callable[[MergePlan], Keys | None] | None = None,
    race: Race | None = None,
) -> Outcome:
    """Make the live model be what a plan describes, and score it.

    Args:
        plan: Makes the plan.
        workbench: Parents and live tensors.
        harness: Scores the live model.
        role: On which items.
        look: Says what is wrong with the merged model; default a look for numbers that are none.
        keys: What stands for the weights of each layer, where that is known.
        race: What it has to keep up with.
    """
    start = time.perf_counter()
    merged = start
    look = look or (lambda: health(harness.lm.model, workbench.slots, harness.prompt))
    try:
        made = plan()
        apply(made, workbench)
        merged = time.perf_counter()
        if reason := look():
            return Outcome(None, reason, merged - start)
        card, verdict = _scored(harness, role, keys(made) if keys else None, race)
    except MergeError as error:
        return Outcome(None, str(error), time.perf_counter() - start)
    except Exception as error:  # a model or task may fail in any way on a strange candidate
        return Outcome(None, f"{type(error).__name__}: {error}", merged - start)
    whole = card if card.failure is None else None
    return Outcome(whole, card.failure, merged - start, verdict=verdict)


def _scored(
    harness: Harness, role: Role, keys: Keys | None, race: Race | None
) -> tuple[Scorecard, Verdict | None]:
    """The scorecard of all items, or of those after which the race was lost."""
    if race is None:
        return harness.score(role, keys), None
    cards = harness.score_rungs(role, keys)
    card = next(cards)
    while not (verdict := race.verdict(card)).lost and card.failure is None:
        if (more := next(cards, None)) is None:
            break
        card = more
    return card, verdict if verdict.lost else None


def _unhealthy(bench: Bench) -> str | None:
    """Look at what was merged since the last healthy candidate, and pass a few tokens through."""
    done = bench.workbench.done
    fresh: dict[str, torch.Tensor] = {
        name: slot
        for name, slot in bench.workbench.slots.items()
        if name not in done or bench.looked.get(name) != done[name]
    }
    harness = bench.harness
    reason = health(harness.lm.model, fresh, harness.prompt, bench.norms)
    if reason is None:
        bench.looked.update(done)
    return reason


def layer_keys(plan: MergePlan, bench: Bench) -> Keys | None:
    """What stands for the live weights, layer by layer: the steps that made them.

    Equal steps write equal tensors, so equal keys mean equal weights.

    Returns:
        One for what comes before the layers (embeddings), then one per layer; None for a model of
        several stacks.
    """
    layout = bench.study.checkpoints[plan.donor].layout
    if len(layout.stacks) != 1:
        return None
    keys: list[list[Hashable]] = [[] for _ in range(plan.depth + 1)]
    for step in plan.steps:
        if step.out in bench.workbench.slots and step.out not in bench.harness.after:
            layer = layout.layer(step.out)
            # A slot of unknown content is like no other.
            made = bench.workbench.done.get(step.out) or object()
            keys[0 if layer is None else layer + 1].append(made)
    return tuple(tuple(made) for made in keys)
