"""Landscapes whose recipes are merged and scored for real: slow, and wrong nowhere."""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from item_scores import Items, item_gaps, read_items
from landscape_spaces import MODELS, TASKS
from landscapes import Array, Landscape, Source, assembled, landscape
from order_spaces import DEEPEST, ORDERS, order_space
from rich.console import Console
from tabulate_landscapes import ITEMS, build_bench_in

from merge_core.checkpoint import Checkpoint, open_checkpoint
from merge_core.recipe import Recipe
from search.bench import Bench
from search.known import fingerprint
from search.quickstart import cached_family
from search.space import SearchSpace, Values

_DEEP = {"slices": {"origin": "base", "depth": [1, DEEPEST]}}
_MANY = ITEMS * len(TASKS)


@cache
def real_landscape(name: str, folder: Path) -> Landscape:
    """A landscape without an emulator.

    Args:
        name: Of a landscape of numbers, or of an order of layers.
        folder: As of `tabulate_landscapes.py`; what was scored is kept there.
    """
    if name not in ORDERS:
        ground = landscape(name)
        return replace(ground, source=_scored(ground.built, folder))
    space, parents = ORDERS[name], _parents()
    choices, numeric = (
        assembled(space, built, _scored(built, folder), _MANY)
        for built in (order_space(space, parents, numbers=numbers) for numbers in (False, True))
    )
    return replace(choices, numeric=numeric)


class Scored:
    """One recipe's gaps, scored where they are looked at and kept for all that look again.

    Args:
        recipe: What to merge.
        file: Where they are kept, by the model's fingerprint.
        folder: Of the items.
    """

    def __init__(self, recipe: Recipe, file: Path, folder: Path) -> None:
        self._recipe, self._file, self._folder = recipe, file, folder
        self._gaps = np.load(file) if file.exists() else np.full((_MANY, 2), np.nan, np.float16)

    def __getitem__(self, items: Array | slice) -> Array:
        """Gaps of some items, `(items, options - 1)`, in nats."""
        wanted = np.arange(_MANY)[items]
        missing = wanted[np.isnan(self._gaps[wanted, 0])]
        if len(missing):
            bench, known = order_bench(self._folder), _items(self._folder)
            self._gaps[missing] = item_gaps(self._recipe, bench, known, missing)
            self._keep()
        return self._gaps[wanted].astype(np.float32)

    def _keep(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        draft = self._file.with_suffix(f".{os.getpid()}")
        with draft.open("wb") as stream:
            np.save(stream, self._gaps)
        os.replace(draft, self._file)


_known: dict[Path, Scored] = {}


def _scored(built: SearchSpace, folder: Path) -> Source:
    def source(values: Values) -> Scored:
        recipe = built.decode(values)
        file = folder / "scored" / f"{fingerprint(recipe, built.depths)}.npy"
        if file not in _known:
            _known[file] = Scored(recipe, file, folder)
        return _known[file]

    return source


@cache
def order_bench(folder: Path) -> Bench:
    """With a live model that is deep enough for every order."""
    torch.set_num_threads(1)
    return build_bench_in(folder, _DEEP)


@cache
def _items(folder: Path) -> Items:
    return read_items(order_bench(folder))


@cache
def _parents() -> Mapping[str, Checkpoint]:
    family = cached_family(Console(stderr=True)) / "models"
    return {name: open_checkpoint(family / name, name) for name in MODELS}
