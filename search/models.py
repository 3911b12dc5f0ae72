"""From what a study or recipe calls a model to a folder on this machine, its adapter with it."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]

from evals.configuration import with_layer_lists
from merge_core.adapters import with_adapter
from merge_core.checkpoint import Checkpoint, open_checkpoint
from merge_core.errors import CheckpointError
from search.errors import first_line

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
# No pickled weights and no code are ever fetched.
_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "tokenizer*"]


@dataclass(frozen=True, slots=True)
class Reference:
    """What a model is called: `path[@revision][+adapter[@revision]]`.

    Attributes:
        model: A path or hub id, perhaps with @revision.
        adapter: The same of a LoRA adapter, or None.
    """

    model: str
    adapter: str | None


def open_models(
    references: Mapping[str, str], folder: Path, mistakes: list[str]
) -> dict[str, Checkpoint]:
    """Open every model that a study names.

    Args:
        references: Path or hub id by alias, perhaps with an adapter.
        folder: What relative paths are relative to.
        mistakes: What is wrong is added here.
    """
    opened: dict[str, Checkpoint] = {}
    for alias, reference in references.items():
        try:
            opened[alias] = open_model(reference, folder, alias)
        except CheckpointError as error:
            mistakes.append(f"models.{alias}: {error}")
    return opened


def open_model(text: str, folder: Path, name: str) -> Checkpoint:
    """Open a model; an adapter's changes become derived tensors of it.

    What its configuration leaves to a rule by a layer's number is stated layer by layer.

    Raises:
        CheckpointError: If either can't be found or read, or if they don't fit.
    """
    reference = read_reference(text, folder)
    opened = open_checkpoint(locate(reference.model, folder), name)
    checkpoint = replace(opened, config=with_layer_lists(opened.config))
    if reference.adapter is None:
        return checkpoint
    return with_adapter(checkpoint, locate(reference.adapter, folder))


def read_reference(text: str, folder: Path) -> Reference:
    """Split a reference into model and adapter.

    A `+` may be part of a folder's name: what exists as a whole is a whole, and of several places
    to split the one with most existing folders is taken.

    Raises:
        CheckpointError: If no place to split leaves a model and an adapter.
    """
    if "+" not in text or _local(text, folder).exists():
        return Reference(text, None)
    places = [at for at, letter in enumerate(text) if letter == "+"]
    splits = [Reference(text[:at], text[at + 1 :]) for at in places]
    best = max(splits, key=lambda split: _likeness(split, folder))
    if _likeness(best, folder) == 0:
        raise CheckpointError(
            f"'{text}': there is no such folder, and split at '+' into a model and an adapter it "
            "names none either; give model+adapter, each a folder or a hub id"
        )
    return best


def locate(reference: str, folder: Path) -> Path:
    """The folder of a model: a local path, or a snapshot of a hub id, perhaps with @revision.

    Raises:
        CheckpointError: If it is neither, or can't be fetched.
    """
    local = _local(reference, folder)
    if local.exists():
        return local
    name, _, revision = reference.partition("@")
    if revision and _local(name, folder).exists():
        raise CheckpointError(
            f"'{reference}': {name} is a folder, and a folder has no revision '{revision}'; leave "
            "@ and what follows out"
        )
    if not _HUB_ID.match(name) or reference.startswith((".", "/", "~")):
        raise CheckpointError(f"'{reference}': there is no such folder ({local})")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_PATTERNS))
    except Exception as error:  # the hub's client raises a dozen types
        reason = first_line(error)
        raise CheckpointError(
            f"'{reference}': there is no such folder, and the hub gave: {reason}"
        ) from None


def absolute(text: str, folder: Path) -> str:
    """The same reference, its folders as absolute paths: a recipe elsewhere can name it."""

    def place(part: str) -> str:
        local = _local(part, folder)
        return str(local) if local.exists() else part

    try:
        reference = read_reference(text, folder)
    except CheckpointError:
        return text
    adapter = reference.adapter
    return place(reference.model) + (f"+{place(adapter)}" if adapter else "")


def _local(reference: str, folder: Path) -> Path:
    # expanduser leaves an unknown user's ~ alone
    return (folder / os.path.expanduser(reference)).resolve()


def _likeness(split: Reference, folder: Path) -> int:
    """How sure it is that both parts name something: folders count more than what looks like ids.

    0 if one of them can't be.
    """
    parts = (split.model, split.adapter or "")
    looks = [
        2 if part and _local(part, folder).exists() else int(_could_be_id(part)) for part in parts
    ]
    return sum(looks) if all(looks) else 0


def _could_be_id(part: str) -> bool:
    return bool(_HUB_ID.match(part.partition("@")[0])) and not part.startswith((".", "~"))
