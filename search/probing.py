"""What a few candidates tell of all: numbers that never do, filters that match nothing."""

import random
from collections.abc import Iterator, Mapping
from typing import Protocol

from merge_core.checkpoint import Checkpoint
from merge_core.errors import MergeError, NumbersError
from merge_core.filters import silent_filters, tensor_names
from merge_core.plan import MergePlan
from merge_core.recipe import Recipe, Scalar
from search.dimensions import Choice, Dimension, Values, drawn
from search.space import SearchSpace

_TRIES = 16  # with other numbers, before a method counts as hopeless


class Planned(Protocol):
    """Makes a recipe's plan, as `search.bench.CheckedStudy.plan`."""

    def __call__(self, recipe: Recipe, *, judge: bool = True) -> MergePlan:
        """See there."""
        ...


def hopeless(space: SearchSpace, planned: Planned) -> Iterator[str]:
    """Methods that refuse the numbers of every candidate that was tried, and why.

    One candidate whose numbers are refused is a failed trial; a method of which all are is a
    mistake of the study.
    """
    reasons: dict[str, str] = {}
    fine: set[str] = set()
    for values in space.probes():
        method = space.method(values)
        if method in fine:
            continue
        for candidate in _like(space, values):
            if (reason := _reason(planned, space.decode(candidate))) is None:
                fine.add(method)
                break
            reasons.setdefault(method, reason)
    for method, reason in reasons.items():
        if method not in fine:
            yield f"recipe ({method}): {reason}; no other numbers that were tried do either"


def unmatched(
    space: SearchSpace, checkpoints: Mapping[str, Checkpoint], planned: Planned
) -> Iterator[str]:
    """Warnings of filters that are part of no name, in no parent and no candidate."""
    recipes = [space.decode(values) for values in space.probes()]
    plans = (planned(recipe, judge=False) for recipe in recipes)
    own = (name for checkpoint in checkpoints.values() for name in checkpoint.tensors)
    names = tensor_names(plans).union(own)
    for recipe in recipes:
        yield from (f"recipe: {warning}" for warning in silent_filters(recipe, names))


def _reason(planned: Planned, recipe: Recipe) -> str | None:
    try:
        planned(recipe)
    except NumbersError as error:
        return str(error)
    except MergeError:  # an order of layers that there can't be says nothing about numbers
        return None
    return None


def _like(space: SearchSpace, values: Values) -> Iterator[Values]:
    """The values, then the same choices with other numbers."""
    chance = random.Random(0)

    def ask(dimension: Dimension) -> Scalar:
        return values[dimension.name] if isinstance(dimension, Choice) else drawn(dimension, chance)

    yield values
    yield from (space.draw(ask) for _ in range(_TRIES))
