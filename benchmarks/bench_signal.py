"""Does a graded signal help a search? The same searches by probability and by right or wrong.

On the quickstart's tiny family. Each seed draws other items and other candidates; both signals get
the same items, sampler seed and budget, and their winners are judged by the metric on the same
held-out items, so that differences are paired by seed. Two kinds of tasks: `exact` are the
quickstart's own (an answer counts if greedy decoding gives it), `options` asks for the same
answers among twelve options, the wrong ones a few small slips away.
"""

import argparse
import json
import platform
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from evals.quiet import quiet

quiet()  # before anything reads the environment

import optuna  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from rich.console import Console  # noqa: E402
from scipy import stats  # noqa: E402

from evals.items import Role  # noqa: E402
from evals.objective import objective  # noqa: E402
from search.bench import build_bench, check_study  # noqa: E402
from search.evaluators import InProcess  # noqa: E402
from search.finals import select_winner  # noqa: E402
from search.quickstart import cached_family, write_study  # noqa: E402
from search.searching import Budget, run_search  # noqa: E402
from search.study import Stop, open_study  # noqa: E402
from search.trial import evaluate  # noqa: E402

SIGNALS = ("probability", "metric")
KINDS = ("options", "exact")
SELECT, HOLDOUT, FINALISTS = 20, 300, 8
_OPTIONS = 12


class _Silent:
    """A watcher that shows nothing."""

    def baseline(self, *_: Any) -> None: ...
    def scored(self, *_: Any) -> None: ...
    def trial(self, *_: Any) -> None: ...


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(f"torch {torch.__version__}, optuna {optuna.__version__}, Python", end=" ")
    print(f"{platform.python_version()}; {options.trials} trials, {options.items} search items,")
    print(f"{SELECT} select items and {HOLDOUT} holdout items of each of 4 tasks\n")
    start = time.process_time()
    found = {kind: _searches(kind, options) for kind in options.kinds}
    print("\n| task | seeds | by probability | by metric | difference | 95% interval | wins |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind, pairs in found.items():
        print(_row(kind, pairs))
    print(f"\n{time.process_time() - start:.0f} s of CPU")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--items", type=int, default=20, help="search items of each task")
    return parser.parse_args()


def _searches(kind: str, options: argparse.Namespace) -> list[tuple[float, float]]:
    """Held-out accuracy of the winners by probability and by metric, for each seed."""
    pairs: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study = write_study(cached_family(Console(stderr=True)), folder, 0, None)
        if kind == "options":
            _offer_options(folder)
        for seed in range(options.seeds):
            one, other = (_search(study, seed, signal, options) for signal in SIGNALS)
            pairs.append((one, other))
            print(
                f"{kind}, seed {seed}: {one:.4f} by probability, {other:.4f} by metric", flush=True
            )
    return pairs


def _search(study: Path, seed: int, signal: str, options: argparse.Namespace) -> float:
    """Search, choose the winner, and score it by the metric on the holdout."""
    data = yaml.safe_load(study.read_text())
    data["name"] = f"{signal}-{seed}"
    data["storage"] = f"runs/{data['name']}"
    data["objectives"] = [o | {"signal": signal} for o in data["objectives"]]
    data["items"] = {"search": options.items, "select": SELECT, "holdout": HOLDOUT, "seed": seed}
    data["search"] |= {
        "sampler": "tpe",
        "trials": options.trials,
        "finalists": FINALISTS,
        "seed": seed,
    }
    path = study.with_name("one.yaml")
    path.write_text(yaml.safe_dump(data))
    checked = check_study(path)
    bench = build_bench(checked, tuple(Role))
    with open_study(checked) as opened:
        scorer = InProcess(bench)
        run_search(opened, bench, scorer, _Silent(), Stop(), Budget(options.trials))
        best = select_winner(opened, bench, scorer)[0].record
    card = evaluate(best.recipe, bench, Role.HOLDOUT).scorecard
    assert card is not None
    shutil.rmtree(study.parent / "runs")
    return objective([card], bench.harness.benchmarks)


def _offer_options(folder: Path) -> None:
    """Make a choice among options out of every item."""
    chance = random.Random(0)
    for path in sorted((folder / "data").glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        letters = sorted({letter for row in rows for letter in row["answer"]})
        for row in rows:
            row["choices"] = _choices(row["answer"], letters, chance)
            row["gold"] = row["choices"].index(row["answer"])
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path in (folder / "tasks").glob("*.yaml"):
        task = yaml.safe_load(path.read_text())
        task |= {"output_type": "multiple_choice", "doc_to_choice": "choices"}
        path.write_text(yaml.safe_dump(task | {"doc_to_target": "gold"}))


def _choices(answer: str, letters: list[str], chance: random.Random) -> list[str]:
    """The answer and near misses: slip after slip, each two letters swapped or one off by one."""
    found = [answer]
    while len(found) < _OPTIONS:
        text = list(chance.choice(found))
        one, other = chance.sample(range(len(text)), 2)
        if chance.random() < 0.5:
            text[one], text[other] = text[other], text[one]
        else:
            place = letters.index(text[one]) + chance.choice((-1, 1))
            text[one] = letters[place % len(letters)]
        if "".join(text) not in found:
            found.append("".join(text))
    return chance.sample(found, _OPTIONS)


def _row(kind: str, pairs: list[tuple[float, float]]) -> str:
    """Means over seeds, and Student's interval of their paired difference, in points."""
    gains = [100 * (one - other) for one, other in pairs]
    interval = stats.ttest_rel(*zip(*pairs, strict=True)).confidence_interval(0.95)
    means = [f"{statistics.mean(side):.4f}" for side in zip(*pairs, strict=True)]
    wins = f"{sum(g > 0 for g in gains)} of {len(gains)}"
    low, high = (f"{100 * end:+.2f}" for end in (interval.low, interval.high))
    gain = f"{statistics.mean(gains):+.2f}"
    return (
        f"| {kind} | {len(pairs)} | {means[0]} | {means[1]} | {gain} | {low} to {high} | {wins} |"
    )


if __name__ == "__main__":
    main()
