"""Whether a tensor still holds what it held: a checksum of every byte, in one pass.

torch counts a tensor's changes itself, but not those made through `.data` or numpy. One thread of a
CPU reads 10 GB/s here (cryptographic digests: 1 to 2), an accelerator as fast as its memory is.
"""

from collections.abc import Sequence
from functools import cache
from typing import cast

import torch

_PIECE = {"cpu": 1 << 17, "other": 1 << 22}  # words: on a CPU what stays in the second-level cache
_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


@torch.inference_mode()
def checksum(tensor: torch.Tensor) -> tuple[int, ...]:
    """A number for each piece of a tensor's memory, `(pieces,)`.

    Words are weighed by fixed random odd numbers and added up modulo 2^64. So one changed word
    always shows, and any other change, another order too, but for a chance of about 2^-60.

    Args:
        tensor: Of any shape and dtype. Sums of one place in memory are to be compared, not of two.
    """
    weights, room = _weights(tensor.device)
    pieces = cast("Sequence[torch.Tensor]", _words(tensor).split(len(weights)))  # pyright: ignore
    sums = [
        torch.mul(piece, weights[: len(piece)], out=room[: len(piece)]).sum() for piece in pieces
    ]
    return tuple(int(one) for one in torch.stack(sums).tolist())  # pyright: ignore


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bytes as the widest integers that its place in memory allows, `(words,)`."""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    sizes = raw.storage_offset(), len(raw)
    return raw.view(next(_WORDS[width] for width in _WORDS if not any(s % width for s in sizes)))


@cache
def _weights(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Random odd numbers, and room for as many products; `(words,)`, int64."""
    size = _PIECE["cpu" if device.type == "cpu" else "other"]
    drawn = torch.randint(-(2**63), 2**63 - 1, (size,), generator=torch.Generator().manual_seed(0))
    return (drawn | 1).to(device), torch.empty(size, dtype=torch.int64, device=device)
