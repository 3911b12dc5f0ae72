"""Open a parent: what its folder holds, from headers alone.

Only safetensors are read. Pickled weights (`.bin`, `.pt`) can run code when they are loaded and
are refused by name.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import safe_open

from merge_core.errors import CheckpointError
from merge_core.naming import Layout, find_layout, role

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_POINTER = b"version https://git-lfs.github.com/spec/"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape and dtype of one stored tensor, and the file that holds it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: str

    @property
    def numel(self) -> int:
        """Number of elements."""
        return int(torch.Size(self.shape).numel())


class Reader(Protocol):
    """Gives tensors to a derivation; see `merge_core.parents.Parents`."""

    def stored(self, path: Path, name: str) -> torch.Tensor:
        """A tensor of a safetensors file, on the CPU; never write to it."""
        ...

    def of(self, checkpoint: "Checkpoint", name: str) -> torch.Tensor:
        """A tensor of a checkpoint, stored or derived, on the CPU; never write to it."""
        ...


class Derivation(Protocol):
    """How one tensor that no file holds is made. Its shape and dtype stand in its TensorSpec."""

    @property
    def files(self) -> tuple[Path, ...]:
        """What it depends on beside the checkpoint's own files; for the digest."""
        ...

    def build(self, reader: Reader) -> torch.Tensor:
        """The tensor, on the CPU, in the shape and dtype that its TensorSpec promises."""
        ...


@dataclass(frozen=True, slots=True, eq=False)  # what is derived from one is kept by identity
class Checkpoint:
    """A model folder as a parent of a merge.

    Attributes:
        name: Alias by which recipes call it.
        folder: Where its files are.
        config: The parsed `config.json`.
        tensors: Its stored tensors by name, in name order.
        layout: How its layers are numbered.
        layers: Tensor names by layer; None holds those outside the layers.
        derived: How tensors that no file holds are made, by name; each has its spec in `tensors`.
        companions: What stands beside the weights (a path is copied, a text is written), by name;
            None means what is found in the folder.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorSpec]
    layout: Layout
    layers: Mapping[int | None, tuple[str, ...]]
    derived: Mapping[str, Derivation] = field(default_factory=dict[str, Derivation])
    companions: Mapping[str, Path | str] | None = None

    @property
    def bytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(spec.numel * spec.dtype.itemsize for spec in self.tensors.values())

    @property
    def ties_embeddings(self) -> bool:
        """Whether the head is the embedding matrix; where nothing is stated, the weights tell."""
        text = cast("Mapping[str, Any]", self.config.get("text_config") or {})
        stated = self.config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
        outer = self.layers[None]
        own = any(role(name) == "head" and name.endswith("weight") for name in outer)
        return bool(stated) if stated is not None else not own


def open_checkpoint(folder: Path, name: str) -> Checkpoint:
    """Read the configuration and all safetensors headers of a model folder.

    Args:
        folder: A Hugging Face model folder.
        name: Alias for errors and recipes.

    Raises:
        CheckpointError: If the folder, its configuration or its weights can't be read.
    """
    where = f"model '{name}' ({folder})"
    config = read_config(folder, where)
    return assemble(name, folder, config, _read_headers(folder, where), where)


def assemble(
    name: str,
    folder: Path,
    config: Mapping[str, Any],
    specs: Mapping[str, TensorSpec],
    where: str,
    companions: Mapping[str, Path | str] | None = None,
) -> Checkpoint:
    """A checkpoint from what is known of it; its files need not be written yet.

    Raises:
        CheckpointError: If its layers can't be told from its tensors' names.
    """
    layout = find_layout(specs, config, where)
    layers: dict[int | None, list[str]] = {None: []}
    for tensor in specs:
        layers.setdefault(layout.layer(tensor), []).append(tensor)
    by_layer = {layer: tuple(names) for layer, names in layers.items()}
    return Checkpoint(name, folder, config, specs, layout, by_layer, companions=companions)


def digest(checkpoint: Checkpoint) -> str:
    """sha256 over the configuration, every weight file and what derived tensors depend on.

    Reading the files whole also brings them into the page cache, where the merge wants them.
    """
    seen = hashlib.sha256()
    own = sorted({spec.file for spec in checkpoint.tensors.values()} | {"config.json"})
    more = [file for _, made in sorted(checkpoint.derived.items()) for file in made.files]
    for file in dict.fromkeys([*(checkpoint.folder / name for name in own), *more]):
        with file.open("rb") as handle:
            seen.update(hashlib.file_digest(handle, "sha256").digest())
    return seen.hexdigest()


def read_config(folder: Path, where: str) -> dict[str, Any]:
    """Parse `config.json`.

    Raises:
        CheckpointError: If the folder or the file is missing or is not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        what = "has no config.json" if folder.is_dir() else "is no folder"
        raise CheckpointError(f"{where}: the path {what}; give a Hugging Face model folder")
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{where}: config.json is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{where}: config.json holds no JSON object")
    return cast("dict[str, Any]", config)


def read_header(path: Path, where: str) -> dict[str, TensorSpec]:
    """Names, shapes and dtypes of one safetensors file, in name order.

    Raises:
        CheckpointError: If it is missing, damaged, or has a dtype that can't be merged.
    """
    if not path.is_file():
        raise CheckpointError(f"{where}: {path.name} is missing; copy the model again")
    try:
        with safe_open(path, framework="pt") as handle:  # pyright: ignore[reportUnknownVariableType]
            names = sorted(handle.keys())  # pyright: ignore
            return {name: _spec(handle, name, path, where) for name in names}  # pyright: ignore
    except CheckpointError:
        raise
    except Exception as error:  # safetensors raises a type of its own without a public name
        if _is_pointer(path):
            raise CheckpointError(
                f"{where}: {path.name} is a Git LFS pointer and not the weights; fetch them with "
                "'git lfs pull'"
            ) from None
        raise CheckpointError(f"{where}: {path.name} is not readable: {error}") from None


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as handle:
        return handle.read(len(_POINTER)) == _POINTER


def _read_headers(folder: Path, where: str) -> dict[str, TensorSpec]:
    if not (folder / INDEX).is_file():
        return read_header(folder / _single_file(folder, where), where)
    promised = _read_index(folder, where)
    specs: dict[str, TensorSpec] = {}
    for file in sorted(set(promised.values())):
        specs |= _read_listed(folder / file, where)
    if lost := sorted(promised.keys() - specs.keys()):
        raise CheckpointError(f"{where}: {INDEX} names tensor '{lost[0]}', which no file holds")
    return dict(sorted(specs.items()))


def _read_listed(path: Path, where: str) -> dict[str, TensorSpec]:
    if not path.is_file():
        raise CheckpointError(f"{where}: {path.name} is named in {INDEX} but is missing")
    return read_header(path, where)


def _read_index(folder: Path, where: str) -> dict[str, str]:
    """File by tensor name."""
    try:
        index = json.loads((folder / INDEX).read_text("utf-8"))
        return {str(name): _file_name(file) for name, file in index["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{where}: {INDEX} is damaged; copy it again") from None


def _file_name(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _single_file(folder: Path, where: str) -> str:
    if (folder / SINGLE).is_file():
        return SINGLE
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth"})
    hint = (
        f"found {pickled[0]}, which is pickled and is never loaded; save the model again with "
        "safe_serialization"
        if pickled
        else f"expected {SINGLE} or {INDEX}"
    )
    raise CheckpointError(f"{where}: no safetensors weights; {hint}")


def _spec(handle: Any, name: str, path: Path, where: str) -> TensorSpec:
    part = handle.get_slice(name)
    if (dtype := DTYPES.get(part.get_dtype())) is None:
        raise CheckpointError(
            f"{where}: tensor '{name}' has dtype {part.get_dtype()}, which can't be merged; "
            f"convert the model to one of {', '.join(DTYPES)}"
        )
    return TensorSpec(name, tuple(part.get_shape()), dtype, path.name)
