"""The parents' tensors during a search: mapped files on the CPU, copies on an accelerator."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from merge_core.checkpoint import Checkpoint


class Parents:
    """Read-only tensors of several checkpoints.

    On the CPU a tensor is a view of the mapped file: the page cache holds it, processes share it
    and memory pressure can drop it. On an accelerator each tensor is copied once, when first used.

    Args:
        checkpoints: The parents by alias.
        device: Where merges run.
    """

    def __init__(self, checkpoints: Mapping[str, Checkpoint], device: torch.device) -> None:
        self.checkpoints = dict(checkpoints)
        self.device = device
        self._files: dict[Path, Any] = {}
        self._tensors: dict[tuple[str, str], torch.Tensor] = {}

    def tensor(self, parent: str, name: str) -> torch.Tensor:
        """The stored tensor, in its stored dtype and shape; never write to it."""
        key = (parent, name)
        if key not in self._tensors:
            self._tensors[key] = self._read(parent, name).to(self.device)
        return self._tensors[key]

    def forget(self) -> None:
        """Drop the tensors read so far, so that a streamed merge stays within its memory."""
        self._tensors.clear()

    def _read(self, parent: str, name: str) -> torch.Tensor:
        checkpoint = self.checkpoints[parent]
        path = checkpoint.folder / checkpoint.tensors[name].file
        if path not in self._files:
            # Kept open for the life of this object: mapping a file again costs milliseconds.
            opened: Any = safe_open(path, framework="pt")
            self._files[path] = opened.__enter__()
        return self._files[path].get_tensor(name)
