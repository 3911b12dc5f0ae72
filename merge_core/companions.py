"""What a model folder holds beside weights and configuration: tokenizer, templates, generation."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from merge_core.checkpoint import Checkpoint

Companion = Path | str
"""A file to copy, or the text to write."""

_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "additional_chat_templates/*.jinja",
)
# Anything else (cards, licences, training state, code) speaks of the parent, not of the merge.
_PATTERNS = (*_TOKENIZER, "generation_config.json")
# Second spellings of a vocabulary: they would contradict a changed tokenizer.json.
_SPELLINGS = ("added_tokens.json", "vocab*", "merges.txt", "*.model")
GENERATION = "generation_config.json"


def companions(checkpoint: Checkpoint) -> Mapping[str, Companion]:
    """A model's companions by name, relative to its folder."""
    if checkpoint.companions is not None:
        return checkpoint.companions
    folder = checkpoint.folder
    found = {path for pattern in _PATTERNS for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): path for path in sorted(found)}


def read_companion(files: Mapping[str, Companion], name: str) -> str | None:
    """The text of one of them; None if there is no such file."""
    file = files.get(name)
    return file.read_text("utf-8") if isinstance(file, Path) else file


def without_spellings(files: Mapping[str, Companion]) -> dict[str, Companion]:
    """Without the files that spell the vocabulary a second time."""
    return {
        name: file
        for name, file in files.items()
        if not any(Path(name).match(pattern) for pattern in _SPELLINGS)
    }


def without_generation(files: Mapping[str, Companion]) -> dict[str, Companion]:
    """The tokenizer's files alone."""
    return {name: file for name, file in files.items() if name != GENERATION}


def write_companions(files: Mapping[str, Companion], folder: Path) -> None:
    """Put them into a folder."""
    for name, file in files.items():
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        if isinstance(file, Path):
            shutil.copyfile(file, target)
        else:
            target.write_text(file, "utf-8")
