"""Counter-based uniform numbers: a function of key and position, the same on every machine.

A mask drawn with `u < density` is nested in density, so a search over densities sees a smooth
objective instead of new noise in every trial.
"""

import hashlib

import torch

from merge_core.combination import Bernoulli, Magnitude, Nothing, Selection

_MASK = 0xFFFFFFFF


def stream_key(seed: int, tensor: str, parent: int) -> int:
    """A 32-bit key for the random stream of one tensor of one parent.

    Args:
        seed: Seed of the merge.
        tensor: Output name of the tensor.
        parent: Position of the parent among the inputs.
    """
    text = f"{seed}/{parent}/{tensor}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")


def uniform(key: int, start: int, count: int, device: torch.device) -> torch.Tensor:
    """Uniform numbers in [0, 1) for the positions `start` to `start + count`.

    Two rounds of the 32-bit finaliser "lowbias32" (C. Wellons, hash prospector), the key entering
    before each: xoring it into the index only once would merely permute masks between keys.

    Returns:
        float32, `(count,)`, 24 random bits each.
    """
    x = torch.arange(start, start + count, dtype=torch.int64, device=device)
    high = int(start >> 32)
    x = _mix((x & _MASK) ^ key)
    x = _mix((x + (key * 0x9E3779B9 + high * 0x85EBCA6B & _MASK)) & _MASK)
    return (x >> 8).to(torch.float32) * (1.0 / (1 << 24))


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def kept(selection: Selection, delta: torch.Tensor, start: int) -> torch.Tensor | None:
    """Which elements of a piece of a task vector a selection keeps.

    Args:
        selection: The decision for the whole tensor.
        delta: float32, `(count,)`: the flattened task vector from position `start` on.
        start: Position of the first element.

    Returns:
        bool, `(count,)`, or None where all are kept.
    """
    match selection:
        case None:
            return None
        case Nothing():
            return torch.zeros_like(delta, dtype=torch.bool)
        case Bernoulli(density, key):
            return uniform(key, start, delta.numel(), delta.device) < density
        case Magnitude(threshold, cutoff):
            size = delta.abs()
            mask = size > threshold
            if (ties := cutoff - start) > 0:
                mask[:ties] |= size[:ties] == threshold
            return mask
