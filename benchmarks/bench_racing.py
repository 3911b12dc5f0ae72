"""Prints the tables of docs/racing.md: who is stopped, what it saves, what it does to a search.

`PYTHONPATH=.:tests/support python benchmarks/bench_racing.py [--races 2000] [--seeds 40]`
"""

import argparse
import functools
import time
from collections.abc import Callable, Sequence

import numpy as np
import optuna
from simulated_races import Landscape, Scores, lucky_pairs, paired, plain_pairs, search, stopped

from evals.racing import Rule

GAPS = (-0.02, 0.0, 0.02, 0.05, 0.10)
EVERY = tuple(k / 20 for k in range(1, 21))
Draw = Callable[[np.random.Generator], tuple[Scores, Scores]]


def main() -> None:
    options = _options()
    begun = time.process_time()
    if "rule" in options.parts:
        _rule(options.races)
    if "curse" in options.parts:
        _curse(options.races)
    if "search" in options.parts:
        _searches(options)
    print(f"\n{time.process_time() - begun:.0f} CPU seconds")


def _rule(races: int) -> None:
    print("| true gap | " + " | ".join(_RULES) + " |\n" + "| --- " * (len(_RULES) + 1) + "|")
    for gap in GAPS:
        draw = functools.partial(plain_pairs, items=1000, gap=-gap if gap < 0 else gap)
        row = [_row(draw, rule, races, flip=gap < 0) for rule in _RULES.values()]
        print(f"| {0 - 100 * gap:+.0f} | {' | '.join(row)} |", flush=True)


_RULES = {
    "default": Rule(),
    "no margin": Rule(margin=0.0),
    "margin 1": Rule(margin=1.0),
    "every 20th": Rule(rungs=EVERY),
    "every 20th, margin 2": Rule(margin=2.0, rungs=EVERY),
}


def _curse(races: int) -> None:
    print("\n| incumbent | items | scores | +2 | 0 | -2 | -5 | -10 |\n" + "| --- " * 8 + "|")
    worlds = [
        ("luckiest of 100 equals", [200], "right", 0.0),
        ("luckiest of 100 equals", [1000], "right", 0.0),
        ("luckiest of 100 equals", [128] * 4, "right", 0.0),
        ("luckiest of 100 equals", [128] * 4, "probability", 0.0),
        ("luckiest of 100 equals", [128] * 4, "nats", 0.0),
        ("luckiest of 100 equals", [300, 40, 97], "right", 0.0),
        ("best of 100, skill spread 4 points", [128] * 4, "right", 0.1),
    ]
    for name, items, kind, spread in worlds:
        row: list[str] = []
        for gap in GAPS:
            draw = functools.partial(lucky_pairs, items=items, gap=gap, kind=kind, spread=spread)
            row.append(_row(draw, Rule(), races, span=None if kind == "nats" else 1.0))
        told = "+".join(map(str, items))
        print(f"| {name} | {told} | {kind} | {' | '.join(row)} |", flush=True)


def _row(
    draw: Draw, rule: Rule, races: int, span: float | None = 1.0, *, flip: bool = False
) -> str:
    rng = np.random.default_rng(0)
    drawn = (draw(rng) for _ in range(races))
    pairs = ((b, a) if flip else (a, b) for a, b in drawn)
    share, used = stopped(pairs, rule, span)
    return f"{share:.3f} / {used:.2f}"


def _searches(options: argparse.Namespace) -> None:
    print(
        "\n| sampler | scores | trials | stopped | items at equal trials | trials at equal items "
        "| gain at equal items, points | gain at equal trials |\n" + "| --- " * 8 + "|"
    )
    for sampler in options.samplers:
        for graded in (True, False):
            trials = options.gp_trials if sampler == "gp" else options.trials
            print(_search_row(sampler, graded, trials, range(options.seeds)), flush=True)


def _search_row(sampler: str, graded: bool, trials: int, seeds: Sequence[int]) -> str:
    lands = [Landscape(seed, graded=graded) for seed in seeds]
    pairs = list(zip(lands, seeds, strict=True))
    whole = [search(land, sampler, seed, trials, None).truths[-1] for land, seed in pairs]
    raced = [search(land, sampler, seed, trials, Rule()) for land, seed in pairs]
    better = paired([(one.truths[-1], other) for one, other in zip(raced, whole, strict=True)])
    same = [(one.truths[trials - 1], other) for one, other in zip(raced, whole, strict=True)]
    stops = np.mean([one.stops / len(one.items) for one in raced])
    items = np.mean([one.items[trials - 1] / trials for one in raced])
    done = np.mean([len(one.items) for one in raced])
    kind = "probability" if graded else "right"
    gains = " | ".join(
        f"{100 * gain:+.2f} ± {100 * half:.2f}" for gain, half in (better, paired(same))
    )
    return f"| {sampler} | {kind} | {trials} | {stops:.0%} | {items:.0%} | {done:.0f} | {gains} |"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--races", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--gp-trials", type=int, default=24)
    parser.add_argument("--samplers", nargs="*", default=["tpe", "cmaes", "gp"])
    parser.add_argument("--parts", nargs="*", default=["rule", "curse", "search"])
    return parser.parse_args()


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    main()
