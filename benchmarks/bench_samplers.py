"""What a sampler costs: process CPU time of asking for a trial, drawing it and telling it.

Each study is run up to its size with a cheap objective (`gp` begins with random trials there), so
that every sampler has the history that it makes itself. The storage is in memory: what a journal
or a database adds is the same for all. The first proposal of a process that goes on with a study
is timed apart.
"""

import argparse
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and numpy: `gp` threads for nothing

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from search import cat_cma
from search.composite import Composite
from search.genes import distributions
from search.outputs import Outputs, Part, joined
from search.samplers import WORDS, sampler_for
from search.space import Choice, Real, SearchSpace

LAST = 20  # trials that are timed, after the study has its size
SHARE = 4  # one dimension of so many is a choice, in spaces with choices


def main() -> None:
    """Print a Markdown table."""
    stated = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    stated.add_argument("--words", nargs="+", default=list(WORDS))
    stated.add_argument("--dimensions", nargs="+", type=int, default=[8, 64])
    stated.add_argument("--trials", nargs="+", type=int, default=[100, 1000])
    options = stated.parse_args()
    sizes = [(d, n) for d in options.dimensions for n in options.trials]
    heads = [f"d={d} n={n}" for d, n in sizes]
    print(f"| sampler | objectives | space | {' | '.join(heads)} | first of a process |")
    print("|" + " --- |" * (len(sizes) + 4))
    for word in options.words:
        for objectives in (1, 2):
            for choices in (False, True):
                if not _can(word, objectives, choices):
                    continue
                row = [timed(word, space(d, choices), n, objectives) for d, n in sizes]
                cells = " | ".join(f"{ms:.1f}" for ms, _ in row)
                what = "mixed" if choices else "numbers"
                print(
                    f"| {word} | {objectives} | {what} | {cells} | {row[-1][1]:.0f} |", flush=True
                )
    if "composite" in options.words:
        learning(sizes)


def learning(sizes: Sequence[tuple[int, int]]) -> None:
    """What `composite` takes with items: for the first trial of a batch, and for each other one."""
    print("\n| items | " + " | ".join(f"d={d} n={n}" for d, n in sizes) + " |")
    print("|" + " --- |" * (len(sizes) + 1))
    for items in (0, 128, 1000, 4000):
        cells = [" then ".join(f"{ms:.0f}" for ms in proposed(d, n, items)) for d, n in sizes]
        print(f"| {items or 'values only'} | {' | '.join(cells)} |", flush=True)


def proposed(dimensions: int, trials: int, items: int) -> tuple[float, float]:
    """CPU milliseconds of a proposal with a kernel to be found, and with a known one."""
    searched, chance = space(dimensions, False), np.random.default_rng(0)
    known, told = distributions(searched), _random(searched, trials)
    for number, one in enumerate(told):
        one.number = number
    points = np.array([list(one.params.values()) for one in told])
    odds = 4 * np.sin(points @ chance.normal(size=(dimensions, items)) * 2 / np.sqrt(dimensions))

    def read(trials: Sequence[FrozenTrial]) -> tuple[list[FrozenTrial], Outputs]:
        part = Part(items, np.ones(items), np.ones(1))
        values = np.array([one.values for one in trials])
        return list(trials), joined([part], odds, values, np.empty((len(trials), 0)))

    study = optuna.create_study(direction="maximize")
    spent: list[float] = []
    for seed in range(4):
        began = time.process_time()
        reader = read if items else None
        sampler = Composite(searched.dimensions, known, told, [], [], seed, reader=reader)
        sampler.sample_relative(study, told[0], known)
        spent.append((time.process_time() - began) * 1e3)
    return spent[0], statistics.median(spent[1:])


def _can(word: str, objectives: int, choices: bool) -> bool:
    if word in ("cmaes", "catcma") and objectives > 1:
        return False
    if word in ("random", "qmc", "gp") and (choices or objectives > 1):
        return False  # as fast as with numbers and one objective, or out of the question
    return choices == (word == "catcma") or word not in ("cmaes", "catcma")


def space(dimensions: int, choices: bool) -> SearchSpace:
    """Numbers between 0 and 1.5, of which every fourth is a choice of three if there are any."""
    linear = ("linear",)
    every = SHARE if choices else dimensions + 1
    return SearchSpace(
        {"merge_method": "linear", "models": []},
        linear,
        tuple(
            Choice(f"a.c{i}", ("x", "y", "z"), linear, "c")
            if i % every == every - 1
            else Real(f"a.weight@{i}", 0.0, 1.5, False, linear, "weight")
            for i in range(dimensions)
        ),
    )


def timed(word: str, searched: SearchSpace, trials: int, objectives: int) -> tuple[float, float]:
    """Median milliseconds of a trial, and those of the first one after a restart."""
    directions: list[Literal["maximize"]] = ["maximize"] * objectives
    study = optuna.create_study(directions=directions)
    if word == "gp":
        study.add_trials(_random(searched, trials))
    while len(study.get_trials(deepcopy=False)) < trials:
        trial(study, word, searched, objectives)
    last = 3 if word == "gp" else LAST
    usual = statistics.median(clocked(study, word, searched, objectives) for _ in range(last))
    cat_cma.forget()
    return usual * 1e3, clocked(study, word, searched, objectives) * 1e3


def clocked(study: optuna.Study, word: str, searched: SearchSpace, objectives: int) -> float:
    """The CPU seconds of a trial."""
    began = time.process_time()
    trial(study, word, searched, objectives)
    return time.process_time() - began


def trial(study: optuna.Study, word: str, searched: SearchSpace, objectives: int) -> None:
    """Ask, draw, tell."""
    history = study.get_trials(deepcopy=False)
    study.sampler = sampler_for(word, searched, history, 0, len(history))
    asked = study.ask(distributions(searched))
    study.tell(asked, values(asked.params)[:objectives])


def values(params: Mapping[str, Any]) -> Sequence[float]:
    """Two smooth objectives that disagree."""
    numbers = np.array([v if isinstance(v, float) else 0.3 * (v == "y") for v in params.values()])
    return -float(np.square(numbers - 0.9).mean()), -float(np.square(numbers - 0.5).mean())


def _random(searched: SearchSpace, trials: int) -> list[optuna.trial.FrozenTrial]:
    chance = np.random.default_rng(0)
    known = distributions(searched)
    drawn = [{name: float(chance.uniform(0, 1.5)) for name in known} for _ in range(trials)]
    return [
        optuna.trial.create_trial(params=params, distributions=known, value=values(params)[0])
        for params in drawn
    ]


if __name__ == "__main__":
    main()
