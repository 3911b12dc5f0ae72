"""Landscapes whose recipes are merged and scored for real: slow, and wrong nowhere."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from item_scores import Items, item_gaps, read_items
from landscape_spaces import MODELS, TASKS, Space
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


@dataclass(frozen=True, slots=True)
class Pool:
    """Items that recipes are scored on.

    Attributes:
        folder: Gets the items, and what was scored.
        each: Items of each task.
        first: Place of the first one in the task's list.
    """

    folder: Path
    each: int = ITEMS
    first: int = 0

    @property
    def count(self) -> int:
        """Of all tasks."""
        return self.each * len(TASKS)


def fresh(folder: Path) -> Pool:
    """Items that no deal has: what a search fits by chance is worth nothing there.

    What a deal leaves over is the rest of few items: a winner by luck on some has bad luck on the
    others.
    """
    return Pool(folder / "fresh", 2 * ITEMS, 2 * ITEMS)


@cache
def real_landscape(name: str, folder: Path) -> Landscape:
    """A landscape without an emulator.

    Args:
        name: Of a landscape of numbers, or of an order of layers.
        folder: As of `tabulate_landscapes.py`; what was scored is kept there.
    """
    if name not in ORDERS:
        ground = landscape(name)
        return _grounded(ground.space, ground.built, folder)
    space, parents = ORDERS[name], _parents()
    choices, numeric = (
        _grounded(space, order_space(space, parents, numbers=numbers), folder)
        for numbers in (False, True)
    )
    return replace(choices, numeric=numeric)


def _grounded(space: Space, built: SearchSpace, folder: Path) -> Landscape:
    known, judged = (
        assembled(space, built, _scored(built, pool), pool.count)
        for pool in (Pool(folder), fresh(folder))
    )
    return replace(known, judged=judged)


class Scored:
    """One recipe's gaps, scored where they are looked at and kept for all that look again.

    Args:
        recipe: What to merge.
        file: Where they are kept, by the model's fingerprint.
        pool: The items.
    """

    def __init__(self, recipe: Recipe, file: Path, pool: Pool) -> None:
        self._recipe, self._file, self._pool = recipe, file, pool
        none = np.full((pool.count, 2), np.nan, np.float16)
        self._gaps = np.load(file) if file.exists() else none

    def __getitem__(self, items: Array | slice) -> Array:
        """Gaps of some items, `(items, options - 1)`, in nats."""
        wanted = np.arange(self._pool.count)[items]
        missing = wanted[np.isnan(self._gaps[wanted, 0])]
        if len(missing):
            bench, known = order_bench(self._pool), _items(self._pool)
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


def _scored(built: SearchSpace, pool: Pool) -> Source:
    def source(values: Values) -> Scored:
        recipe = built.decode(values)
        file = pool.folder / "scored" / f"{fingerprint(recipe, built.depths)}.npy"
        if file not in _known:
            _known[file] = Scored(recipe, file, pool)
        return _known[file]

    return source


@cache
def order_bench(pool: Pool) -> Bench:
    """With a live model that is deep enough for every order."""
    torch.set_num_threads(1)
    return build_bench_in(pool.folder, _DEEP, pool.each, pool.first)


@cache
def _items(pool: Pool) -> Items:
    return read_items(order_bench(pool))


@cache
def _parents() -> Mapping[str, Checkpoint]:
    family = cached_family(Console(stderr=True)) / "models"
    return {name: open_checkpoint(family / name, name) for name in MODELS}
