"""What a proposal costs where orders of layers are searched, with models of 30 layers.

    PYTHONPATH=.:benchmarks:tests/support python benchmarks/bench_orders.py

Prints process CPU milliseconds for each form: a trial's values drawn, turned into a recipe and its
model's key, after so many told trials of 512 items each; and of the last trials how many were
models that had been asked for before.
"""

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy reads it

import numpy as np
import optuna
from headers import checkpoint
from optuna.trial import FrozenTrial
from scipy.special import expit

from search.asking import Asked, Proposer, ask_batch
from search.holes import build_space
from search.outputs import Outputs, Part, joined
from search.space import SearchSpace

LAYERS, ITEMS, BATCH = 30, 512, 4
WRITERS = {
    "self_attn.o_proj.weight": (4, 4),
    "mlp.up_proj.weight": (8, 4),
    "mlp.down_proj.weight": (4, 8),
}
WEIGHT = {"parameters": {"weight": {"range": [0.0, 1.5]}}}
MERGED = {
    "merge_method": "task_arithmetic",
    "base_model": "base",
    "models": [{"model": name, **WEIGHT} for name in ("a", "b")],
}
FORMS: dict[str, dict[str, Any]] = {
    "origin, of 3 each": {**MERGED, "slices": {"origin": ["a", "b", "merge"]}},
    "origin, 26 to 34 layers": {**MERGED, "slices": {"origin": "merge", "depth": [26, 34]}},
    "cuts: 4": {"slices": {"cuts": 4, "of": ["base", "a", "b"]}},
    "walk, 4 jumps, scales": {"slices": {"walk": 1, "of": ["a", "b"], "scale": True}},
}


def main() -> None:
    stated = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    stated.add_argument("--words", nargs="+", default=["composite", "tpe", "evolution", "catcma"])
    stated.add_argument("--trials", nargs="+", type=int, default=[100, 300])
    options = stated.parse_args()
    heads = " | ".join(f"n={n}, ms | known models" for n in options.trials)
    print(f"| sampler | form | dimensions | {heads} |")
    print("|" + " --- |" * (3 + 2 * len(options.trials)))
    for word in options.words:
        for form, recipe in FORMS.items():
            space = _space(recipe)
            pairs = clocked(word, space, options.trials)
            cells = " | ".join(f"{ms:.0f} | {share:.0%}" for ms, share in pairs)
            print(f"| {word} | {form} | {len(space.dimensions)} | {cells} |", flush=True)


def clocked(word: str, space: SearchSpace, sizes: Sequence[int]) -> list[tuple[float, float]]:
    """Milliseconds of a proposal and the share of known models, of the last 20 before each size."""
    study, items = optuna.create_study(direction="maximize"), _Items(space)
    keys: list[str] = []
    spent: list[float] = []
    while len(keys) < max(sizes):
        begun = time.process_time()
        asked = ask_batch(study, space, Proposer(word, 0, BATCH, items.read), max(sizes))
        spent += [1e3 * (time.process_time() - begun) / len(asked)] * len(asked)
        keys += [one.key for one in asked]
        for one in asked:
            one.tell([items.tell(one)])
    old = [key in keys[:at] for at, key in enumerate(keys)]
    return [(statistics.mean(spent[n - 20 : n]), statistics.mean(old[n - 20 : n])) for n in sizes]


class _Items:
    """Items that like some layers of some models at some depths, each its own.

    Args:
        space: Whose recipes are scored.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._names = list(space.depths)
        chance = np.random.default_rng(0)
        self._likes = chance.normal(size=(ITEMS, len(self._names), LAYERS)) / LAYERS**0.5
        self._odds: list[np.ndarray[Any, Any]] = []

    def tell(self, one: Asked) -> float:
        """The score of a trial, which is remembered."""
        odds = np.zeros(ITEMS)
        for part in one.recipe.slices:
            for source in part.sources:
                begin, end = source.layers or (0, LAYERS)
                odds += self._likes[:, self._names.index(source.model), begin:end].sum(1)
        self._odds.append(odds)
        return float(expit(odds).mean())

    def read(self, trials: Sequence[FrozenTrial]) -> tuple[list[FrozenTrial], Outputs]:
        """What trials reported of their items."""
        rows = np.array([self._odds[trial.number] for trial in trials])
        told = np.array([trial.values for trial in trials])
        part = Part(ITEMS, np.ones(ITEMS), np.ones(1))
        return list(trials), joined([part], rows, told, np.empty((len(trials), 0)))


def _space(recipe: dict[str, Any]) -> SearchSpace:
    parents = {name: checkpoint(name, LAYERS, layer=WRITERS) for name in ("base", "a", "b")}
    mistakes: list[str] = []
    space = build_space(recipe, parents, mistakes, parents)
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return space


if __name__ == "__main__":
    main()
