"""From what a study calls a model to a folder on this machine."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]

from merge_core.checkpoint import Checkpoint, open_checkpoint
from merge_core.errors import CheckpointError
from search.errors import first_line

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
# No pickled weights and no code are ever fetched.
_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "tokenizer*"]


def open_models(
    references: Mapping[str, str], folder: Path, mistakes: list[str]
) -> dict[str, Checkpoint]:
    """Open every model that a study names.

    Args:
        references: Path or hub id by alias.
        folder: What relative paths are relative to.
        mistakes: What is wrong is added here.
    """
    opened: dict[str, Checkpoint] = {}
    for alias, reference in references.items():
        try:
            opened[alias] = open_checkpoint(locate(reference, folder), alias)
        except CheckpointError as error:
            mistakes.append(f"models.{alias}: {error}")
    return opened


def locate(reference: str, folder: Path) -> Path:
    """The folder of a model: a local path, or a snapshot of a hub id, perhaps with @revision.

    Raises:
        CheckpointError: If it is neither, or can't be fetched.
    """
    local = (folder / os.path.expanduser(reference)).resolve()  # leaves an unknown user's ~ alone
    if local.exists():
        return local
    if "+" in reference:
        raise CheckpointError(
            f"'{reference}': adapters can't be merged in yet; merge the adapter into its model "
            "first and name the result"
        )
    name, _, revision = reference.partition("@")
    if not _HUB_ID.match(name) or reference.startswith((".", "/", "~")):
        raise CheckpointError(f"'{reference}': there is no such folder ({local})")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_PATTERNS))
    except Exception as error:  # the hub's client raises a dozen types
        reason = first_line(error)
        raise CheckpointError(
            f"'{reference}': there is no such folder, and the hub gave: {reason}"
        ) from None
