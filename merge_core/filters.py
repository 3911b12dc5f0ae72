"""Filters that no tensor's name has: their values are never used, which is most often a slip."""

import difflib
from collections.abc import Collection, Iterable, Iterator

from merge_core.plan import MergePlan, scopes
from merge_core.recipe import Module, Recipe, Setting

_LIKE = 0.6  # of difflib's ratio: 'mpl' and 'mlp' have 0.67, 'mlp' and 'model' 0.5


def silent_filters(recipe: Recipe, names: Collection[str]) -> tuple[str, ...]:
    """Warn of a recipe's filters that are part of no name.

    Args:
        recipe: Whose filters.
        names: Of all tensors that they may mean (`tensor_names`); those of a recipe's other stages
            too, as documents are often copies of each other.

    Returns:
        A sentence for each, with the part of a name that is nearest.
    """
    found: dict[str, None] = {}
    for where, text in _filters(recipe):
        if not any(text in name for name in names):
            found[f"{where}: filter '{text}' is part of no tensor's name: {_hint(text, names)}"] = (
                None
            )
    return tuple(found)


def tensor_names(plans: Iterable[MergePlan]) -> frozenset[str]:
    """What filters look at: the names of what is merged, and of what it is merged of."""
    return frozenset(
        name
        for plan in plans
        for step in plan.steps
        if step.method is not None
        for name in (step.out, *(ref.name for ref in step.inputs))
    )


def _filters(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Every filter with its place."""
    for where, parameters, _, _ in scopes(recipe):
        for name, settings in parameters:
            yield from ((f"{where}.{name}", text) for text in _texts(settings))
    for module in recipe.modules or (Module("", recipe.slices),):
        prefix = f"modules.{module.name}." if recipe.modules else ""
        for i, part in enumerate(module.slices):
            yield from ((f"{prefix}slices[{i}].scale", text) for text in _texts(part.scale))


def _texts(settings: Iterable[Setting]) -> Iterator[str]:
    return (setting.filter for setting in settings if setting.filter is not None)


def _hint(text: str, names: Collection[str]) -> str:
    """The nearest part of a name, of as many words; and how experts are called."""
    words = text.strip(".").count(".") + 1
    parts = sorted({part for name in names for part in _parts(name, words)})
    close = difflib.get_close_matches(text.strip("."), parts, n=1, cutoff=_LIKE)
    hint = (
        f"did you mean '{close[0]}'?" if close else f"a name is such as '{max(names, key=_deep)}'"
    )
    expert = min((name for name in names if ".experts." in name), default=None)
    if expert is None:
        return hint
    called = f"experts are merged one by one, by the names in the files, such as '{expert}'"
    return f"{hint} ({called})" if close else called


def _parts(name: str, words: int) -> Iterator[str]:
    split = name.split(".")
    return (".".join(split[at : at + words]) for at in range(len(split) - words + 1))


def _deep(name: str) -> tuple[int, str]:
    """The last name of those with the most words: one inside a layer."""
    return name.count("."), name
