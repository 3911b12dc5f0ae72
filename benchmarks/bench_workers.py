"""What the proposer of many workers costs.

It runs a whole search, end to end through asking, storage and telling, with
evaluators that answer at once, in the order in which 64 of them would who take .2 to .8 s for each
candidate. All that is measured of the process is therefore its overhead, less the time that making
up the answers takes. Items are 400 with probabilities and right or wrong, as a study stores them.
"""

import argparse
import heapq
import os
import random
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and numpy

import numpy as np
import optuna

from evals.answering import Practice
from evals.objective import Reading
from evals.racing import RUNGS
from evals.scorecard import Score, Scorecard
from merge_core.recipe import to_dict
from search.bench import Reference
from search.config import parse
from search.evaluators import Begin, Job
from search.goals import Aim, Goals
from search.holes import build_space
from search.progress import Silent
from search.searching import Budget, run_search
from search.storage import open_storage
from search.study import Stop
from search.trial import Outcome

ITEMS = 400
EXPERTS = ("a", "b", "c", "d")
WORDS = ("random", "qmc", "composite", "tpe", "cmaes", "catcma", "nsgaii", "evolution")
METRIC, SIGNAL = "acc,none", "probability"


def main() -> None:
    """Print the tables that are asked for."""
    stated = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    stated.add_argument("what", choices=("many", "samplers"))
    stated.add_argument("--trials", type=int, default=0)
    stated.add_argument("--words", nargs="+", default=list(WORDS))
    stated.add_argument("--storages", nargs="+", default=["folder", "sqlite"])
    options = stated.parse_args()
    if options.what == "many":
        many(options.words, options.storages, options.trials or 10_000)
    else:
        samplers(options.words, options.trials or 1_000)


def many(words: Sequence[str], storages: Sequence[str], trials: int) -> None:
    """64 evaluators: the overhead of a trial at the start and at the end of a long study."""
    print(f"| sampler | storage | trials 1 to 1,000 | the last 1,000 of {trials:,} | wall, last |")
    print("| --- | --- | --- | --- | --- |")
    for word in words:
        for storage in storages:
            first, last = overheads(word, storage, trials, evaluators=64, part=min(1000, trials))
            cells = f"{first[0]:.1f} ms | {last[0]:.1f} ms | {last[1]:.1f} ms"
            print(f"| {word} | {storage} | {cells} |", flush=True)


def samplers(words: Sequence[str], trials: int) -> None:
    """One evaluator, 64 dimensions: the overhead of the last 100 trials."""
    print(f"| sampler | CPU, folder | wall, folder | CPU, SQLite | wall, SQLite | at {trials:,} |")
    print("| --- | --- | --- | --- | --- | --- |")
    for word in words:
        found = [
            overheads(word, s, trials, evaluators=1, part=100)[1] for s in ("folder", "sqlite")
        ]
        cells = " | ".join(f"{cpu:.1f} ms | {wall:.1f} ms" for cpu, wall in found)
        share = max(cpu for cpu, _ in found) / 1_000
        print(f"| {word} | {cells} | {share:.1%} of one second |", flush=True)


def overheads(
    word: str, storage: str, trials: int, *, evaluators: int, part: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Milliseconds of CPU and of wall time of a trial, among the first `part` and the last."""
    bench = study(word, batch=max(4, evaluators), trials=trials)
    pool = Simulated(evaluators)
    marks: list[tuple[float, float]] = []

    def clock(*_: object) -> None:
        now = time.process_time() - pool.spent[0], time.perf_counter() - pool.spent[1]
        marks.append(now)

    watcher = Silent()
    watcher.trial = clock  # type: ignore[method-assign]
    clock()
    with TemporaryDirectory() as folder, opened(storage, Path(folder)) as made:
        run_search(made, cast("Any", bench), pool, watcher, Stop(), Budget(trials))
    assert len(marks) == trials + 1, len(marks)
    return _mean(marks[: part + 1]), _mean(marks[-part - 1 :])


def _mean(marks: Sequence[tuple[float, float]]) -> tuple[float, float]:
    (cpu, wall), (late_cpu, late_wall) = marks[0], marks[-1]
    count = len(marks) - 1
    return (late_cpu - cpu) / count * 1e3, (late_wall - wall) / count * 1e3


@contextmanager
def opened(storage: str, folder: Path) -> Iterator[optuna.Study]:
    """A new study in a folder or in SQLite."""
    place = "runs" if storage == "folder" else f"sqlite:///{folder}/study.db"
    with open_storage(place, folder, "bench") as made:
        yield optuna.create_study(storage=made, study_name="bench", direction="maximize")


def study(word: str, batch: int, trials: int) -> Any:
    """Four experts, four groups of tensors, four knots: 64 weights; no model behind them.

    `catcma` gets a choice of methods too.
    """
    weight = {"range": [0.0, 1.5], "by": ["self_attn", "mlp", "norm", "*"], "knots": 4}
    methods = {"choice": ["task_arithmetic", "linear"]} if word == "catcma" else "task_arithmetic"
    data = {
        "name": "bench",
        "models": {name: f"./{name}" for name in ("base", *EXPERTS)},
        "recipe": {
            "merge_method": methods,
            "base_model": "base",
            "models": [{"model": name, "parameters": {"weight": weight}} for name in EXPERTS],
        },
        "objectives": [{"task": "made_up", "metric": "acc"}],
        "items": {"search": ITEMS},
        "search": {"sampler": word, "trials": trials, "batch": batch},
    }
    mistakes: list[str] = []
    config = parse(data, mistakes)
    assert config is not None, mistakes
    space = build_space(config.recipe, config.models, mistakes)
    assert not mistakes, mistakes
    assert len(space.dimensions) >= 64, len(space.dimensions)
    signs = {METRIC: 1.0, SIGNAL: 1.0}
    reading = Reading("made_up", METRIC, SIGNAL, 1.0, signs, {}, {})
    return SimpleNamespace(
        study=SimpleNamespace(config=config, space=space),
        readings=(reading,),
        goals=Goals((Aim(config.objectives[0], None, reading),), pareto=False),
        harness=SimpleNamespace(shares=RUNGS),
        scaled=lambda _: None,
    )


class Simulated:
    """Evaluators without models, in simulated time; their answers come out of order.

    Args:
        count: How many there are.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.spent = (0.0, 0.0)  # CPU and wall seconds for making up answers
        self._hard = np.random.default_rng(0).normal(size=ITEMS)

    def learn(self, reference: Reference) -> None:
        """There is nothing to learn."""

    def ways(self) -> Sequence[str]:
        """Nothing is computed."""
        return ()

    def score(
        self, jobs: Iterable[Job], begin: Begin | None = None
    ) -> Generator[tuple[int, Outcome]]:
        """See `search.evaluators.Evaluators`."""
        waiting, now = enumerate(jobs), 0.0
        running: list[tuple[float, int, Outcome]] = []
        while True:
            while len(running) < self.count and (job := next(waiting, None)) is not None:
                if begin is not None and not begin(job[0]):
                    waiting = iter(())
                    break
                outcome = self._outcome(job[1])
                ends = now + random.Random(job[0]).uniform(0.2, 0.8)
                heapq.heappush(running, (ends, job[0], outcome))
            if not running:
                return
            now, position, outcome = heapq.heappop(running)
            yield position, outcome

    def _outcome(self, job: Job) -> Outcome:
        began = time.process_time(), time.perf_counter()
        outcome = self._made_up(job)
        ended = time.process_time(), time.perf_counter()
        cpu, wall = (s + b - a for s, a, b in zip(self.spent, began, ended, strict=True))
        self.spent = cpu, wall
        return outcome

    def _made_up(self, job: Job) -> Outcome:
        weights = np.array(list(_numbers(to_dict(job.recipe))) or [0.0])
        skill = 1.0 - float(np.square(weights - 0.7).mean())
        whole = self._card(1 / (1 + np.exp(self._hard - skill)), job, ITEMS)
        norms = {"weight": 1.0} if job.measure else None
        practice = Practice(32, {"loglikelihood": (True, "made up")})
        for share in RUNGS[:-1] if job.race else ():
            items = round(share * ITEMS)
            card = self._card(1 / (1 + np.exp(self._hard - skill)), job, items)
            verdict = job.race.verdict(card) if job.race else None
            if verdict is not None and verdict.lost:
                return Outcome(card, None, 0.1, verdict=verdict, practice=practice)
        return Outcome(whole, None, 0.1, norms=norms, practice=practice)

    def _card(self, chances: Any, job: Job, items: int) -> Scorecard:
        found = [float(chance) for chance in chances[:items]]
        right = [float(chance > 0.5) for chance in found]
        mean = sum(right) / items
        scores = (Score("made_up", METRIC, mean, 0.01, items),)
        return Scorecard(scores, {"made_up": {METRIC: right, SIGNAL: found}}, 0.5, job.role)


def _numbers(part: Any) -> Iterator[float]:
    """All numbers in a recipe."""
    if isinstance(part, dict):
        for value in cast("dict[str, Any]", part).values():
            yield from _numbers(value)
    elif isinstance(part, list):
        for value in cast("list[Any]", part):
            yield from _numbers(value)
    elif isinstance(part, float):
        yield part


if __name__ == "__main__":
    sys.exit(main())
