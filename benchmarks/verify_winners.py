"""Merge and score for real what contestants chose on the emulated landscapes.

    PYTHONPATH=.:benchmarks python benchmarks/verify_winners.py CACHE

An emulator may be wrong just where a search goes, which recipes drawn evenly don't show. It prints
the accuracy on all items as emulated and as it is, of the starts and of some contestants' winners.
"""

import argparse
from pathlib import Path

import numpy as np
from contestants import Contestant, mergekit_evolve, outcross
from landscapes import Landscape, correct, landscape
from search_game import SEARCH, Game, deal
from tabulate_landscapes import build_bench_in, gaps

from merge_core.recipe import to_dict
from search.space import Values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--seeds", type=int, default=8)
    options = parser.parse_args()
    bench = build_bench_in(options.cache)
    who = (
        mergekit_evolve(),
        outcross("auto"),
        outcross("tpe"),
    )
    print("| landscape | whose | recipes | emulated | real | largest difference |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in ("weights", "ties", "groups", "depth"):
        ground = landscape(name)
        chosen = {"starts": ground.built.starts()}
        chosen |= {one.name: _winners(ground, one, options.seeds) for one in who}
        for told, recipes in chosen.items():
            near = [float(ground.results(values).right[:].mean()) for values in recipes]
            real = [
                float(correct(gaps(to_dict(ground.built.decode(v)), bench)).mean()) for v in recipes
            ]
            most = np.abs(np.subtract(near, real)).max()
            print(
                f"| {name} | {told} | {len(recipes)} | {np.mean(near):.4f} | {np.mean(real):.4f} | "
                f"{most:.4f} |",
                flush=True,
            )


def _winners(ground: Landscape, one: Contestant, seeds: int) -> list[Values]:
    found: list[Values] = []
    for seed in range(seeds):
        game = Game(ground, deal(ground, seed), 100 * SEARCH * 4)
        one.play(game, seed)
        found += [trial.values for trial in one.winners(game, game.budget)]
    return found


if __name__ == "__main__":
    main()
