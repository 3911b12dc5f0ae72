"""Fit the search benchmark's landscapes to what `tabulate_landscapes.py` evaluated.

    PYTHONPATH=.:benchmarks python benchmarks/build_landscapes.py CACHE

writes `benchmarks/tables/*.npz` and prints how near each is to recipes that it was not fitted to.
"""

import argparse
from pathlib import Path

import numpy as np
from landscape_emulator import Fidelity, fidelity, fit
from landscape_spaces import SPACES, features
from landscapes import TABLES, load_emulator, save_emulator, save_table

_HELD_OUT = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    cache = parser.parse_args().cache
    TABLES.mkdir(exist_ok=True)
    print("| space | dimensions | evaluated | held out | R2 graded | rank | R2 accuracy | rank |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, space in SPACES.items():
        source = cache / f"{name}.npz"
        if not source.exists():
            continue
        with np.load(source) as table:
            points, gaps = table["points"].astype(np.float64), table["gaps"]
            points = features(space, points)
        file = TABLES / f"{name}.npz"
        if space.recipe is None:
            save_table(gaps, file)
            print(f"| {name} | {points.shape[1]} choices | {len(points)} | all are in it |")
        else:
            print(_row(name, points, gaps, file), flush=True)


def _row(name: str, points: np.ndarray, gaps: np.ndarray, file: Path) -> str:
    order = np.random.default_rng(0).permutation(len(points))
    apart = order[: int(len(order) * _HELD_OUT)]
    fitted = np.setdiff1d(order, apart)
    save_emulator(fit(points[fitted], gaps[fitted]), file)
    found = fidelity(load_emulator(file), points[apart], gaps[apart].astype(np.float32))
    return f"| {name} | {points.shape[1]} | {len(points)} | {_told(found)} |"


def _told(found: Fidelity) -> str:
    return (
        f"{found.recipes} | {found.graded[0]:.3f} | {found.graded[1]:.3f} | "
        f"{found.accuracy[0]:.3f} | {found.accuracy[1]:.3f} | better half {found.top:.3f} | "
        f"single results {found.agreed:.3f} | off {found.error:.4f}"
    )


if __name__ == "__main__":
    main()
