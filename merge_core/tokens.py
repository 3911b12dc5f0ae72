"""A model's tokens and their numbers, and a tokenizer with some more."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from tokenizers import AddedToken, Tokenizer

from merge_core.checkpoint import Checkpoint
from merge_core.companions import companions, read_companion
from merge_core.errors import CheckpointError

FILE = "tokenizer.json"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a tokenizer.json says.

    Attributes:
        ids: Number by token, added tokens included.
        added: Those tokens that are found in a text before it is split.
        text: The file.
    """

    ids: Mapping[str, int]
    added: Mapping[str, AddedToken]
    text: str

    @property
    def end(self) -> int:
        """One more than the largest number: the rows that an embedding needs."""
        return max(self.ids.values(), default=-1) + 1


def read_tokens(checkpoint: Checkpoint) -> Tokens:
    """Read a model's tokenizer.json.

    Raises:
        CheckpointError: If there is none or it can't be read.
    """
    where = f"model '{checkpoint.name}' ({checkpoint.folder})"
    files = companions(checkpoint)
    text = read_companion(files, FILE)
    if text is None:
        other = next((name for name in files if name.endswith((".model", "vocab.json"))), None)
        raise CheckpointError(
            f"{where}: there is no {FILE}{f' beside {other}' if other else ''}, so its tokens "
            "can't be told; write one with AutoTokenizer.from_pretrained(folder)"
            ".save_pretrained(folder)"
        )
    try:
        return _parsed(text)
    except Exception as error:  # tokenizers raises plain Exception
        raise CheckpointError(f"{where}: {FILE} can't be read: {error}") from None


def extended(tokens: Tokens, more: Sequence[AddedToken | str]) -> Tokens:
    """The same tokenizer with more tokens, numbered in order from `end` on.

    Args:
        tokens: The tokenizer; its tokens keep their numbers.
        more: Tokens to add. A word (`str`) becomes a piece of the vocabulary that the tokenizer's
            own rules never make out of smaller ones: texts that it split before it splits the same.

    Returns:
        A tokenizer that `tokenizers` reads with exactly these numbers.

    Raises:
        CheckpointError: If its kind can't hold them.
    """
    if not more:
        return tokens
    data = cast("dict[str, Any]", json.loads(tokens.text))
    first, ids = tokens.end, dict(tokens.ids)
    for at, token in enumerate(more):
        ids[_content(token)] = first + at
    vocabulary = data["model"]["vocab"]
    if isinstance(vocabulary, dict):
        # Added tokens too: numbers that stand in the vocabulary are never given anew on reading.
        data["model"]["vocab"] = dict(sorted(ids.items(), key=lambda item: item[1]))
    data["added_tokens"] = (data.get("added_tokens") or []) + [
        _entry(token, ids)
        for token in more
        if isinstance(token, AddedToken) or not isinstance(vocabulary, dict)
    ]
    made = _parsed(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    if made.ids != ids:
        wrong = next(token for token, number in ids.items() if made.ids.get(token) != number)
        raise CheckpointError(
            f"{FILE}: token {wrong!r} should get number {ids[wrong]} but the tokenizer's kind "
            f"'{data['model'].get('type')}' gives it {made.ids.get(wrong)}; use 'source: base'"
        )
    return made


def _entry(token: AddedToken | str, ids: Mapping[str, int]) -> dict[str, Any]:
    flagged = AddedToken(token, normalized=False) if isinstance(token, str) else token
    flags = {flag: getattr(flagged, flag) for flag in _FLAGS}
    return {"id": ids[flagged.content], "content": flagged.content} | flags


def _parsed(text: str) -> Tokens:
    tokenizer = Tokenizer.from_str(text)
    added = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    return Tokens(tokenizer.get_vocab(with_added_tokens=True), added, text)


def _content(token: AddedToken | str) -> str:
    return token if isinstance(token, str) else token.content
