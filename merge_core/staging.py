"""A recipe whose slices have methods or factors of their own, as documents that mergekit reads.

mergekit knows one method for a recipe. Slices that are merged become a stage (a document with a
`name`) for each method; the result copies its layers from the stages and the parents, and a
passthrough multiplies them.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from typing import Any

from merge_core.errors import RecipeError
from merge_core.interleave import COPY
from merge_core.recipe import Recipe, Slice, Source, to_dict
from merge_core.registry import find_method


def documents(recipe: Recipe, depths: Mapping[str, int]) -> tuple[dict[str, Any], ...]:
    """Write a recipe in mergekit's dictionary form.

    Args:
        recipe: Any recipe.
        depths: How many layers each parent has, by what the recipe calls it.

    Returns:
        The stages in the order in which they are needed, then the result; one document where one
        method is enough.

    Raises:
        RecipeError: For slices of several methods, or with factors, under `modules`.
    """
    if len(recipe.methods) == 1 and not any(part.scale for part in recipe.every_slice):
        return (to_dict(_plain(recipe)),)
    if recipe.modules:
        raise RecipeError(
            "slices with a merge_method or scale of their own can't stand under 'modules'"
        )
    stages = {word: _stage(word, recipe, depths) for word in recipe.methods if word != COPY}
    names = dict(zip(stages, _names(recipe), strict=False))
    taken = dict.fromkeys(stages, 0)
    slices: list[Slice] = []
    for part in recipe.slices:
        word = part.method or recipe.method
        if word == COPY:
            slices.append(replace(part, method=None))
            continue
        start, length = taken[word], _length(part, depths)
        taken[word] += length
        scale = (("scale", part.scale),) if part.scale else ()
        slices.append(Slice((Source(names[word], (start, start + length), scale),)))
    result = replace(recipe, method=COPY, slices=tuple(slices), base=None, parameters=())
    heads = [{"name": names[word]} | to_dict(stage) for word, stage in stages.items()]
    return (*heads, to_dict(result))


def _plain(recipe: Recipe) -> Recipe:
    """The one method said once."""
    slices = tuple(replace(part, method=None) for part in recipe.slices)
    modules = tuple(
        replace(m, slices=tuple(replace(part, method=None) for part in m.slices))
        for m in recipe.modules
    )
    return replace(recipe, method=recipe.methods[0], slices=slices, modules=modules)


def _stage(word: str, recipe: Recipe, depths: Mapping[str, int]) -> Recipe:
    """The slices of one method, with what the recipe says of all that is of this method."""
    mine = [part for part in recipe.slices if (part.method or recipe.method) == word]
    if not any(_length(part, depths) for part in mine):
        # Only tensors outside the layers are wanted, but a model needs a layer.
        mine.insert(1, _some_layer(mine[-1]))
    slices = tuple(replace(part, method=None, scale=()) for part in mine)
    known = {parameter.name for parameter in find_method(word).parameters}
    parameters = tuple(one for one in recipe.parameters if one[0] in known)
    return replace(recipe, method=word, slices=slices, parameters=parameters)


def _some_layer(part: Slice) -> Slice:
    sources = tuple(replace(source, layers=(0, 1)) for source in part.sources)
    return replace(part, sources=sources)


def _length(part: Slice, depths: Mapping[str, int]) -> int:
    first = part.sources[0]
    start, end = first.layers or (0, depths[first.model])
    return end - start


def _names(recipe: Recipe) -> list[str]:
    """Names for stages that no model has."""
    free = (f"merged{'' if at == 0 else at + 1}" for at in count())
    names = (name for name in free if name not in recipe.models)
    return [next(names) for _ in recipe.methods]
