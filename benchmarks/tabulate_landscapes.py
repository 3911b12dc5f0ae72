"""Evaluate thousands of recipes of each space for the search benchmark: real merges, real scores.

    PYTHONPATH=.:benchmarks python benchmarks/tabulate_landscapes.py CACHE [--spaces weights ties]

writes `CACHE/<space>.npz` with, for every recipe, the numbers that chose it and by how many nats
the right option of each item leads each wrong one. What was evaluated before is kept.
"""

import argparse
import os
import time
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from evals.quiet import quiet

quiet()  # before anything reads the environment

import numpy as np  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from landscape_items import write_tasks  # noqa: E402
from landscape_spaces import LAYERS, MODELS, SPACES, TASKS, origins, search_space  # noqa: E402
from rich.console import Console  # noqa: E402
from scipy.stats import qmc  # noqa: E402

from evals.items import Role  # noqa: E402
from merge_core.recipe import from_dict, to_dict  # noqa: E402
from search.bench import Bench, build_bench, check_study  # noqa: E402
from search.quickstart import cached_family  # noqa: E402
from search.space import Real, SearchSpace  # noqa: E402
from search.trial import evaluate  # noqa: E402

ITEMS = 128  # of each task
_SPARE = 3  # that a study wants beside those it searches with
_CHUNK = 50  # recipes between two writes


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    bench = build_bench_in(options.cache)
    for name in options.spaces:
        _tabulate(name, bench, options.cache / f"{name}.npz", options.limit)


def _tabulate(name: str, bench: Bench, file: Path, limit: int | None) -> None:
    space = SPACES[name]
    numbers, recipes = _candidates(name)
    known = np.load(file)["gaps"] if file.exists() else np.empty((0, 0, 0), np.float16)
    rows = list(known)
    start, begun = time.perf_counter(), len(rows)
    for at in range(begun, min(len(recipes), limit or len(recipes))):
        rows.append(gaps(recipes[at], bench))
        if len(rows) % _CHUNK == 0 or len(rows) == len(recipes):
            _write(file, numbers[: len(rows)], np.stack(rows))
            pace = (time.perf_counter() - start) / (len(rows) - begun)
            print(f"{space.name}: {len(rows)} of {len(recipes)}, {pace:.3f} s each", flush=True)
    if rows:
        _write(file, numbers[: len(rows)], np.stack(rows))


def gaps(recipe: dict[str, Any], bench: Bench) -> np.ndarray[Any, Any]:
    """Nats by which the right option leads each wrong one, `(items, options - 1)`, float16.

    Raises:
        ValueError: If the recipe can't be merged or scored.
    """
    outcome = evaluate(from_dict(recipe), bench, Role.SEARCH)
    if outcome.scorecard is None:
        raise ValueError(f"{recipe}: {outcome.failure}")
    found: list[list[float]] = []
    for benchmark in bench.harness.benchmarks:
        for item in benchmark.items[Role.SEARCH]:
            nats = [float(request.resps[0][0]) for request in item.requests]
            right = nats.pop(item.document["label"])
            found.append([right - wrong for wrong in nats])
    return np.array(found, np.float32).clip(-60, 60).astype(np.float16)


def _candidates(name: str) -> tuple[np.ndarray[Any, Any], list[dict[str, Any]]]:
    """Sobol points of a space, or all of it where it is finite; `(recipes, dimensions)`."""
    space, built = SPACES[name], search_space(SPACES[name])
    if space.recipe is None:
        every = list(product(range(len(MODELS)), repeat=LAYERS + 1))
        names = [dimension.name for dimension in built.dimensions]
        values = [dict(zip(names, [MODELS[i] for i in row], strict=True)) for row in every]
        return np.array(every, np.float16), [origins(value) for value in values]
    points = qmc.Sobol(len(built.dimensions), seed=0).random(space.points).astype(np.float32)
    return points, [_decoded(built, point) for point in points]


def _decoded(space: SearchSpace, point: np.ndarray[Any, Any]) -> dict[str, Any]:
    return to_dict(space.decode(dict(_scaled(space, point))))


def _scaled(space: SearchSpace, point: np.ndarray[Any, Any]) -> Iterator[tuple[str, float]]:
    for dimension, share in zip(space.dimensions, point, strict=True):
        assert isinstance(dimension, Real)
        yield dimension.name, dimension.low + float(share) * (dimension.high - dimension.low)


def build_bench_in(
    cache: Path, recipe: Mapping[str, Any] | None = None, count: int = ITEMS, first: int = 0
) -> Bench:
    """A study's bench on the quickstart's models and the benchmark's own items.

    Args:
        cache: Gets the tasks and the study file.
        recipe: Of the study: what it can search, and so the deepest model that it can hold.
        count: Items of each task.
        first: Place of the first one.
    """
    cache.mkdir(parents=True, exist_ok=True)
    family = cached_family(Console(stderr=True))
    write_tasks(cache / "tasks", family / "models", count + _SPARE, 0, first)
    study = {
        "name": "landscapes",
        "models": {name: str(family / "models" / name) for name in MODELS},
        "recipe": dict(recipe or SPACES["weights"].recipe or {}),
        "objectives": [{"task": task, "metric": "acc"} for task in TASKS],
        "items": {"search": count, "select": 1, "holdout": 2, "seed": 0},
        "evaluation": {"tasks": [str(cache / "tasks")], "batch_size": 512},
        "dtype": "float32",
    }
    (cache / "study.yaml").write_text(yaml.safe_dump(study), "utf-8")
    return build_bench(check_study(cache / "study.yaml"), (Role.SEARCH,))


def _write(file: Path, points: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> None:
    draft = file.with_suffix(".part")
    with draft.open("wb") as stream:
        np.savez_compressed(stream, points=points, gaps=found)
    os.replace(draft, file)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    evaluated = [s.name for s in SPACES.values() if s.points or s.recipe is None]
    parser.add_argument("--spaces", nargs="+", default=evaluated, choices=evaluated)
    parser.add_argument("--limit", type=int, help="recipes of each space, for a try")
    return parser.parse_args()


if __name__ == "__main__":
    main()
