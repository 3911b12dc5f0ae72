"""The parents' tensors during a search: mapped files on the CPU, copies on an accelerator."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from merge_core.checkpoint import Checkpoint
from merge_core.errors import MergeError


class Parents:
    """Read-only tensors of several checkpoints.

    On the CPU a tensor is a view of the mapped file: the page cache holds it, processes share it
    and memory pressure can drop it. On an accelerator each tensor is copied once, when first used.
    A derived tensor (an adapter's, or one whose rows follow another vocabulary) is made when first
    asked for; on the CPU it is then a view of a file without a name, which vanishes with it.

    Args:
        checkpoints: The parents by alias.
        device: Where merges run.
        scratch: Where derived tensors are laid down; default the system's temporary folder.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, Checkpoint],
        device: torch.device,
        scratch: Path | None = None,
    ) -> None:
        self.checkpoints = dict(checkpoints)
        self.device = device
        self.scratch = scratch
        self._files: dict[Path, Any] = {}
        self._tensors: dict[tuple[str, str], torch.Tensor] = {}

    def tensor(self, parent: str, name: str) -> torch.Tensor:
        """The stored tensor, in its stored dtype and shape; never write to it."""
        key = (parent, name)
        if key not in self._tensors:
            checkpoint = self.checkpoints[parent]
            tensor = self.of(checkpoint, name)
            if name in checkpoint.derived and self.device.type == "cpu":
                tensor = _laid_down(tensor, self.scratch)
            self._tensors[key] = tensor.to(self.device)
        return self._tensors[key]

    def forget(self) -> None:
        """Drop the tensors read so far, so that a streamed merge stays within its memory."""
        self._tensors.clear()

    def of(self, checkpoint: Checkpoint, name: str) -> torch.Tensor:
        """A tensor of any checkpoint, stored or derived, on the CPU; nothing of it is kept.

        Raises:
            MergeError: If a derivation refuses its numbers.
        """
        if name in checkpoint.derived:
            return checkpoint.derived[name].build(self)
        return self.stored(checkpoint.folder / checkpoint.tensors[name].file, name)

    def stored(self, path: Path, name: str) -> torch.Tensor:
        """A tensor of a safetensors file, mapped."""
        if path not in self._files:
            # Kept open for the life of this object: mapping a file again costs milliseconds.
            opened: Any = safe_open(path, framework="pt")
            self._files[path] = opened.__enter__()
        return self._files[path].get_tensor(name)


def _laid_down(tensor: torch.Tensor, folder: Path | None) -> torch.Tensor:
    """The same tensor mapped from a file, so that memory pressure can drop it during a search."""
    if not tensor.numel():
        return tensor
    size = tensor.numel() * tensor.dtype.itemsize
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".outcross-") as file:
        _reserve(file.fileno(), size, Path(file.name).parent)
        mapped = torch.from_file(file.name, shared=True, size=size, dtype=torch.uint8)
    mapped = mapped.view(tensor.dtype).view(tensor.shape)
    return mapped.copy_(tensor)


def _reserve(file: int, size: int, folder: Path) -> None:
    """Take the room now: a full disk that shows only when the map is written kills the process."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        raise MergeError(
            f"{folder}: no room for {size} bytes of a tensor that no file holds "
            f"({error.strerror}); free some, or put the output on a larger disk"
        ) from None
