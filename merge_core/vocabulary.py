"""Parents whose vocabularies differ, and what stands beside the output's weights.

Each vocabulary tensor of each parent is aligned to the output's vocabulary first and is then
merged like any other tensor.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from merge_core.alignment import Aligned, Alignment
from merge_core.chat_templates import chosen_template, missing_markers, with_template
from merge_core.checkpoint import Checkpoint
from merge_core.companions import Companion, companions, read_companion
from merge_core.errors import CheckpointError, RecipeError
from merge_core.heads import with_heads
from merge_core.keys import nearest
from merge_core.recipe import Recipe
from merge_core.tokens import FILE, Tokens, read_tokens


def align_vocabularies(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> Aligned:
    """Give all parents of a recipe one vocabulary, from headers and tokenizer files alone.

    Args:
        recipe: What to merge; `recipe.references` are the models it needs.
        checkpoints: The opened models by the names that the recipe uses.

    Returns:
        What `compile_plan` and `write_model` take.

    Raises:
        RecipeError: If the recipe's tokenizer block doesn't fit the models.
        CheckpointError: If a tokenizer that is needed can't be read.
    """
    for model in recipe.references:
        if model not in checkpoints:
            raise RecipeError(f"model '{model}' is not open; {nearest(model, checkpoints)}")
    if recipe.tokenizer is None:
        files = companions(checkpoints[recipe.donor])
        aligned = Aligned(checkpoints, files, tuple(_differences(recipe, checkpoints)))
    else:
        # A head's new rows come from heads, so a tied parent needs one of its own first.
        heads = with_heads({model: checkpoints[model] for model in recipe.models})
        aligned = Alignment(recipe, recipe.tokenizer, {**checkpoints, **heads}).aligned()
    return _with_template(recipe, aligned, checkpoints)


def _with_template(
    recipe: Recipe, aligned: Aligned, checkpoints: Mapping[str, Checkpoint]
) -> Aligned:
    if recipe.chat_template is None:
        return aligned
    parents = [companions(checkpoints[model]) for model in recipe.models]
    donor = companions(checkpoints[recipe.donor])
    text = chosen_template(recipe.chat_template, parents, donor)
    if text is None:
        warning = "chat_template: auto: no parent has one, so the output has none"
        return replace(aligned, warnings=(*aligned.warnings, warning))
    files = with_template(aligned.files, text)
    return replace(aligned, files=files, warnings=(*aligned.warnings, *_lacking(recipe, files)))


def _lacking(recipe: Recipe, files: Mapping[str, Companion]) -> Iterator[str]:
    """A named format whose marks are no tokens: a model then sees them as loose characters."""
    text = files.get(FILE)
    tokens = json.loads(text.read_text("utf-8") if isinstance(text, Path) else text or "{}")
    known = {entry["content"]: entry["id"] for entry in tokens.get("added_tokens", ())}
    missing = missing_markers(recipe.chat_template or "", known)
    if missing:
        yield (
            f"chat_template: {recipe.chat_template} writes {', '.join(missing)}, which the "
            "output's tokenizer does not know as tokens; add them under tokenizer.tokens"
        )


def _differences(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> Iterator[str]:
    """Vocabularies that are merged row by row though their rows mean different tokens."""
    donor = checkpoints[recipe.donor]
    own = read_companion(companions(donor), FILE)
    for model in recipe.models:
        text = read_companion(companions(checkpoints[model]), FILE)
        if own is None or text is None or text == own:
            continue  # what can't be told is no difference
        try:
            said = _difference(read_tokens(donor), read_tokens(checkpoints[model]))
        except CheckpointError:  # a merge by number doesn't need to read them
            continue
        if said is not None:
            yield (
                f"the tokens of '{model}' and '{donor.name}' differ: {said}. Rows are merged by "
                "number; to merge them by token add 'tokenizer: {source: union}'"
            )


def _difference(reference: Tokens, other: Tokens) -> str | None:
    owners = {number: token for token, number in reference.ids.items()}
    for token, number in sorted(other.ids.items(), key=lambda item: item[1]):
        if (same := owners.get(number)) is not None and same != token:
            return f"number {number} is {token!r} in one and {same!r} in the other"
        if same is None:
            return f"{token!r} is in the first only"
    return None
