"""Landscapes whose recipes are merged and scored for real: slow, and wrong nowhere."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from landscapes import Array, Landscape, landscape
from tabulate_landscapes import build_bench_in, gaps

from merge_core.recipe import to_dict
from search.known import fingerprint
from search.space import Values


@cache
def real_landscape(name: str, folder: Path) -> Landscape:
    """A landscape without its emulator: .22 s of CPU a recipe.

    Args:
        name: Of a landscape of numbers.
        folder: As of `tabulate_landscapes.py`.
    """
    torch.set_num_threads(1)
    ground, bench = landscape(name), build_bench_in(folder)
    known: dict[str, Array] = {}

    def source(values: Values) -> Array:
        recipe = ground.built.decode(values)
        key = fingerprint(recipe)
        if key not in known:
            known[key] = gaps(to_dict(recipe), bench).astype(np.float32)
        return known[key]

    return replace(ground, source=source)
