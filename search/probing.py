"""What a few candidates tell of all: numbers that never do, filters that match nothing."""

import random
from collections.abc import Iterator, Mapping

from merge_core.checkpoint import Checkpoint
from merge_core.errors import NumbersError
from merge_core.filters import silent_filters, tensor_names
from merge_core.plan import compile_plan
from search.dimensions import Choice, Dimension, Values, Whole
from search.space import SearchSpace

_TRIES = 16  # with other numbers, before a method counts as hopeless


def hopeless(space: SearchSpace, checkpoints: Mapping[str, Checkpoint]) -> Iterator[str]:
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
            if (reason := _reason(space, candidate, checkpoints)) is None:
                fine.add(method)
                break
            reasons.setdefault(method, reason)
    for method, reason in reasons.items():
        if method not in fine:
            yield f"recipe ({method}): {reason}; no other numbers that were tried do either"


def unmatched(space: SearchSpace, checkpoints: Mapping[str, Checkpoint]) -> Iterator[str]:
    """Warnings of filters that are part of no name, in no parent and no candidate."""
    recipes = [space.decode(values) for values in space.probes()]
    plans = (compile_plan(recipe, checkpoints, judge=False) for recipe in recipes)
    own = (name for checkpoint in checkpoints.values() for name in checkpoint.tensors)
    names = tensor_names(plans).union(own)
    for recipe in recipes:
        yield from (f"recipe: {warning}" for warning in silent_filters(recipe, names))


def _reason(
    space: SearchSpace, values: Values, checkpoints: Mapping[str, Checkpoint]
) -> str | None:
    try:
        compile_plan(space.decode(values), checkpoints)
    except NumbersError as error:
        return str(error)
    return None


def _like(space: SearchSpace, values: Values) -> Iterator[Values]:
    """The values, then the same choices with other numbers."""
    chance = random.Random(0)

    def ask(d: Dimension) -> float | int | bool | str:
        if isinstance(d, Choice):
            return values[d.name]
        if isinstance(d, Whole):
            return chance.randint(d.low, d.high)
        return chance.uniform(d.low, d.high)

    yield values
    yield from (space.draw(ask) for _ in range(_TRIES))
