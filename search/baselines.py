"""What every winner has to beat: each parent, and what costs no search."""

from collections.abc import Mapping

from merge_core.recipe import Parameters, Recipe, Setting, Slice, Source
from search.space import SearchSpace, bases

AVERAGE = "plain average"
ARITHMETIC = "task arithmetic"
TIES = "TIES"


def parent_recipe(alias: str) -> Recipe:
    """A recipe that is one parent, unchanged."""
    return Recipe("passthrough", (Slice((Source(alias),)),))


def parents(space: SearchSpace) -> tuple[str, ...]:
    """Aliases of the base models, if there are any, and of the models that the recipe lists."""
    return tuple(dict.fromkeys((*bases(space.template), *space.models)))


def baselines(space: SearchSpace) -> Mapping[str, Recipe]:
    """Recipes by name: the parents in the order of the study, then merges that need no search.

    The plain average is that of the models listed: the base model enters it only if the recipe
    lists it. Task arithmetic at weight 0.4, and TIES of the largest 20% at weight 1, are what the
    TIES paper (arXiv:2306.01708) recommends where nothing can be tried; both need a base model and
    two others. Merges of all layers need models of one depth.
    """
    recipes = {alias: parent_recipe(alias) for alias in parents(space)}
    aliases, base = space.models, space.base
    experts = tuple(alias for alias in aliases if alias != base)
    if len(aliases) > 1:
        recipes[AVERAGE] = _merge("linear", aliases, None, weight=1.0)
    if base and len(experts) > 1:
        recipes[ARITHMETIC] = _merge("task_arithmetic", experts, base, weight=0.4)
        recipes[TIES] = _merge("ties", experts, base, weight=1.0, density=0.2)
    return {name: one for name, one in recipes.items() if _of_one_depth(one, space.depths)}


def _of_one_depth(recipe: Recipe, depths: Mapping[str, int]) -> bool:
    return len({depths.get(model) for model in recipe.models}) == 1


def _merge(method: str, aliases: tuple[str, ...], base: str | None, **values: float) -> Recipe:
    parameters: Parameters = tuple(
        (name, (Setting(None, v),)) for name, v in sorted(values.items())
    )
    sources = tuple(Source(alias) for alias in aliases)
    return Recipe(method, (Slice(sources),), base, parameters)
