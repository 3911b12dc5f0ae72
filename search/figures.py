"""Objectives that need no items: what a merged model is, and what a user's own function says."""

from collections.abc import Callable, Mapping
from math import prod

from merge_core.plan import MergePlan
from search.bench import Bench
from search.errors import ScorerError, StudyError, first_line
from search.untouched import Untouched, untouched

_PROPERTIES: Mapping[str, Callable[[MergePlan], int]] = {
    "depth": lambda plan: plan.depth,
    "parameters": lambda plan: sum(
        prod(step.shape) for step in plan.steps if step.method is not None
    ),
}


def figures_of(plan: MergePlan, bench: Bench) -> dict[str, float]:
    """The figures of the live model, by objective.

    Args:
        plan: That made it.
        bench: Whose study names the objectives.

    Raises:
        ScorerError: If a user's function fails, or changes the model; that is whole again then.
        StudyError: If it can't be made whole.
    """
    found: dict[str, float] = {}
    for one in bench.study.config.objectives:
        if one.model is not None:
            found[one.name] = float(_PROPERTIES[one.model](plan))
        elif one.function is not None:
            found[one.name] = _scored(one.name, bench)
    return found


def _scored(name: str, bench: Bench) -> float:
    """What a user's function says of a live model that it leaves as it is."""
    lm, seed = bench.harness.lm, bench.harness.settings.torch_seed
    scorer, before = bench.study.scorers[name], untouched(lm.model)
    figure, failure = 0.0, None
    try:
        figure = scorer.figure(lm.model, lm.tokenizer, seed)
    except ScorerError as error:
        failure = error
    if (changes := _put_right(before, scorer.name, bench)) is not None:
        also = f"; also, {failure}" if failure else ""
        raise ScorerError(
            f"function '{scorer.name}' changed {changes}; it must leave the model as it is, so "
            f"have it change a copy{also}"
        )
    if failure is not None:
        raise failure
    return figure


def _put_right(before: Untouched, name: str, bench: Bench) -> str | None:
    """What a function changed, once the model is whole again; None if it changed nothing."""
    try:
        changes = before.changes()
    except Exception:  # no memory for a look: then nothing is known of the model
        before.restore()
        _renew(name, bench)
        raise
    if changes is not None:
        before.restore()
        _renew(name, bench)
    return changes


def _renew(name: str, bench: Bench) -> None:
    """Have the next candidate written anew, from whole parents."""
    try:
        bench.workbench.renew()
    except Exception as error:  # files that are gone fail in many ways
        raise StudyError(
            [
                f"function '{name}' changed the live model, and the parents can't be read again to "
                f"make it whole: {first_line(error)}; start the same command again"
            ]
        ) from error
