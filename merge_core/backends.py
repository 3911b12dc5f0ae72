"""Which loops do the arithmetic: compiled ones on the CPU, plain torch elsewhere."""

import functools
import importlib
import os
from typing import Any

import torch

from merge_core.codes import DTYPES


@functools.cache
def native_loops() -> bool:
    """Whether the CPU's compiled loops are used; OUTCROSS_LOOPS=plain forbids them."""
    if os.environ.get("OUTCROSS_LOOPS", "auto") == "plain":
        return False
    try:
        import numba  # noqa: F401  # pyright: ignore
    except ImportError:
        return False
    return True


def address(tensor: torch.Tensor) -> tuple[int, int] | None:
    """Address and dtype code of a tensor that compiled loops can read, else None."""
    code = DTYPES.get(tensor.dtype)
    if code is None or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return None
    return tensor.data_ptr(), code


@functools.cache
def native() -> Any:
    """The compiled loops, imported when first needed: they take a second to load."""
    return importlib.import_module("merge_core.native")
