"""Which elements of a task vector are kept, by magnitude or by counter-based random numbers.

A random number is a function of key and position, the same on every machine and in any order. A
mask `number < density` is nested in density, so a search over densities sees a smooth objective
instead of new noise in every trial.
"""

import functools
import hashlib
import math

import torch

from merge_core.combination import Bernoulli, Magnitude, Nothing, Selection

_BLOCK = 1 << 16
_BITS = 24


def select(selection: Selection, delta: torch.Tensor, start: int) -> torch.Tensor:
    """A piece of a task vector with all but the selected elements set to zero.

    Args:
        selection: The decision for the whole tensor.
        delta: float32, `(count,)`: the flattened task vector from position `start` on.
        start: Position of the first element.

    Returns:
        float32, `(count,)`; may be `delta` itself.
    """
    match selection:
        case None:
            return delta
        case Nothing():
            return torch.zeros_like(delta)
        case Bernoulli(density, key):
            numbers = random_bits(key, start, delta.numel(), delta.device)
            return delta * (numbers < math.ceil(density * (1 << _BITS)))
        case Magnitude(threshold, cutoff):
            return _largest(delta, threshold, cutoff - start)


def stream_key(seed: int, tensor: str, parent: int) -> int:
    """A 64-bit key for the random stream of one tensor of one parent.

    Args:
        seed: Seed of the merge.
        tensor: Output name of the tensor.
        parent: Position of the parent among the inputs.
    """
    text = f"{seed}/{parent}/{tensor}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def random_bits(key: int, start: int, count: int, device: torch.device) -> torch.Tensor:
    """Uniform whole numbers of 24 bits for the positions `start` to `start + count`.

    A position is a block and a place in it: the place's hash is the same for every stream and is
    made once, a block's is a cryptographic hash of key and block number, and one more round mixes
    the two. (Xoring a key into the position itself would only permute masks between keys.)

    Returns:
        int32, `(count,)`.
    """
    first, last = start // _BLOCK, (start + count - 1) // _BLOCK
    blocks = torch.tensor([_block_hash(key, block) for block in range(first, last + 1)])
    mixed = _places(device) ^ blocks.to(device, torch.int32)[:, None]
    offset = start - first * _BLOCK
    return (_mix(mixed).flatten()[offset : offset + count]) & ((1 << _BITS) - 1)


def _largest(delta: torch.Tensor, threshold: float, ties: int) -> torch.Tensor:
    """Elements above the threshold, and those at it among the first `ties`."""
    ties = min(max(ties, 0), delta.numel())
    below = torch.nextafter(torch.tensor(threshold), torch.tensor(0.0)).item()
    parts = [
        torch.nn.functional.hardshrink(part, limit)
        for part, limit in ((delta[:ties], below), (delta[ties:], threshold))
        if part.numel()
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _block_hash(key: int, block: int) -> int:
    digest = hashlib.blake2b(f"{key}/{block}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little", signed=True)


@functools.cache
def _places(device: torch.device) -> torch.Tensor:
    return _mix(torch.arange(1, _BLOCK + 1, dtype=torch.int32, device=device))


def _mix(x: torch.Tensor) -> torch.Tensor:
    """The 32-bit finaliser "lowbias32" (C. Wellons, hash prospector), in wrapping int32."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x *= 0x7FEB352D
    x ^= (x >> 15) & 0x1FFFF
    x *= 0x846CA68B - (1 << 32)
    x ^= (x >> 16) & 0xFFFF
    return x
