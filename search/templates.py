"""Whether prompts can be written in the chat template that a study or a comparison asks for."""

from collections.abc import Mapping

from merge_core.chat_templates import templates_of
from merge_core.checkpoint import Checkpoint
from merge_core.companions import Companion, companions
from merge_core.recipe import Recipe

DEFAULT = "default"


def no_template(
    wanted: bool | str,
    recipe: Recipe,
    files: Mapping[str, Companion],
    checkpoints: Mapping[str, Checkpoint],
    repair: str,
) -> str | None:
    """Why the output's tokenizer has no such chat template; None if it has or none is wanted.

    Args:
        wanted: `apply_chat_template`: a template's name, or true for the usual one.
        recipe: Whose output is prompted.
        files: What stands beside the output's weights.
        checkpoints: The opened parents.
        repair: What to do where there is none at all.
    """
    name = wanted if isinstance(wanted, str) else DEFAULT
    have = templates_of(files)
    if not wanted or name in have:
        return None
    giver = _giver(recipe)
    if have:
        known = ", ".join(f"'{name}'" for name in have)
        return f"the tokenizer of '{giver}' has no template '{name}'; name one that it has: {known}"
    others = [m for m in recipe.models if name in templates_of(companions(checkpoints[m]))]
    told = "nor has any other parent"
    if others:
        told = f"of the others {_listed(others)} one (tokenizer_source takes a parent's tokenizer)"
    return f"the tokenizer, that of '{giver}', has no chat template, {told}; {repair}"


def _listed(names: list[str]) -> str:
    quoted = ", ".join(f"'{name}'" for name in names)
    return f"{quoted} {'has' if len(names) == 1 else 'have'}"


def _giver(recipe: Recipe) -> str:
    """The parent whose tokenizer the output has, as `merge_core.alignment` chooses it."""
    source = recipe.tokenizer.source if recipe.tokenizer is not None else None
    return source if source in recipe.references else recipe.donor
