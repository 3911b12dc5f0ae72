"""Numbers of special tokens in a configuration, when the output takes another model's tokenizer."""

import json
from collections.abc import Mapping
from typing import Any, cast

from merge_core.checkpoint import Checkpoint
from merge_core.companions import GENERATION, Companion, read_companion
from merge_core.tokens import Tokens

_ALWAYS = ("bos_token_id", "eos_token_id", "pad_token_id")


def moved_ids(
    config: Mapping[str, Any], giver: Checkpoint, before: Tokens, after: Tokens
) -> dict[str, Any]:
    """A configuration whose special tokens are those of another tokenizer.

    Args:
        config: The donor's.
        giver: The model whose tokenizer the output has: what it states goes first.
        before: The donor's tokens.
        after: The output's.
    """
    return _moved(config, giver.config, before, after)


def moved_generation(
    files: Mapping[str, Companion], giver: Mapping[str, Companion], before: Tokens, after: Tokens
) -> dict[str, Companion]:
    """generation_config.json likewise; empty if the donor has none."""
    text, other = (read_companion(found, GENERATION) for found in (files, giver))
    if text is None:
        return {}
    moved = _moved(_parsed(text), _parsed(other or "{}"), before, after)
    return {GENERATION: json.dumps(moved, indent=2) + "\n"}


def _moved(
    config: Mapping[str, Any], giver: Mapping[str, Any], before: Tokens, after: Tokens
) -> dict[str, Any]:
    moved = dict(config)
    names = {number: token for token, number in before.ids.items()}
    for key, value in config.items():
        if key.endswith("token_id"):
            moved[key] = giver[key] if key in giver else _number(value, names, after)
    return moved | {key: giver[key] for key in _ALWAYS if key in giver}


def _number(value: object, names: Mapping[int, str], after: Tokens) -> object:
    """The output's number of the same token; None if it has no such token."""
    if isinstance(value, list):
        found = [_number(entry, names, after) for entry in cast("list[object]", value)]
        return [number for number in found if number is not None]
    return after.ids.get(names.get(value, "")) if isinstance(value, int) else value


def _parsed(text: str) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(text))
