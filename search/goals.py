"""What a study wants: values to maximise, and limits that a candidate must keep to.

A limit is told to samplers as a constraint that is kept at 0 and below; candidates that keep all of
them rank before all others, those by the sum of what they miss (Deb et al. 2002,
doi:10.1109/4235.996017).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evals.harness import Benchmark
from evals.items import Role
from evals.objective import Reading, objective
from evals.scorecard import Scorecard
from search.config import ObjectiveConfig, StudyConfig

_DIGITS = 12  # 0.5 - 0.02 and 0.48 differ after the 16th: a floor that is just met is kept


@dataclass(frozen=True, slots=True)
class Result:
    """What is known of one model.

    Attributes:
        cards: Scorecards on disjoint items, which are pooled.
        figures: By objective, of those that need no items.
    """

    cards: tuple[Scorecard, ...]
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Aim:
    """One objective of a study.

    Attributes:
        config: What the study says of it.
        benchmark: Whose figure it is; None for a model's property and a user's function.
        reading: How that benchmark's results are read.
    """

    config: ObjectiveConfig
    benchmark: Benchmark | None = None
    reading: Reading | None = None

    @property
    def name(self) -> str:
        """What it is called."""
        return self.config.name

    @property
    def sign(self) -> float:
        """1 if a higher figure is better, else -1."""
        known = self.benchmark
        rises = self.config.rises if known is None else known.higher_is_better
        return 1.0 if rises else -1.0

    @property
    def slack(self) -> float | None:
        """By how much the best parent may be better; None if no parent is the measure."""
        limit = self.config.limit
        return limit["parents"] if isinstance(limit, dict) else None

    def figure(self, result: Result) -> float:
        """The metric itself, as tables print it, over all cards of a model."""
        if self.benchmark is None:
            return result.figures[self.name]
        name, metric = self.name, self.benchmark.metric
        return self.benchmark.pooled(
            {card.role or Role.SEARCH: card.items[name][metric] for card in result.cards}
        )

    def value(self, result: Result) -> float:
        """What a search maximises of it: the signal where it has one, higher being better."""
        if self.reading is None:
            return self.sign * self.figure(result)
        return objective(result.cards, [self.reading], signal=True)

    @property
    def turned(self) -> bool:
        """Whether its values are what is minimised with the sign turned; a signal always rises."""
        return self.sign < 0 and (self.reading is None or self.reading.signal is None)

    def told(self, value: float) -> str:
        """One of its values as people know it."""
        return f"{-value if self.turned else value:.6g}"

    def limit(self, parents: Sequence[Result]) -> float | None:
        """The figure that must be reached, or not exceeded; None if there is no limit."""
        stated = self.config.limit
        if stated is None or not isinstance(stated, dict):
            return stated
        best = max(self.sign * self.figure(parent) for parent in parents)
        return self.sign * (best - stated["parents"])

    def missed(self, result: Result, limit: float) -> float:
        """What a model is short of a limit: 0 or below if it keeps to it.

        A share of the limit where that is above 1: perplexities, layers and accuracies then count
        alike in the sum by which candidates rank that miss some.
        """
        short = self.sign * (limit - self.figure(result)) / max(1.0, abs(limit))
        return round(short, _DIGITS)


@dataclass(frozen=True, slots=True)
class Goals:
    """All objectives of a study, in its order.

    Attributes:
        aims: One for each objective.
        pareto: Whether each is a value of its own; else their weighted mean is the only one.
    """

    aims: tuple[Aim, ...]
    pareto: bool

    @property
    def limited(self) -> tuple[Aim, ...]:
        """Those with a limit."""
        return tuple(aim for aim in self.aims if aim.config.limit is not None)

    @property
    def maximized(self) -> tuple[Aim, ...]:
        """Those that are values under `goal: pareto`."""
        return tuple(aim for aim in self.aims if aim.config.maximized)

    @property
    def functions(self) -> tuple[Aim, ...]:
        """Those that a user's function measures."""
        return tuple(aim for aim in self.aims if aim.config.kind == "function")

    @property
    def by_parents(self) -> bool:
        """Whether a limit of some benchmark is a parent's figure."""
        return any(aim.slack is not None and aim.benchmark for aim in self.limited)

    def raced(self) -> tuple[tuple[Reading, ...], ...] | None:
        """The benchmarks of each value by which candidates are raced.

        None if a value is made of more than items: of a model's property or a user's function.
        """
        if any(aim.reading is None for aim in self.maximized):
            return None
        rows = tuple((aim.reading,) for aim in self.maximized if aim.reading is not None)
        return rows if self.pareto else (tuple(reading for (reading,) in rows),)

    def mean(self, result: Result) -> float:
        """The weighted mean of benchmarks and functions; a model's properties aren't in it."""
        others = [aim for aim in self.functions if aim.config.weight]
        values = [aim.value(result) for aim in others]
        weights = [aim.config.weight for aim in others]
        known = (aim.reading for aim in self.aims)
        if readings := [one for one in known if one is not None and one.weight]:
            values.insert(0, objective(result.cards, readings, signal=True))
            weights.insert(0, sum(one.weight for one in readings))
        return values[0] if len(values) == 1 else float(np.average(values, weights=weights))

    def values(self, result: Result) -> tuple[float, ...]:
        """What Optuna is told, all to be maximised."""
        if not self.pareto:
            return (self.mean(result),)
        return tuple(aim.value(result) for aim in self.maximized)

    def estimated(self, values: Sequence[float]) -> float:
        """The weighted mean of a stopped candidate, whose values are estimates.

        Args:
            values: What samplers are told of it; only benchmarks are raced, so there are no others.
        """
        weights = [aim.config.weight for aim in self.maximized] if self.pareto else None
        return float(np.average(values, weights=weights))

    def missed(self, result: Result, parents: Sequence[Result]) -> dict[str, float]:
        """For each limit what a model is short of it: 0 or below if it keeps to it.

        Args:
            result: Of the model.
            parents: Of every parent, on the same items.
        """
        found: dict[str, float] = {}
        for aim in self.limited:
            limit = aim.limit(parents)
            assert limit is not None
            found[aim.name] = aim.missed(result, limit)
        return found


def goals_of(
    config: StudyConfig, benchmarks: Sequence[Benchmark], readings: Sequence[Reading]
) -> Goals:
    """The goals of a study.

    Args:
        config: The study file.
        benchmarks: Of those objectives that have items, in order.
        readings: Of the benchmarks.
    """
    known = iter(zip(benchmarks, readings, strict=True))
    aims = tuple(Aim(one, *next(known)) if one.has_items else Aim(one) for one in config.objectives)
    return Goals(aims, config.search.goal == "pareto")


def violation(missed: Mapping[str, float]) -> float:
    """The sum of what a candidate is short of its limits; 0 if it keeps to all."""
    return sum(max(0.0, one) for one in missed.values())


def missed_text(missed: Mapping[str, float]) -> str:
    """Which limits are missed and by how much; empty if none is."""
    return ", ".join(f"{name} by {one:.4f}" for name, one in missed.items() if one > 0)


def front(values: Sequence[Sequence[float]], violations: Sequence[float]) -> list[int]:
    """Positions of those that no other beats; of equals the first.

    Who keeps to the limits beats who doesn't, and less missed beats more.

    Args:
        values: Of each candidate, higher being better, `(candidates, objectives)`.
        violations: Of each, `(candidates,)`.
    """
    if not values:
        return []
    least = min(violations)
    places = [at for at, missed in enumerate(violations) if missed == least]
    points = np.asarray([values[at] for at in places], dtype=np.float64)
    kept: list[int] = []
    for at, point in enumerate(points):
        as_good = (points >= point).all(axis=1)
        beaten = (as_good & (points > point).any(axis=1)).any()
        if not beaten and not as_good[:at].any():
            kept.append(places[at])
    return kept


def spread(values: Sequence[Sequence[float]], means: Sequence[float], count: int) -> list[int]:
    """Positions of members that stand for a whole front: the best by mean, then the far ones.

    Each next one is farthest from those taken, with every objective scaled to the front's own
    extent (the greedy k-center of Gonzalez 1985, doi:10.1016/0304-3975(85)90224-5).

    Args:
        values: Of each member, `(members, objectives)`.
        means: Of each, `(members,)`.
        count: How many.
    """
    points = np.asarray(values, dtype=np.float64)
    extent = points.max(axis=0) - points.min(axis=0)
    points = points / np.where(extent > 0, extent, 1.0)
    taken = [int(np.argmax(means))]
    while len(taken) < min(count, len(points)):
        gaps = np.linalg.norm(points[:, None] - points[taken], axis=2).min(axis=1)
        gaps[taken] = -1.0
        taken.append(int(np.argmax(gaps)))
    return taken
