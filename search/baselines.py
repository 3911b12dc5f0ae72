"""What every winner has to beat: each parent, and the plain average."""

from collections.abc import Mapping

from merge_core.recipe import Recipe, Setting, Slice, Source
from search.space import SearchSpace, listed

AVERAGE = "plain average"


def parent_recipe(alias: str) -> Recipe:
    """A recipe that is one parent, unchanged."""
    return Recipe("passthrough", (Slice((Source(alias),)),))


def baselines(space: SearchSpace) -> Mapping[str, Recipe]:
    """Recipes by name: the parents in the order of the study, then the average of those listed.

    The base model is a parent to compare with; it enters the average only if the recipe lists it.
    """
    aliases = listed(space.template)
    base = space.template.get("base_model")
    parents = dict.fromkeys((*((base,) if base else ()), *aliases))
    recipes = {alias: parent_recipe(alias) for alias in parents}
    if len(aliases) > 1:
        equal = (("weight", (Setting(None, 1.0),)),)
        sources = tuple(Source(alias) for alias in aliases)
        recipes[AVERAGE] = Recipe("linear", (Slice(sources),), parameters=equal)
    return recipes
