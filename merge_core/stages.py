"""Recipes of several documents: named ones are stages whose results others use as models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from merge_core.checkpoint import SINGLE, Checkpoint, TensorSpec, assemble
from merge_core.companions import Companion
from merge_core.errors import RecipeError
from merge_core.plan import MergePlan
from merge_core.recipe import Recipe, from_dict


@dataclass(frozen=True, slots=True)
class Stage:
    """One document.

    Attributes:
        name: By which others call its result; None for the document that is the result.
        recipe: What it merges.
        needs: Names of the stages that it uses.
        warnings: Of the result: what stands in the file and is not merged.
    """

    name: str | None
    recipe: Recipe
    needs: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """What to call it in an error; empty for the result."""
        return f"document '{self.name}': " if self.name else ""


def read_stages(documents: Sequence[Mapping[str, Any]]) -> tuple[Stage, ...]:
    """Read all documents of a file.

    Args:
        documents: In mergekit's dictionary form; `name` makes one of several a stage.

    Returns:
        Those that the result needs, each after what it needs; the result last.

    Raises:
        RecipeError: For a mistake in a document, a name that is given twice, documents that need
            each other, or any number of results but one.
    """
    names = [_name(document, at) for at, document in enumerate(documents)]
    if len(names) == 1:
        names[0] = None  # nobody else could call it by its name
    if names.count(None) != 1:
        raise RecipeError(
            "exactly one document must have no 'name': it is the result; "
            f"{names.count(None)} of {len(names)} documents have none"
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(f"two documents have the name '{twice}'; rename one")
    stages = {
        name: _stage(name, document, names) for name, document in zip(names, documents, strict=True)
    }
    ordered: dict[str | None, Stage] = {}
    _visit(stages, None, (), ordered)
    unused = (name for name in names if name not in ordered)
    warnings = (f"document '{name}' is not merged: the result does not need it" for name in unused)
    ordered[None] = replace(ordered[None], warnings=tuple(warnings))
    return tuple(ordered.values())


def planned_checkpoint(plan: MergePlan, name: str, files: Mapping[str, Companion]) -> Checkpoint:
    """What a stage will have written: a later stage is checked against it before any work.

    Its tensors can't be read.
    """
    specs = {
        step.out: TensorSpec(step.out, step.shape, step.dtype, SINGLE)
        for step in sorted(plan.steps, key=lambda step: step.out)
    }
    return assemble(name, Path(name), plan.config, specs, f"stage '{name}'", files)


def _name(document: Mapping[str, Any], at: int) -> str | None:
    name = document.get("name")
    if name is None or (isinstance(name, str) and name and "/" not in name):
        return name
    raise RecipeError(f"document {at + 1}: name must be a word without '/', got {name!r}")


def _stage(name: str | None, document: Mapping[str, Any], names: Sequence[str | None]) -> Stage:
    try:
        recipe = from_dict({key: value for key, value in document.items() if key != "name"})
    except RecipeError as error:
        raise RecipeError(f"document '{name}': {error}" if name else str(error)) from None
    return Stage(name, recipe, tuple(model for model in recipe.references if model in names))


def _visit(
    stages: Mapping[str | None, Stage],
    name: str | None,
    path: tuple[str, ...],
    ordered: dict[str | None, Stage],
) -> None:
    """Depth first; `path` is who needs whom down to here."""
    for needed in stages[name].needs:
        if needed in path:
            circle = " needs ".join(f"'{n}'" for n in (*path[path.index(needed) :], needed))
            raise RecipeError(f"documents need each other: {circle}; break the circle")
        if needed not in ordered:
            _visit(stages, needed, (*path, needed), ordered)
    ordered[name] = stages[name]
