"""What another order of layers costs, on a study that searches one and whose models are there.

    PYTHONPATH=. python benchmarks/bench_layers.py study.yaml

Random recipes of the study's space, and the candidates of its own search if it was run: how long it
takes to plan them, to rewire the live model and to give it its weights, against copying the same
tensors; and how long they take to be scored, with hidden states kept from candidate to candidate
and without, in turn. Scores must be the same to the last bit.
"""

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch reads it

import torch

from evals.items import Role
from merge_core.apply import apply
from merge_core.plan import MergePlan
from merge_core.recipe import Recipe, from_dict
from search.bench import Bench, build_bench, check_study
from search.dimensions import Choice, Dimension, Whole
from search.space import SearchSpace
from search.study import open_study
from search.trial import evaluate


def main() -> None:
    """Print both tables."""
    stated = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    stated.add_argument("study", type=Path)
    stated.add_argument("--candidates", type=int, default=24, help="that are scored")
    options = stated.parse_args()
    torch.set_num_threads(1)
    bench = build_bench(check_study(options.study), (Role.SEARCH,))
    recipes = drawn(bench.study.space)
    print("| plan ms | rewire ms | apply ms | copy ms | copied / rewired and applied |")
    print("| --- | --- | --- | --- | --- |")
    print(rewired(bench, recipes))
    searched = candidates(options.study)[: options.candidates]
    if searched:
        other = build_bench(check_study(options.study), (Role.SEARCH,))
        print("\n| candidates | every layer s | shared states s | ratio | same scores |")
        print("| --- | --- | --- | --- | --- |")
        print(shared(bench, other, searched))


def rewired(bench: Bench, recipes: Sequence[Recipe]) -> str:
    """Medians over recipes, each for the second time: modules of its depth are there by then."""
    times: dict[str, list[float]] = {"plan": [], "rewire": [], "apply": [], "copy": []}
    for recipe in [*recipes, *recipes]:
        plan, seconds = timed(lambda one=recipe: bench.plan(one))
        times["plan"].append(seconds)
        times["rewire"].append(timed(lambda one=plan: bench.harness.rewire(one.config))[1])
        times["apply"].append(timed(lambda one=plan: apply(one, bench.workbench))[1])
        times["copy"].append(timed(lambda one=plan: copied(one, bench))[1])
    middle = {name: 1e3 * statistics.median(all_[len(recipes) :]) for name, all_ in times.items()}
    ratio = middle["copy"] / (middle["rewire"] + middle["apply"])
    cells = " | ".join(f"{middle[name]:.2f}" for name in times)
    return f"| {cells} | {ratio:.0f}x |"


_room: dict[str, torch.Tensor] = {}


def copied(plan: MergePlan, bench: Bench) -> None:
    """What it would cost to copy the same tensors."""
    for step in plan.steps:
        tensor = bench.workbench.parents.tensor(step.inputs[0].parent, step.inputs[0].name)
        if step.out not in _room:
            _room[step.out] = torch.empty_like(tensor)
        _room[step.out].copy_(tensor)


def shared(bench: Bench, other: Bench, recipes: Sequence[Recipe]) -> str:
    """Both ways in turn; the first two are left out, since nothing can be kept before them."""
    spent = [0.0, 0.0]
    same = True
    for at, recipe in enumerate(recipes):
        ours, seconds = timed(lambda one=recipe: evaluate(one, bench, Role.SEARCH))
        other.harness.answering.forget()
        theirs, more = timed(lambda one=recipe: evaluate(one, other, Role.SEARCH))
        same &= ours.scorecard.items == theirs.scorecard.items
        if at > 1:
            spent = [spent[0] + seconds, spent[1] + more]
    count = max(len(recipes) - 2, 1)
    kept, whole = (one / count for one in spent)
    return f"| {count} | {whole:.2f} | {kept:.2f} | {whole / kept:.2f}x | {same} |"


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and its wall time in seconds."""
    start = time.perf_counter()
    found = work()
    return found, time.perf_counter() - start


def drawn(space: SearchSpace, count: int = 50) -> list[Recipe]:
    """Random recipes of a space."""
    chance = random.Random(0)

    def draw(dimension: Dimension) -> float | int | bool | str:
        if isinstance(dimension, Choice):
            return chance.choice(dimension.options)
        if isinstance(dimension, Whole):
            return chance.randint(dimension.low, dimension.high)
        return chance.uniform(dimension.low, dimension.high)

    return [space.decode(space.draw(draw)) for _ in range(count)]


def candidates(path: Path) -> list[Recipe]:
    """Those of the study's own search, in its order; none if it wasn't run."""
    with open_study(check_study(path)) as study:
        return [from_dict(trial.user_attrs["recipe"]) for trial in study.get_trials()]


if __name__ == "__main__":
    main()
