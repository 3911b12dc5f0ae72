"""Plans that put layers elsewhere than their parents have them, and whether that is sound."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from random import Random

from evals.errors import EvaluationError
from merge_core.checkpoint import Checkpoint
from merge_core.plan import MergePlan
from merge_core.recipe import Recipe
from merge_core.writers import Writers
from search.dimensions import drawn
from search.layouts import MERGE, Layout
from search.space import SearchSpace, holes

_DRAWS = 32


def names_layers(recipes: Iterable[Recipe]) -> bool:
    """Whether any of these recipes takes single layers of a model."""
    slices = (
        part
        for recipe in recipes
        for stack in (recipe.slices, *(module.slices for module in recipe.modules))
        for part in stack
    )
    return any(source.layers is not None for part in slices for source in part.sources)


def orders(space: SearchSpace) -> Iterator[Recipe]:
    """Recipes by which a study shows whether it moves layers.

    Every option of every choice; where the order of layers is searched, some of chance too, since
    its extremes may happen to leave every layer where it stands.
    """
    yield from map(space.decode, space.probes())
    chance = Random(0)
    if any(isinstance(node, Layout) for node in holes(space.template)):
        for _ in range(_DRAWS):
            yield space.decode(space.draw(partial(drawn, chance=chance)))


def refuse_moves(plan: MergePlan, checkpoints: Mapping[str, Checkpoint], rooted: str) -> None:
    """Refuse a plan that moves layers of a family in which they must keep their places.

    Args:
        plan: Of a candidate.
        checkpoints: The opened parents by alias.
        rooted: Why they must.

    Raises:
        EvaluationError: If a layer is made of one that has another number in its parent.
    """
    if told := moved(plan, checkpoints):
        raise EvaluationError(
            f"recipe.slices: {told}, and {rooted}; take every layer from where it stands, as "
            "'origin' does at the parents' own depth, or leave 'slices' out"
        )


def scaled_origins(space: SearchSpace) -> dict[str, Writers]:
    """The models whose layers a study scales, with what a scale multiplies in them."""
    return {
        name: writers
        for node in holes(space.template)
        if isinstance(node, Layout)
        for name, writers in node.writers.items()
        if name != MERGE  # its layers are those of a model that stands beside it
    }


def unfolded(name: str, reason: str) -> str:
    """The refusal of scales of a model's layers, which `evals.folding` gives the reason for."""
    return f"recipe.slices.scale: it can't be folded into the weights of '{name}': {reason}"


def moved(plan: MergePlan, checkpoints: Mapping[str, Checkpoint]) -> str | None:
    """The first layer that is made of one with another number in its parent."""
    layout = checkpoints[plan.donor].layout
    for step in plan.steps:
        to = layout.layer(step.out)
        for ref in step.inputs:
            if (at := checkpoints[ref.parent].layout.layer(ref.name)) != to:
                return f"the plan makes layer {to} of layer {at} of '{ref.parent}'"
    return None


def misplaced(plan: MergePlan, checkpoints: Mapping[str, Checkpoint]) -> str | None:
    """What to know of a merge that is written without a study; None if its layers may stand so.

    No weight is read for it; only a merge that moves layers takes seconds.

    Args:
        plan: Of the merge.
        checkpoints: The opened parents by the names in the plan.
    """
    if (told := moved(plan, checkpoints)) is None:
        return None
    from evals.places import rooted_form  # here: it takes seconds and few merges move layers

    forms = [(plan.depth, plan.config, "the output")]
    for name in dict.fromkeys(ref.parent for step in plan.steps for ref in step.inputs):
        forms.append((checkpoints[name].layout.depth, checkpoints[name].config, name))
    _, config, where = max(forms, key=lambda form: form[0])  # a layer's number shows there
    try:
        reason = rooted_form(config, where)
    except EvaluationError as error:
        return f"{told}, and it isn't known whether layers may be moved: {error}"
    return None if reason is None else f"{told}, and {reason}"
