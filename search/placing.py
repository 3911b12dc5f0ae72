"""Plans that put layers elsewhere than their parents have them, and whether that is sound."""

from collections.abc import Iterable, Mapping

from evals.errors import EvaluationError
from merge_core.checkpoint import Checkpoint
from merge_core.plan import MergePlan
from merge_core.recipe import Recipe


def names_layers(recipes: Iterable[Recipe]) -> bool:
    """Whether any of these recipes takes single layers of a model."""
    slices = (
        part
        for recipe in recipes
        for stack in (recipe.slices, *(module.slices for module in recipe.modules))
        for part in stack
    )
    return any(source.layers is not None for part in slices for source in part.sources)


def refuse_moves(plan: MergePlan, checkpoints: Mapping[str, Checkpoint], rooted: str) -> None:
    """Refuse a plan that moves layers of a family in which they must keep their places.

    Args:
        plan: Of a candidate.
        checkpoints: The opened parents by alias.
        rooted: Why they must.

    Raises:
        EvaluationError: If a layer is made of one that has another number in its parent.
    """
    layout = checkpoints[plan.donor].layout
    for step in plan.steps:
        to = layout.layer(step.out)
        for ref in step.inputs:
            if (at := checkpoints[ref.parent].layout.layer(ref.name)) != to:
                raise EvaluationError(
                    f"the plan makes layer {to} of layer {at} of '{ref.parent}', and {rooted}"
                )
