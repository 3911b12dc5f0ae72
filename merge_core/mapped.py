"""Tensors in mapped files: the page cache holds them, and memory pressure can drop them."""

import os
import tempfile
from pathlib import Path

import torch

from merge_core.errors import MergeError


def lay_down(tensor: torch.Tensor, folder: Path | None) -> torch.Tensor:
    """The same tensor mapped from a file without a name, which vanishes with it.

    Args:
        tensor: On the CPU.
        folder: Where; default the system's temporary folder.

    Raises:
        MergeError: If there is no room.
    """
    return make_room(tensor.shape, tensor.dtype, folder).copy_(tensor)


def make_room(shape: torch.Size, dtype: torch.dtype, folder: Path | None) -> torch.Tensor:
    """A tensor of undefined values mapped from a file without a name, which vanishes with it.

    Raises:
        MergeError: If there is no room.
    """
    size = shape.numel() * dtype.itemsize
    if not size:
        return torch.empty(shape, dtype=dtype)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".outcross-") as file:
        mapped = map_file(Path(file.name), size)
    return mapped.view(dtype).view(shape)


def map_file(path: Path, size: int) -> torch.Tensor:
    """An existing file's first bytes as a writable uint8 tensor, `(size,)`; the file grows to it.

    Raises:
        MergeError: If there is no room: a full disk that shows only when the map is written would
            kill the process.
    """
    with path.open("r+b") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # macOS
                file.truncate(size)
        except OSError as error:
            raise MergeError(
                f"{path.parent}: no room for {size} bytes ({error.strerror}); free some, or put "
                "the output on a larger disk"
            ) from None
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)
