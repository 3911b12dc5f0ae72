"""Write a winner or any recipe as a model folder, with the recipe that made it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml

from merge_core.export import write_model
from merge_core.parents import Parents
from merge_core.recipe import Recipe
from merge_core.staging import documents
from search.bench import CheckedStudy
from search.card import model_card
from search.finals import Claim
from search.models import absolute
from search.record import Record

RECIPE = "recipe.yaml"


def export_winner(
    checked: CheckedStudy,
    best: Record,
    claim: Claim | None,
    folder: Path,
    front: Sequence[int] = (),
    progress: Callable[[str], None] | None = None,
) -> None:
    """Write a study's winner: weights, tokenizer, recipe and card.

    Args:
        checked: The study.
        best: Its winner, or another finalist.
        claim: What the comparison found, if it was made.
        folder: Where to write; must be new or empty.
        front: As `model_card` takes it.
        progress: Called with each tensor's name.
    """
    plan = checked.plan(best.recipe)
    texts = {
        RECIPE: recipe_yaml(checked, best.recipe),
        "README.md": model_card(checked, best, claim, front),
    }
    parents = Parents(checked.checkpoints, checked.device, checked.scratch)
    write_model(plan, parents, folder, files=checked.files, extra=texts, progress=progress)


def recipe_yaml(checked: CheckedStudy, recipe: Recipe) -> str:
    """The recipe with its models' places, as mergekit and `outcross merge` read it."""
    named = places(checked)
    depths = {named[alias]: depth for alias, depth in checked.space.depths.items()}
    texts = documents(checked.exact(recipe).renamed(named), depths)
    seed = checked.config.search.seed
    theirs = "mergekit-yaml recipe.yaml out/"
    if len(texts) > 1:
        theirs = "mergekit-multi recipe.yaml --out-path out/ -I stages/"
    note = f"# Merged again by: outcross merge recipe.yaml out/\n# or by: {theirs}\n"
    if any(method.startswith("dare") for method in recipe.methods):
        note += (
            f"# The random masks are those of --seed {seed}; mergekit draws its own, so what it\n"
            "# gives has the same distribution but other numbers.\n"
        )
    return note + yaml.safe_dump_all(texts, sort_keys=False, width=100)


def places(checked: CheckedStudy) -> Mapping[str, str]:
    """Where each alias is found: hub ids as they stand, folders as absolute paths."""
    models = checked.config.models
    return {alias: absolute(reference, checked.folder) for alias, reference in models.items()}


def counted(number: int, what: str) -> str:
    """How many of something there are."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def size(count: int) -> str:
    """Bytes for people."""
    value, units = float(count), ("B", "kB", "MB", "GB", "TB")
    for unit in units:
        if value < 1000 or unit == units[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError
