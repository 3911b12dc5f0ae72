"""Simulated races and searches whose truth is known.

Items have a difficulty that models share, and each model its own answers to them, as in
`simulated_studies`. In a `Landscape` skill and own answers are smooth functions of the recipe's
numbers, so that neighbours answer alike.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import optuna
from scipy.stats import norm

from evals.racing import Duel, Rule, expected, race, rung_ends

OWN = 0.09  # share of the variance that is a model's own: two models differ on about 14% of items
FEATURES = 64
Scores = list[np.ndarray]


def run_race(incumbent: Scores, candidate: Scores, rule: Rule, span: float | None = 1.0):
    """Race to the end or until the candidate is stopped: whether it was, items used."""
    weights = [1 / len(incumbent)] * len(incumbent)
    spans = None if span is None else [span] * len(incumbent)
    for ends in rung_ends([len(part) for part in incumbent], rule.rungs)[:-1]:
        seen = [part[:end] for part, end in zip(candidate, ends, strict=True)]
        verdict = race(Duel(incumbent, seen, weights, spans), rule)
        if verdict.lost:
            return True, verdict.items
    return False, sum(map(len, incumbent))


def plain_pairs(rng: np.random.Generator, items: int, gap: float, discordance: float = 0.15):
    """An incumbent and a candidate that is worse by `gap`, on right-or-wrong items."""
    draw = rng.random(items)
    fixed = (discordance - gap) / 2  # share of items that only the candidate has right
    incumbent = np.where(draw < discordance, draw >= fixed, rng.random(items) < 0.6)
    candidate = np.where(draw < discordance, draw < fixed, incumbent)
    return [incumbent.astype(float)], [candidate.astype(float)]


def lucky_pairs(
    rng: np.random.Generator,
    items: Sequence[int],
    gap: float = 0.0,
    tried: int = 100,
    kind: str = "right",
    spread: float = 0.0,
):
    """The best of many by its score on these items, and a candidate worse than it by `gap`.

    Args:
        rng: Of all draws.
        items: Of each benchmark.
        gap: In accuracy at one half.
        tried: How many the incumbent is the best of.
        kind: `right` or wrong, `probability`, or `nats` (unbounded).
        spread: Standard deviation of their skill; 0 makes them equals.
    """
    turn = {"right": lambda x: (x > 0) * 1.0, "probability": lambda x: norm.cdf(3 * x)}.get(
        kind, lambda x: 3 * x
    )
    skills = spread * rng.standard_normal(tried)
    hardness = [np.sqrt(1 - OWN) * rng.standard_normal(n) for n in items]
    scores = [
        turn(skills[:, None] + hard + np.sqrt(OWN) * rng.standard_normal((tried, len(hard))))
        for hard in hardness
    ]
    best = int(np.mean([part.mean(axis=1) for part in scores], axis=0).argmax())
    skill = skills[best] - gap * np.sqrt(2 * np.pi)
    own = [np.sqrt(OWN) * rng.standard_normal(n) for n in items]
    candidate = [turn(skill + hard + mine) for hard, mine in zip(hardness, own, strict=True)]
    return [part[best] for part in scores], candidate


def stopped(pairs: Iterator[tuple[Scores, Scores]], rule: Rule, span: float | None = 1.0):
    """Share of the races that were stopped, and share of the items that were used."""
    ended = [(*run_race(*pair, rule, span), sum(map(len, pair[0]))) for pair in pairs]
    return float(np.mean([e[0] for e in ended])), float(np.mean([e[1] / e[2] for e in ended]))


class Landscape:
    """Per-item scores as a smooth function of numbers in [0, 1].

    Args:
        seed: Of everything in it.
        dimensions: Numbers.
        items: Of each benchmark.
        graded: Scores are probabilities instead of right or wrong.
    """

    def __init__(
        self, seed: int, dimensions: int = 5, items: Sequence[int] = (200, 200), graded: bool = True
    ) -> None:
        rng = np.random.default_rng(seed)
        self.dimensions, self.items, self.graded = dimensions, tuple(items), graded
        self._best = rng.uniform(0.25, 0.75, (len(items), dimensions))
        self._steep = rng.uniform(1.0, 4.0, (len(items), dimensions))
        self._hard = [np.sqrt(1 - OWN) * rng.standard_normal(n) for n in items]
        self._waves = rng.standard_normal((FEATURES, dimensions)) / 0.3
        self._phases = rng.uniform(0, 2 * np.pi, FEATURES)
        self._parts = [rng.standard_normal((n, FEATURES)) for n in items]

    def scores(self, x: np.ndarray) -> Scores:
        """Per-item scores of each benchmark."""
        waves = np.sqrt(2 * OWN / FEATURES) * np.cos(self._waves @ x + self._phases)
        parts = zip(self._skills(x), self._hard, self._parts, strict=True)
        latent = [skill + hard + part @ waves for skill, hard, part in parts]
        return [norm.cdf(3 * x) if self.graded else (x > 0) * 1.0 for x in latent]

    def truth(self, x: np.ndarray) -> float:
        """The score on all items that there are."""
        return float(norm.cdf(self._skills(x) / np.sqrt(1 + self.graded / 9)).mean())

    def _skills(self, x: np.ndarray) -> np.ndarray:
        return 0.6 - (self._steep * (x - self._best) ** 2).sum(axis=1)


@dataclass
class Search:
    """What a search found.

    Attributes:
        items: Evaluated after each trial, in full evaluations.
        truths: The incumbent's true score after each trial.
        stops: How many trials were stopped.
    """

    items: list[float] = field(default_factory=list)
    truths: list[float] = field(default_factory=list)
    stops: int = 0


SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True),
    "cmaes": lambda seed: optuna.samplers.CmaEsSampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
}


def search(
    land: Landscape,
    sampler: str,
    seed: int,
    budget: float,
    rule: Rule | None,
    told: Callable[[Duel], float] = expected,
    most: int = 10_000,
) -> Search:
    """Search a landscape until so many full evaluations are spent, or trials done.

    Args:
        land: What is searched.
        sampler: One of `SAMPLERS`.
        seed: Of the sampler.
        budget: In evaluations of all items.
        rule: How to race; None scores every candidate to the end.
        told: The value of a stopped trial.
        most: Trials at most.
    """
    study = optuna.create_study(direction="maximize", sampler=SAMPLERS[sampler](seed))
    found, incumbent, best, truth, spent = Search(), None, -np.inf, 0.0, 0.0
    shares = [1 / len(land.items)] * len(land.items)
    while spent < budget and len(found.items) < most:
        trial = study.ask()
        x = np.array([trial.suggest_float(f"x{i}", 0, 1) for i in range(land.dimensions)])
        scores = land.scores(x)
        duel = rule and incumbent and _lost(incumbent, scores, shares, rule)
        if duel:
            found.stops += 1
            spent += sum(map(len, duel.candidate)) / sum(land.items)
            study.tell(trial, told(duel))
        else:
            spent += 1
            value = float(np.mean([part.mean() for part in scores]))
            study.tell(trial, value)
            if value > best:
                incumbent, best, truth = scores, value, land.truth(x)
        found.items.append(spent)
        found.truths.append(truth)
    return found


def _lost(incumbent: Scores, scores: Scores, shares: list[float], rule: Rule) -> Duel | None:
    """The duel at the rung where a candidate is stopped."""
    for ends in rung_ends([len(part) for part in incumbent], rule.rungs)[:-1]:
        seen = [part[:end] for part, end in zip(scores, ends, strict=True)]
        duel = Duel(incumbent, seen, shares, [1.0] * len(shares))
        if race(duel, rule).lost:
            return duel
    return None


def paired(rows: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean difference of pairs and the half width of its 95% interval."""
    apart = np.array([one - other for one, other in rows])
    return float(apart.mean()), float(1.96 * apart.std(ddof=1) / np.sqrt(len(apart)))
