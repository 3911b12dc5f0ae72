"""The parents' tensors during a search: mapped files on the CPU, copies on an accelerator."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from merge_core.checkpoint import Checkpoint
from merge_core.mapped import lay_down


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
                tensor = lay_down(tensor, self.scratch)
            self._tensors[key] = tensor.to(self.device)
        return self._tensors[key]

    def forget(self) -> None:
        """Drop the tensors read so far, so that a streamed merge stays within its memory."""
        self._tensors.clear()

    @torch.inference_mode()
    def heal(self) -> None:
        """Write into the tensors read so far what the files hold, wherever they differ from that.

        Mapped pages are this process's own once they are written to; the files never change.
        """
        files = Parents(self.checkpoints, self.device, self.scratch)
        for (parent, name), tensor in self._tensors.items():
            stored = files.of(self.checkpoints[parent], name).to(self.device)
            if not torch.equal(_bytes(tensor), _bytes(stored)):
                tensor.copy_(stored)

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


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """What a tensor holds, NaN and all; `(bytes,)`."""
    return tensor.reshape(-1).view(torch.uint8)
