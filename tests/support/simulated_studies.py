"""Simulated searches whose truth is known, to see whether the claims about them are true.

A model with skill s has item i right where s + d_i + e > 0: d_i is the item's difficulty, shared by
all models and partly by the items of a cluster; e is the model's own answer to it. Both are normal,
so the true accuracy is Phi(s) if their variances sum to 1, and `own` alone sets the discordance.

`python tests/support/simulated_studies.py [STUDIES]` prints the tables of docs/statistics.md.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from evals import statistics
from evals.compare import verdict
from evals.shrinkage import shrink
from evals.statistics import Gain, holm, paired_gains

CANDIDATES = 100


@dataclass(frozen=True)
class World:
    """What is simulated.

    Attributes:
        own: Share of the variance that is a model's own; .09 gives a discordance of about .14.
        poor: Share of the candidates that are far worse, as a search leaves them behind.
        skill: Standard deviation of the candidates' skill; .10 is about 4 points of accuracy.
        gain: How much more skill the candidates have on average than the references.
        references: Models that the winner is compared with, all of skill 0.
        search: Search items of each task.
        holdout: Holdout items of each task.
        tasks: Number of tasks.
        cluster: Items of a cluster.
        graded: Scores are probabilities instead of right or wrong.
    """

    own: float = 0.09
    poor: float = 0.0
    skill: float = 0.10
    gain: float = 0.0
    references: int = 1
    search: int = 100
    holdout: int = 300
    tasks: int = 2
    cluster: int = 1
    graded: bool = False


@dataclass(frozen=True)
class Outcome:
    """What one simulated study claims of its winner, against the first reference.

    Attributes:
        gain: As measured on the holdout.
        naive: As measured on the search items that chose the winner.
        truth: The winner's true gain.
        verdicts: Against each reference, Holm-corrected.
        luck: The winner's score on search items minus its true score.
        shrunk: The same after shrinkage.
    """

    gain: Gain
    naive: Gain
    truth: float
    verdicts: tuple[str, ...]
    luck: float
    shrunk: float


def answers(generator: np.random.Generator, world: World, skills: np.ndarray, items: int):
    """Per-item scores of every model, `(models, items)`, and the items' clusters."""
    common = 0.3 if world.cluster > 1 else 0.0  # of the difficulty; and of a model's own answers
    clusters = np.arange(items) // world.cluster
    count = clusters[-1] + 1
    part = np.sqrt(1 - common)

    def mixed(*shape: int) -> np.ndarray:
        shared = generator.standard_normal((*shape, count))[..., clusters]
        return np.sqrt(common) * shared + part * generator.standard_normal((*shape, items))

    difficulty = np.sqrt(1 - world.own) * mixed()
    latent = skills[:, None] + difficulty + np.sqrt(world.own) * mixed(len(skills))
    scores = norm.cdf(3 * latent) if world.graded else (latent > 0).astype(float)
    return scores, clusters if world.cluster > 1 else None


def true_score(world: World, skill: np.ndarray) -> np.ndarray:
    """A model's score on all items that there are."""
    return norm.cdf(skill / np.sqrt(1 + 1 / 9)) if world.graded else norm.cdf(skill)


def study(seed: int, world: World) -> Outcome:
    """Score candidates on search items, take the best, compare it on the holdout."""
    generator = np.random.default_rng(seed)
    candidates = world.gain + world.skill * generator.standard_normal(CANDIDATES)
    candidates[: int(world.poor * CANDIDATES)] -= 1.0
    skills = np.concatenate((candidates, np.zeros(world.references)))
    weights = [1.0] * world.tasks
    searched = [answers(generator, world, skills, world.search) for _ in weights]
    scores = np.mean([part.mean(axis=1) for part, _ in searched], axis=0)
    best = int(scores[:CANDIDATES].argmax())
    finalists = np.concatenate((skills[best : best + 1], skills[CANDIDATES:]))
    held = [answers(generator, world, finalists, world.holdout) for _ in weights]
    gains = paired_gains(
        [(part[0] - part[1:]).T for part, _ in held], weights, [g for _, g in held], seed
    ).overall
    naive = paired_gains(
        [(part[best] - part[CANDIDATES])[:, None] for part, _ in searched],
        weights,
        [g for _, g in searched],
        seed,
    ).overall[0]
    true = true_score(world, skills)
    clusters = [cluster for _, cluster in searched]
    worth = shrink([part[:CANDIDATES] for part, _ in searched], weights, clusters)
    return Outcome(
        gains[0],
        naive,
        float(true[best] - true[CANDIDATES]),
        judged(gains),
        float(scores[best] - true[best]),
        float(worth[best] - true[best]),
    )


def judged(gains: Sequence[Gain], margin: float = 0.01) -> tuple[str, ...]:
    """The verdicts that `compare` gives."""
    corrected = holm([gain.p for gain in gains])
    return tuple(verdict(gain, p, margin) for gain, p in zip(gains, corrected, strict=True))


def permuted(seed: int, world: World, options: int = 4) -> tuple[str, ...]:
    """A study whose right answers are drawn anew, so that no model knows anything.

    Models keep choosing as they do: related ones choose the same option on most items.
    """
    generator = np.random.default_rng(seed)
    count = CANDIDATES + world.references

    def scored(items: int) -> np.ndarray:
        common = generator.integers(0, options, items)
        own = generator.integers(0, options, (count, items))
        chosen = np.where(generator.random((count, items)) < world.own * 2, own, common)
        return (chosen == generator.integers(0, options, items)).astype(float)

    searched = [scored(world.search) for _ in range(world.tasks)]
    best = int(np.mean([part.mean(axis=1) for part in searched], axis=0)[:CANDIDATES].argmax())
    held = [scored(world.holdout) for _ in range(world.tasks)]
    differences = [(part[best] - part[CANDIDATES:]).T for part in held]
    return judged(paired_gains(differences, [1.0] * world.tasks, None, seed).overall)


def power(seed: int, gain: float, discordance: float, items: int, studies: int) -> float:
    """The share of studies that call a model better which is so by `gain`."""
    generator = np.random.default_rng(seed)
    fixed, broken = (discordance + gain) / 2, (discordance - gain) / 2
    found = 0
    for number in range(studies):
        draw = generator.random(items)
        difference = np.where(draw < fixed, 1.0, np.where(draw > 1 - broken, -1.0, 0.0))
        (found_gain,) = paired_gains([difference[:, None]], [1.0], None, number).overall
        found += judged([found_gain]) == ("better",)
    return found / studies


def predicted_power(gain: float, discordance: float, items: int) -> float:
    """What the normal approximation gives: the research's 2.8 standard errors are 80%."""
    return float(norm.cdf(gain / np.sqrt((discordance - gain**2) / items) - norm.ppf(0.975)))


def covered(outcomes: Sequence[Outcome], kind: str = "gain") -> float:
    """How often the 95% interval holds the true gain."""
    hits = [getattr(o, kind).low <= o.truth <= getattr(o, kind).high for o in outcomes]
    return float(np.mean(hits))


def falsely_better(verdicts: Sequence[Sequence[str]]) -> float:
    """The share of studies that call the winner better than any reference."""
    return float(np.mean(["better" in words for words in verdicts]))


WORLDS = {
    "2 tasks x 300": World(),
    "1 task x 600": World(tasks=1, holdout=600, search=200),
    "4 tasks x 150": World(tasks=4, holdout=150, search=50),
    "1 task x 100": World(tasks=1, holdout=100, search=100),
    "low discordance": World(own=0.02),
    "clusters of 10": World(cluster=10),
    "graded": World(graded=True),
    "half of them poor": World(poor=0.5),
    "all equally good": World(skill=0.0),
    "all equally good, 600 search items": World(skill=0.0, search=300),
}


def main(studies: int) -> None:
    """Print every table."""
    statistics.RESAMPLES = 1_999
    start = time.process_time()
    print("| study | coverage | search coverage | luck | after shrinkage |")
    for name, world in WORLDS.items():
        found = [study(seed, world) for seed in range(studies)]
        luck, shrunk = (100 * np.mean([getattr(o, k) for o in found]) for k in ("luck", "shrunk"))
        print(
            f"| {name} | {covered(found):.1%} | {covered(found, 'naive'):.1%} | "
            f"{luck:+.1f} | {shrunk:+.1f} |",
            flush=True,
        )
    print("| A/A | falsely better |")
    for references in (1, 7):
        for cluster in (1, 10):
            world = World(skill=0.0, references=references, cluster=cluster)
            found = [study(seed, world).verdicts for seed in range(studies)]
            label = f"{references} references, clusters of {cluster}"
            print(f"| {label} | {falsely_better(found):.1%} |", flush=True)
    for references in (1, 7):
        found = [permuted(seed, World(references=references)) for seed in range(studies)]
        print(f"| permuted labels, {references} references | {falsely_better(found):.1%} |")
    print("| discordance | power | predicted |")
    for q in (0.10, 0.15, 0.20, 0.25):
        print(
            f"| {q} | {power(0, 0.05, q, 600, studies):.2f} | {predicted_power(0.05, q, 600):.2f} |"
        )
    print(f"{studies} studies each, {time.process_time() - start:.0f} CPU-seconds")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000)
