"""Which loops do the arithmetic: compiled ones on the CPU, plain torch elsewhere."""

import functools
import importlib
import os
import warnings
from typing import Any

import torch

from merge_core.codes import DTYPES


@functools.cache
def native_loops() -> bool:
    """Whether the CPU's compiled loops are used; OUTCROSS_LOOPS=plain or fused forbids them."""
    if os.environ.get("OUTCROSS_LOOPS", "auto") != "auto":
        return False
    try:
        import numba  # noqa: F401  # pyright: ignore
    except ImportError:
        return False
    return True


def fused_loops(device: str) -> bool:
    """Whether torch.compile makes the loops for a type of device.

    OUTCROSS_LOOPS=fused asks for them on the CPU too, plain forbids them everywhere.
    """
    wish = os.environ.get("OUTCROSS_LOOPS", "auto")
    return wish != "plain" and (device != "cpu" or wish == "fused") and _compiles(device)


def address(tensor: torch.Tensor) -> tuple[int, int] | None:
    """Address and dtype code of a tensor that compiled loops can read, else None."""
    code = DTYPES.get(tensor.dtype)
    if code is None or not tensor.is_cpu or not tensor.is_contiguous():
        return None
    return tensor.data_ptr(), code


@functools.cache
def native() -> Any:
    """The compiled loops, imported when first needed: they take a second to load."""
    return importlib.import_module("merge_core.native")


@functools.cache
def _compiles(device: str) -> bool:
    """Whether torch.compile works: it needs a compiler."""
    try:
        compiled: Any = torch.compile(torch.neg, dynamic=True)  # pyright: ignore
        compiled(torch.ones(2, device=device))
    except Exception as error:  # compilers fail in types of their own
        warnings.warn(f"torch.compile fails on {device}, merges are slower: {error}", stacklevel=2)
        return False
    return True
