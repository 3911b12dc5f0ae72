"""Objectives that need no items: what a merged model is, and what a user's own function says."""

from collections.abc import Callable, Mapping
from math import prod

from merge_core.plan import MergePlan
from search.bench import Bench

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
        ScorerError: If a user's function fails.
    """
    found: dict[str, float] = {}
    lm, seed = bench.harness.lm, bench.harness.settings.torch_seed
    for one in bench.study.config.objectives:
        if one.model is not None:
            found[one.name] = float(_PROPERTIES[one.model](plan))
        elif one.function is not None:
            scorer = bench.study.scorers[one.name]
            found[one.name] = scorer.figure(lm.model, lm.tokenizer, seed)
    return found
