"""Which elements of a task vector are kept: by magnitude, by random numbers or by stored scores.

A random number is a function of key and position, the same on every machine and in any order. A
mask `number < limit` is nested in its limit, so a search over densities sees a smooth objective
instead of new noise in every trial. `native.py` holds the same functions for compiled loops.
"""

import hashlib

import torch

from merge_core.combination import Bernoulli, Cut, Nothing, Scored, Selection, Stream, Window

BLOCK = 1 << 16
"""Positions that share one key of the hash."""

LEVELS = 1 << 12
"""A density of a random mask is resolved to one part in so many."""

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def select(selection: Selection, delta: torch.Tensor, start: int) -> torch.Tensor:
    """A piece of a task vector with all but the selected elements set to zero.

    Args:
        selection: The decision for the whole tensor.
        delta: float32, `(count,)`: the flattened task vector from position `start` on.
        start: Position of the first element.

    Returns:
        float32, `(count,)`; may be `delta` itself. A NaN outside a random mask stays.
    """
    match selection:
        case None:
            return delta
        case Nothing():
            return torch.zeros_like(delta)
        case Bernoulli(limit, stream):
            numbers = random_bits(stream, start, delta.numel(), delta.device)
            return delta.masked_fill(numbers >= limit, 0.0)
        case Scored(limit, _, scores):
            piece = scores[start : start + delta.numel()].to(torch.int32)
            return delta.masked_fill(piece >= limit, 0.0)
        case Window(first, last):
            return _window(delta, start, first, last)


def density_limit(density: float) -> int:
    """The limit of a random mask, of 65536: density in steps of 1/4096, at least one step."""
    return max(1, round(density * LEVELS)) * (BLOCK // LEVELS)


def random_stream(seed: int, tensor: str, parent: int) -> Stream:
    """The random stream of one tensor of one parent; two parents share one key.

    Args:
        seed: Seed of the merge.
        tensor: Output name of the tensor.
        parent: Position of the parent among the inputs.
    """
    text = f"{seed}/{parent // 2}/{tensor}".encode()
    key = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    return Stream(key, parent % 2)


def random_bits(stream: Stream, start: int, count: int, device: torch.device) -> torch.Tensor:
    """Uniform whole numbers of 16 bits for the positions `start` to `start + count`.

    A position is a block and a place in it. The block's 64-bit key is splitmix64 of key and block
    number; the place goes through the 32-bit finaliser "lowbias32" (C. Wellons, hash prospector)
    with one half of that key added before it and the other xored in its middle. (Xoring a key
    into the position alone would only permute masks between keys.)

    Returns:
        int32, `(count,)`, 0 to 65535.
    """
    before, within = block_keys(stream.key, start, count, device)
    places = torch.arange(BLOCK, dtype=torch.int32, device=device)
    mixed = mixed_bits(places, before[:, None], within[:, None]).flatten()
    offset = start % BLOCK
    return (mixed[offset : offset + count] >> (16 * stream.half)) & 0xFFFF


def block_keys(
    key: int, start: int, count: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two halves of the keys of the blocks that some positions lie in, int32 `(blocks,)`."""
    blocks = range(start // BLOCK, (start + count - 1) // BLOCK + 1)
    keys = [splitmix64(key + block * _GOLDEN) for block in blocks]
    before, within = (
        torch.tensor([_signed(key >> shift) for key in keys], dtype=torch.int32, device=device)
        for shift in (0, 32)
    )
    return before, within


def mixed_bits(places: torch.Tensor, before: torch.Tensor, within: torch.Tensor) -> torch.Tensor:
    """The 32 random bits of places in their blocks; all int32, the keys broadcast to places."""
    return _mix(places * _signed(0x9E3779B9) + before, within)


def splitmix64(x: int) -> int:
    """The finaliser of Steele et al. 2014 (doi:10.1145/2714064.2660195), modulo 2^64."""
    x = (x + _GOLDEN) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def before(cut: Cut, size: torch.Tensor, start: int) -> torch.Tensor:
    """Which elements of a piece are before a cut; `size` is their |delta|, NaN counts as before."""
    places = torch.arange(start, start + size.numel(), device=size.device)
    return ~(size <= cut.threshold) | ((size == cut.threshold) & (places < cut.index))


def _window(delta: torch.Tensor, start: int, first: Cut | None, last: Cut | None) -> torch.Tensor:
    if first is None and last is not None:
        return _largest(delta, last.threshold, last.index - start)
    size = delta.abs()
    dropped = torch.zeros_like(size, dtype=torch.bool)
    if first is not None:
        dropped |= before(first, size, start)
    if last is not None:
        dropped |= ~before(last, size, start)
    return delta.masked_fill(dropped & ~size.isnan(), 0.0)


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


def _signed(value: int) -> int:
    """The low 32 bits as a signed whole number."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value


def _mix(x: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """lowbias32 in wrapping int32, with a key xored in after its second shift."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF) ^ key
    x = x * _signed(0x846CA68B)
    return x ^ ((x >> 16) & 0xFFFF)
