"""Per-item results as short texts: a thousand trials of a thousand items fit a small database.

Rights and wrongs take a bit each; numbers 16 bits, as steps between their least and their largest,
so nothing is off by more than 1/131,070 of that range; whole numbers in a range of 65,535 stay
exact. Of counts that go with one another the differences are kept. What is short or holds no
numbers of these kinds stays a list, to seven digits.
"""

import base64
import math
import zlib
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from evals.scorecard import Value

_STEPS = 65_535
_SHORT = 32  # lists below that are no longer than their packed form would be

Packed = str | list[Any]
Array = np.ndarray[Any, np.dtype[np.float64]]


def pack(values: Sequence[Value]) -> Packed | dict[str, Packed]:
    """Per-item results for storage.

    Args:
        values: Numbers, or tuples of the same length.

    Returns:
        JSON: a text for numbers, a mapping of texts for tuples, or a list.
    """
    if all(value in (0, 1) for value in values):
        return _pack_bits([cast("float", value) for value in values])
    if len(values) < _SHORT:
        return [_rounded(value) for value in values]
    if not any(isinstance(value, tuple) for value in values):
        return _pack_numbers(cast("Sequence[float]", values))
    lengths = {len(value) if isinstance(value, tuple) else 0 for value in values}
    if len(lengths) > 1:
        return [_rounded(value) for value in values]
    return _pack_columns(np.array(values, dtype=np.float64).T)


def unpack(packed: Packed | dict[str, Packed]) -> tuple[Value, ...]:
    """The inverse of `pack`."""
    match packed:
        case dict():
            return tuple(zip(*_unpack_columns(packed), strict=True))
        case str() if packed.startswith("bits:"):
            return _unpack_bits(packed)
        case str():
            return _unpack_numbers(packed)
        case _:
            return tuple(_value(entry) for entry in packed)


def _pack_bits(values: Sequence[float]) -> str:
    data = np.packbits(np.array(values, dtype=bool)).tobytes()
    return f"bits:{len(values)}:{base64.b85encode(data).decode()}"


def _unpack_bits(text: str) -> tuple[float, ...]:
    _, count, data = text.split(":", 2)
    bits = np.unpackbits(np.frombuffer(base64.b85decode(data), np.uint8), count=int(count))
    return tuple(float(bit) for bit in bits)


def _pack_columns(columns: Array) -> dict[str, Packed]:
    """Counts go with one another: a column may be kept as what it has more than an earlier one.

    Its name then says so: `3-1` is the third less the first.
    """
    whole = (np.isfinite(columns) & (columns == np.round(columns))).all(axis=1)
    packed: dict[str, Packed] = {}
    for number, column in enumerate(columns):
        kept = {str(number): column}
        for at in range(number):
            less = column - columns[at] if whole[at] and whole[number] else column
            if np.ptp(less) < np.ptp(column):
                kept[f"{number}-{at}"] = less
        name = min(kept, key=lambda name: float(kept[name].std()))
        packed[name] = _pack_numbers(kept[name])
    return packed


def _unpack_columns(packed: dict[str, Packed]) -> list[list[float]]:
    columns: list[Array] = []
    for name, column in packed.items():
        _, _, earlier = name.partition("-")
        more = columns[int(earlier)] if earlier else 0.0
        columns.append(np.array(unpack(column)) + more)
    return [column.tolist() for column in columns]


def _pack_numbers(values: Sequence[float] | Array) -> Packed:
    given: Array = np.array(values, dtype=np.float64)
    low, high = float(given.min()), float(given.max())
    spread = high - low
    if not math.isfinite(spread):
        return [_rounded(value) for value in values]
    whole = spread <= _STEPS and bool((given == np.round(given)).all())
    step = 1.0 if whole else spread / _STEPS
    if step == 0.0 and spread:  # too small for float64 to divide
        return [_rounded(value) for value in values]
    steps = np.round((given - low) / step) if step else np.zeros_like(given)
    # Low and high bytes apart: the high ones repeat, and only repetition can be squeezed.
    data = steps.astype("<u2").view(np.uint8).reshape(-1, 2).T.tobytes()
    squeezed = base64.b85encode(zlib.compress(data, 9)).decode()
    return f"steps:{low!r}:{step!r}:{squeezed}"


def _unpack_numbers(text: str) -> tuple[float, ...]:
    _, low, step, data = text.split(":", 3)
    planes = np.frombuffer(zlib.decompress(base64.b85decode(data)), np.uint8).reshape(2, -1)
    steps = np.ascontiguousarray(planes.T).view("<u2").ravel()
    return tuple((float(low) + steps * float(step)).tolist())


def _rounded(value: Value) -> Any:
    if isinstance(value, tuple):
        return [_rounded(part) for part in value]
    return float(f"{value:.7g}")


def _value(entry: Any) -> Value:
    return tuple(cast("list[float]", entry)) if isinstance(entry, list) else entry
