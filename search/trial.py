"""One candidate from recipe to scorecard: the one place where the three packages meet."""

import time
from collections.abc import Callable, Container, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce

import torch

from evals.activations import Keys
from evals.answering import Practice
from evals.errors import EvaluationError
from evals.guards import Range, health, norm, union
from evals.harness import Harness
from evals.items import Role
from evals.pieces import Piece, joined
from evals.racing import Verdict
from evals.scorecard import Scorecard
from evals.symptoms import failing, flags
from merge_core.apply import Workbench, apply
from merge_core.errors import MergeError
from merge_core.plan import MergePlan, MergeStep
from merge_core.recipe import Recipe
from search.bench import Bench
from search.errors import ScorerError
from search.figures import figures_of
from search.persistence import may_pass, persistent
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
        figures: Of objectives that need no items, by name.
        piece: What some rungs of the items gave, where only those were asked for; then there is no
            scorecard yet, and a failure is one that came after them.
    """

    scorecard: Scorecard | None
    failure: str | None
    merge_seconds: float
    flags: tuple[str, ...] = ()
    norms: Mapping[str, float] | None = None
    verdict: Verdict | None = None
    practice: Practice | None = None
    figures: Mapping[str, float] = field(default_factory=dict[str, float])
    piece: Piece | None = None


def evaluate(
    recipe: Recipe,
    bench: Bench,
    role: Role,
    *,
    measure: bool = False,
    race: Race | None = None,
    rungs: range | None = None,
) -> Outcome:
    """Merge a recipe into the live model and score it on one role's items.

    Whatever goes wrong with this one candidate becomes its reason; the study goes on.

    Args:
        recipe: What to merge.
        bench: With the role's items.
        role: Which items.
        measure: Whether to take the norms of the merged tensors too.
        race: What it has to keep up with; one that has lost isn't scored to the end.
        rungs: Answer these only, and leave it to `judged` what they are worth; None scores all.
    """
    wanted = role is Role.SEARCH and (rungs is None or rungs.start == 0)  # once is enough
    outcome = attempt(
        lambda: bench.plan(recipe),
        bench.workbench,
        bench.harness,
        role,
        look=lambda plan: _unhealthy(plan, bench),
        keys=lambda plan: layer_keys(plan, bench),
        race=race,
        figures=(lambda plan: figures_of(plan, bench)) if wanted else None,
        rungs=rungs,
        measure=measure,
    )
    practice = bench.harness.answering.practice
    return judged(replace(outcome, practice=practice), bench.worst)


def judged(outcome: Outcome, worst: Mapping[str, Mapping[str, float]]) -> Outcome:
    """The outcome without a scorecard if that holds no answers, and with what to know of it else.

    Args:
        outcome: Of a candidate; without a scorecard it is returned as it is.
        worst: The parents' largest share of each symptom by benchmark; nothing fails without.
    """
    card = outcome.scorecard
    if card is None:
        return outcome
    reason = failing(card, worst) if worst else None
    kept = card if reason is None else None
    return replace(outcome, scorecard=kept, failure=reason, flags=flags(card, worst))


def norms_of(plan: MergePlan, slots: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The norm of every live tensor that a plan wrote and that holds weights, by name."""
    live = live_slots(plan, slots)
    return {name: norm(slot) for name, slot in live.items() if slot.is_floating_point()}


def live_slots(plan: MergePlan, slots: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The slots that a plan writes; those of layers beyond its own hold what they held before."""
    return {step.out: slots[step.out] for step in plan.steps if step.out in slots}


def attempt(
    plan: Callable[[], MergePlan],
    workbench: Workbench,
    harness: Harness,
    role: Role,
    look: Callable[[MergePlan], str | None] | None = None,
    keys: Callable[[MergePlan], Keys | None] | None = None,
    race: Race | None = None,
    figures: Callable[[MergePlan], Mapping[str, float]] | None = None,
    rungs: range | None = None,
    measure: bool = False,
) -> Outcome:
    """Make the live model be what a plan describes, and score it.

    What may pass (`search.persistence`) is tried three times; all of it again, so that the result
    is what it would have been without.

    Args:
        plan: Makes the plan.
        workbench: Parents and live tensors.
        harness: Scores the live model.
        role: On which items.
        look: Says what is wrong with the merged model; default a look for numbers that are none.
        keys: What stands for the weights of each layer, where that is known.
        race: What it has to keep up with.
        figures: Measures what needs no items, once the model is scored.
        rungs: Answer these only; None: all, and make their scorecard.
        measure: Whether to take the norms of the merged tensors of a model that was answered for.
    """
    look = look or (lambda made: _sound(made, workbench, harness))

    def once() -> Outcome:
        start = time.perf_counter()
        seconds = 0.0
        try:
            made = plan()
            harness.rewire(made.config)
            apply(made, workbench)
            seconds = time.perf_counter() - start
            if reason := look(made):
                return Outcome(None, reason, seconds)
            layers = keys(made) if keys else None
            if rungs is None:
                outcome = _scored(harness, role, layers, race, seconds)
            else:
                piece = reduce(joined, harness.pieces(role, layers, rungs))
                outcome = Outcome(None, None, seconds, piece=piece)
        except Exception as error:  # a model or task may fail in any way on a strange candidate
            if may_pass(error):
                raise
            return Outcome(None, reason_of(error), seconds)
        whole = outcome.failure is None and outcome.verdict is None
        if figures and whole:
            outcome = _measured(outcome, figures, made)
        if measure and (outcome.scorecard is not None or outcome.piece is not None):
            outcome = replace(outcome, norms=norms_of(made, workbench.slots))
        return outcome

    try:
        return persistent(once, harness.answering.forget)
    except Exception as error:
        if not may_pass(error):
            raise
        return Outcome(None, f"{reason_of(error)} (tried three times)", 0.0)


def reason_of(error: Exception) -> str:
    """Why a candidate failed: our own errors are sentences, others need their type."""
    own = isinstance(error, MergeError | ScorerError | EvaluationError)
    return str(error) if own else f"{type(error).__name__}: {error}"


def _scored(
    harness: Harness, role: Role, keys: Keys | None, race: Race | None, seconds: float
) -> Outcome:
    """The scorecard of all items, or of those after which the race was lost."""
    verdict = None
    if race is None:
        card = harness.score(role, keys)
    else:
        card, verdict = _raced(harness.score_rungs(role, keys), race)
    kept = card if card.failure is None else None
    return Outcome(kept, card.failure, seconds, verdict=verdict)


def _raced(cards: Iterator[Scorecard], race: Race) -> tuple[Scorecard, Verdict | None]:
    card = next(cards)
    while not (verdict := race.verdict(card)).lost and card.failure is None:
        if (more := next(cards, None)) is None:
            break
        card = more
    return card, verdict if verdict.lost else None


def _measured(
    outcome: Outcome, figures: Callable[[MergePlan], Mapping[str, float]], made: MergePlan
) -> Outcome:
    """The same with the figures that need no items; no scores if they can't be had."""
    try:
        return replace(outcome, figures=dict(figures(made)))
    except ScorerError as error:  # any other stops the run: the live model may not be whole
        return replace(outcome, scorecard=None, failure=reason_of(error))


def _sound(plan: MergePlan, workbench: Workbench, harness: Harness) -> str | None:
    return health(harness.lm.model, live_slots(plan, workbench.slots), harness.prompt)


def _unhealthy(plan: MergePlan, bench: Bench) -> str | None:
    """Look at what was merged since the last healthy candidate, and pass a few tokens through."""
    done, lent = bench.workbench.done, bench.workbench.lent
    fresh = {
        name: slot
        for name, slot in live_slots(plan, bench.workbench.slots).items()
        if name not in done or bench.looked.get(name) != done[name]
    }
    if bench.norms:  # the parents' own tensors were looked at when these were taken
        fresh = {name: slot for name, slot in fresh.items() if name not in lent}
    harness = bench.harness
    reason = health(harness.lm.model, fresh, harness.prompt, _normal(plan, bench, fresh))
    if reason is None:
        bench.looked.update((step.out, done[step.out]) for step in plan.steps if step.out in done)
    return reason


def _normal(plan: MergePlan, bench: Bench, wanted: Container[str]) -> dict[str, Range]:
    """The norms that a plan's tensors should have: those of the layers that they are made of."""
    found: dict[str, Range] = {}
    for step in plan.steps if bench.norms else ():
        if step.out in wanted:
            key = step.out, step.inputs, step.base
            if key not in bench.normal:  # the same for nearly every candidate
                bench.normal[key] = _normal_of(step, bench, plan.donor)
            if (normal := bench.normal[key]) is not None:
                found[step.out] = normal
    return found


def _normal_of(step: MergeStep, bench: Bench, donor: str) -> Range | None:
    parents, norms = bench.study.checkpoints, bench.norms
    refs = (*step.inputs, *filter(None, [step.base]))
    layers = [parents[ref.parent].layout.layer(ref.name) for ref in refs]
    moved = parents[donor].layout.moved
    sources = {step.out if at is None else moved(step.out, at) for at in layers}
    return union(norms[name] for name in sources if name in norms)


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
    for key, kind in zip(keys[1:], bench.harness.kinds, strict=False):
        key.append(kind)
    return tuple(tuple(made) for made in keys)
