"""Which of a model's tensors have one row for each token, and how many rows."""

from collections.abc import Mapping
from typing import Any

from merge_core.checkpoint import Checkpoint
from merge_core.errors import CheckpointError
from merge_core.naming import role

_NOT_BY_TOKEN = ("wpe.", "position", "token_type")


def vocabulary_tensors(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Names of the tensors with one row for each token: embeddings, and a head of its own.

    Positions and token types are embeddings too, but not of tokens.
    """
    outer = [
        checkpoint.tensors[name]
        for name in checkpoint.layers[None]
        if role(name) in {"embedding", "head"} and not any(p in name for p in _NOT_BY_TOKEN)
    ]
    lengths = [spec.shape[0] for spec in outer if spec.shape]
    stated = _vocabulary_config(checkpoint.config).get("vocab_size")
    rows = stated if stated in lengths else max(lengths, default=0)
    return tuple(spec.name for spec in outer if spec.shape and spec.shape[0] == rows)


def vocabulary_length(checkpoint: Checkpoint) -> int:
    """Rows of a model's vocabulary tensors."""
    names = vocabulary_tensors(checkpoint)
    if not names:
        raise CheckpointError(
            f"model '{checkpoint.name}': none of its tensors has a row for each token, so its "
            "vocabulary can't be changed; leave the tokenizer block out"
        )
    return checkpoint.tensors[names[0]].shape[0]


def _vocabulary_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that states the vocabulary: models of several parts nest it."""
    return config if "vocab_size" in config else config.get("text_config") or {}


def with_length(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """A configuration whose vocabulary has that many rows."""
    if "vocab_size" in config or "vocab_size" not in config.get("text_config", {}):
        return {**config, "vocab_size": rows}
    return {**config, "text_config": {**config["text_config"], "vocab_size": rows}}
