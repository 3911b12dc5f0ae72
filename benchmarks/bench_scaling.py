"""Candidates per minute with one evaluator and with several, in turn, on a study that is there.

Each run is a copy of the study with a storage of its own, on Ray, every worker with one thread.
What is measured lies between the end of the first batch, when all workers are there, and the end of
the last candidate: proposing, storing and waiting for the slowest of a batch count, starting
doesn't.
"""

import argparse
import statistics
import sys
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from optuna.trial import FrozenTrial
from rich.console import Console

from search.bench import check_study
from search.commands import RunOptions, run_study
from search.study import open_study


def main() -> None:
    """Print the table."""
    stated = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    stated.add_argument("study", type=Path, help="a study file whose models are there")
    stated.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    stated.add_argument("--trials", type=int, default=24)
    stated.add_argument("--batch", type=int, default=4)
    stated.add_argument("--rounds", type=int, default=2, help="runs of each, in turn")
    stated.add_argument("--racing", action="store_true")
    options = stated.parse_args()
    found: dict[int, list[float]] = {workers: [] for workers in options.workers}
    for _ in range(options.rounds):
        for workers in options.workers:
            rate = measured(options, workers)
            found[workers].append(rate)
            print(f"{workers} workers: {rate:.1f} candidates a minute", file=sys.stderr)
    first = options.workers[0]
    alone = statistics.median(found[first]) / first
    print("| workers | candidates a minute | share of linear |")
    print("| --- | --- | --- |")
    for workers, rates in found.items():
        rate = statistics.median(rates)
        print(f"| {workers} | {rate:.1f} | {rate / workers / alone:.2f} |")


def measured(options: argparse.Namespace, workers: int) -> float:
    """Candidates a minute of one run."""
    data: dict[str, Any] = yaml.safe_load(options.study.read_text("utf-8"))
    search = data.get("search", {}) | {"trials": options.trials, "batch": options.batch}
    with TemporaryDirectory(prefix="scaling-", dir=options.study.parent) as folder:
        data["storage"] = str(Path(folder).relative_to(options.study.parent) / "runs")
        data["search"] = search | {"racing": options.racing}
        path = options.study.parent / f"{Path(folder).name}.yaml"
        path.write_text(yaml.safe_dump(data, sort_keys=False), "utf-8")
        try:
            run_study(path, Console(file=StringIO()), RunOptions(workers=workers))
            with open_study(check_study(path)) as opened:
                return rate_of(opened.get_trials(), options.batch)
        finally:
            path.unlink()


def rate_of(trials: list[FrozenTrial], batch: int) -> float:
    """Candidates a minute after the first batch."""
    ends = sorted(trial.datetime_complete for trial in trials if trial.datetime_complete)
    seconds = (ends[-1] - ends[batch - 1]).total_seconds()
    return 60 * (len(ends) - batch) / seconds


if __name__ == "__main__":
    sys.exit(main())
