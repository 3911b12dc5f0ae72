"""Search methods on landscapes of real evaluations, at equal numbers of evaluated items.

    PYTHONPATH=.:benchmarks python benchmarks/bench_search.py --out results.json

plays every contestant on every landscape with 20 deals of the items and prints the tables of
SEARCH.md. It needs `cma` and `pymoo` beside outcross: `pip install cma pymoo`.
"""

import argparse
import json
import os
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and numpy read it
warnings.simplefilter("ignore")

import numpy as np  # noqa: E402
from contestants import WORDS, Contestant, ablations, contestants, planned_word  # noqa: E402
from landscape_spaces import SPACES, TASKS  # noqa: E402
from landscapes import landscape  # noqa: E402
from order_spaces import ORDERS  # noqa: E402
from proposals import proposals  # noqa: E402
from real_merges import real_landscape  # noqa: E402
from search_game import SEARCH, Game, deal, judge, soft  # noqa: E402

Array = np.ndarray[Any, Any]
Job = tuple[str, str, int, int, Path | None]
OURS, THEIRS = "outcross, auto", "mergekit-evolve"
_SPACES = {**SPACES, **ORDERS}
_LANDSCAPES = [name for name in SPACES if name != "dare"]  # `dare` is a part of `methods`
_KNOWN = [*_LANDSCAPES, *ORDERS]
_STEPS = 40  # points of a curve
_RESAMPLES = 4000
_SLOW = "gp"


def main() -> None:
    options = _options()
    jobs = list(_jobs(options))
    start = time.perf_counter()
    found = _run(jobs, options.processes, options.out)
    for name in options.landscapes:
        for budget in options.trials:
            print(report(found, name, budget, options.ours))
    if ordered := [name for name in options.landscapes if name in ORDERS]:
        print(paces(found, ordered, options.ours))
    print(f"{len(found)} studies, {time.perf_counter() - start:.0f} s")


def play(job: Job) -> dict[str, Any]:
    """One study: the held-out score that its winner had after each fortieth of the budget.

    Of an order of layers at its end alone.

    Returns:
        With `curve`, None where there was no winner yet; `spent`, and `seconds`.
    """
    name, who, trials, seed, real = job
    ground = real_landscape(name, real) if real else landscape(name)
    contestant = _everyone()[who]
    game = Game(ground, deal(ground, seed), trials * SEARCH * len(TASKS))
    start = time.perf_counter()
    contestant.play(game, seed)
    whole = [trial for trial in game.trials if len(trial.seen) == len(game.deal.search)]
    first = _STEPS - 1 if name in ORDERS else 0  # an order has no goal to be reached sooner
    marks = [round(game.budget * (step + 1) / _STEPS) for step in range(first, _STEPS)]
    curve = [judge(game, won) if (won := contestant.winners(game, at)) else None for at in marks]
    return {
        "landscape": name,
        "contestant": who,
        "trials": trials,
        "seed": seed,
        "curve": curve,
        "played": len(game.trials),
        "spent": game.spent,
        "signal": max(float(np.mean(soft(game, trial))) for trial in whole),
        "scored": sum(trial.items > 0 for trial in game.trials),
        "proposing": round(game.proposing, 3),
        "seconds": round(time.perf_counter() - start, 2),
    }


def report(found: Sequence[dict[str, Any]], name: str, trials: int, own: str = OURS) -> str:
    """A landscape's table in Markdown: the best on top, everyone paired with ours by deal."""
    curves = _curves(found, name, trials)
    if own not in curves:
        return ""
    ours = curves[own]
    rivals = [who for who in curves if who.startswith(THEIRS)]
    theirs = max(rivals, key=lambda who: curves[who][:, -1].mean()) if rivals else None
    goal = curves[theirs][:, -1].mean() if theirs else None
    rows = [
        f"\n### {name}, {trials} trials: {_SPACES[name].about}\n",
        "| contestant | deals | held out | 95 % | ours minus it | 95 % | items for the goal |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for who, curve in sorted(curves.items(), key=lambda pair: -pair[1][:, -1].mean()):
        last = curve[:, -1]
        low, high = interval(last)
        both = min(len(last), len(ours))
        gap = ours[:both, -1] - last[:both]
        below, above = interval(gap)
        mark = " *" if above < 0 else ""
        reach = "" if goal is None else reached(curve, goal)
        cells = (
            f"{last.mean():.4f}",
            f"{low:.4f} to {high:.4f}",
            f"{gap.mean():+.4f}",
            f"{below:+.4f} to {above:+.4f}{mark}",
        )
        rows.append(f"| {who} | {len(last)} | {' | '.join(cells)} | {reach} |")
    told = f"Goal: what {theirs} ends with, {goal:.4f}. " if theirs else ""
    return "\n".join([*rows, f"\n{told}\\* better than ours beyond chance."])


def paces(found: Iterable[dict[str, Any]], names: Sequence[str], own: str = OURS) -> str:
    """A table in Markdown of the search itself: what it found on its own items, and at what pace.

    The signal is the soft accuracy on the search items that the best candidate has, paired with
    ours by deal. A recipe that was scored before is no new one and costs no evaluation; a
    proposal's time is CPU milliseconds.
    """
    rows = [
        "\n| landscape | contestant | best signal | ours minus it | 95 % | proposals | new ones "
        "| ms a proposal |"
    ]
    rows.append("|" + " --- |" * 8)
    known = [one for one in found if "signal" in one and one["landscape"] in names]
    studies: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for one in known:
        studies.setdefault((one["landscape"], one["contestant"]), {})[one["seed"]] = one

    def signals(place: tuple[str, str], seeds: Iterable[int]) -> Array:
        return np.array([studies[place][seed]["signal"] for seed in seeds])

    order = sorted(studies, key=lambda p: (names.index(p[0]), -signals(p, studies[p]).mean()))
    for name, who in order:
        runs = studies[name, who]
        both = sorted(runs.keys() & studies.get((name, own), {}).keys())
        gap = signals((name, own), both) - signals((name, who), both)
        low, high = interval(gap) if both else (np.nan, np.nan)
        asked, new = (np.mean([one[key] for one in runs.values()]) for key in ("played", "scored"))
        pace = sum(one["proposing"] for one in runs.values()) / (asked * len(runs))
        cells = (
            f"{signals((name, who), runs).mean():.4f}",
            f"{gap.mean():+.4f}" if both else "",
            f"{low:+.4f} to {high:+.4f}{' *' if high < 0 else ''}",
            f"{asked:.0f}",
            f"{new:.0f}",
            f"{1e3 * pace:.0f}",
        )
        rows.append(f"| {name} | {who} | {' | '.join(cells)} |")
    return "\n".join(rows)


def interval(values: Array) -> tuple[float, float]:
    """A 95 % bootstrap interval of a mean over deals."""
    chance = np.random.default_rng(0)
    means = values[chance.integers(len(values), size=(_RESAMPLES, len(values)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def reached(curve: Array, goal: float) -> str:
    """The share of the budget after which the mean over deals stays at a goal, with an interval.

    A curve may fall: a winner that was good by luck of its start is given up for a worse one.
    """

    def share(means: Array) -> float:
        below = np.flatnonzero(means < goal)
        first = below[-1] + 1 if len(below) else 0
        return (first + 1) / _STEPS if first < len(means) else np.inf

    chance = np.random.default_rng(0)
    picks = chance.integers(len(curve), size=(1000, len(curve)))
    drawn = sorted(share(curve[pick].mean(0)) for pick in picks)
    low, high = drawn[25], drawn[974]
    words = [
        "never" if np.isinf(one) else f"{one:.0%}" for one in (share(curve.mean(0)), low, high)
    ]
    return f"{words[0]} ({words[1]} to {words[2]})"


def _curves(found: Iterable[dict[str, Any]], name: str, trials: int) -> dict[str, Array]:
    """For each contestant `(deals, steps)`; before there is a winner its score is -inf."""
    curves: dict[str, dict[int, list[float]]] = {}
    for one in found:
        if one["landscape"] == name and one["trials"] == trials:
            curve = [-np.inf if score is None else score for score in one["curve"]]
            curves.setdefault(one["contestant"], {})[one["seed"]] = curve
    return {who: np.array([runs[s] for s in sorted(runs)]) for who, runs in curves.items()}


def _everyone() -> dict[str, Contestant]:
    return {**contestants(), **ablations(), **proposals()}


def _jobs(options: argparse.Namespace) -> Iterable[Job]:
    """The studies to play; a Gaussian process only with budgets it is meant for."""
    words = {f"outcross, {word}" for word in WORDS}
    for name in options.landscapes:
        ground = real_landscape(name, options.real) if options.real else landscape(name)
        for who, contestant in _everyone().items():
            if (options.contestants and who not in options.contestants) or (
                not options.contestants and who not in contestants()
            ):
                continue
            if contestant.cannot(ground):
                continue
            for trials in options.trials:
                word = planned_word(contestant, ground, trials)
                if word == _SLOW and trials > options.most_for_gp:
                    continue
                if who in words and word == planned_word(_everyone()[OURS], ground, trials):
                    continue  # the same studies as `auto`
                yield from ((name, who, trials, s, options.real) for s in range(options.seeds))


def _run(jobs: Sequence[Job], processes: int, out: Path | None) -> list[dict[str, Any]]:
    """Play all that `out` does not have yet; what was played is kept there."""
    found: list[dict[str, Any]] = json.loads(out.read_text()) if out and out.exists() else []
    known = {(r["landscape"], r["contestant"], r["trials"], r["seed"]) for r in found}
    left = [job for job in jobs if job[:4] not in known]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        for done, future in enumerate(as_completed([pool.submit(play, j) for j in left]), 1):
            found.append(future.result())
            if out and (done % 10 == 0 or done == len(left)):
                out.write_text(json.dumps(found))
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--landscapes", nargs="+", default=_LANDSCAPES, choices=_KNOWN)
    parser.add_argument("--contestants", nargs="+", help="default: all but the ablations")
    parser.add_argument("--trials", nargs="+", type=int, default=[100], help="budgets, in trials")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--ours", default=OURS, help="who the others are paired with")
    parser.add_argument("--most-for-gp", type=int, default=100)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--real", type=Path, metavar="CACHE", help="merge and score for real")
    parser.add_argument("--out", type=Path, help="results as JSON; played studies are kept")
    options = parser.parse_args()
    if not options.real and any(name in ORDERS for name in options.landscapes):
        parser.error("orders of layers have no emulator: give --real CACHE")
    return options


if __name__ == "__main__":
    main()
