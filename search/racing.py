"""Racing in a search: whom a candidate has to beat, when it has lost, what the sampler is told.

The incumbents are fixed before a batch of candidates is proposed, from the trials told so far, and
read from storage; so a verdict depends neither on the number of workers nor on a restart. Who runs
a batch does this:

    race = Race(leaders.before(number), (readings,), Rule())   # proposer, before each batch
    for card in harness.score_rungs(Role.SEARCH, keys):        # evaluator, for each candidate
        if card.failure is not None or (verdict := race.verdict(card)).lost:
            break
    if verdict.lost:                                           # proposer, when the batch is told
        study.tell(trial, race.values(card, verdict))          # complete, not pruned: it teaches
    else:
        study.tell(trial, objective([card], readings, signal=True))

The harness needs rungs that have those of the rule among them, the same for all candidates of a
study: they decide the batches. With no leader yet every verdict is that nothing is lost. The last
card holds all items and isn't judged.
A stopped trial is no leader, no finalist and not reused as the scores of a recipe; its card holds
the first items only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from optuna import Study

from evals.objective import Reading, item_scores, item_weights, objective
from evals.racing import Duel, Rule, Verdict, race_front, rung_ends
from evals.scorecard import Scorecard
from search.genes import violation
from search.record import card_from_dict, finished

_LOWEST = 1.0  # minus Matthews' correlation at its lowest, where a study turns it


@dataclass(frozen=True, slots=True)
class Race:
    """What candidates are held against.

    Attributes:
        incumbents: Scorecards of all search items: the best, or the members of the front. Where an
            objective needs no items (a depth), only those that are as good as the candidate in it.
        objectives: For each objective the benchmarks that it is the weighted mean of.
        rule: When one is lost.
    """

    incumbents: tuple[Scorecard, ...]
    objectives: tuple[Sequence[Reading], ...]
    rule: Rule = field(default_factory=Rule)

    def verdict(self, card: Scorecard) -> Verdict:
        """Whether a candidate has lost, by a card of its first items.

        Nothing is lost without an incumbent, with all items scored, at a rung that the rule doesn't
        look at, or where an objective has no benchmark that can be raced.
        """
        seen = _counts(card)
        if card.failure is not None or not any(seen in self._looks(one) for one in self.incumbents):
            return Verdict(False, 0.0, sum(seen.values()))
        pairs = [(one, card) for one in self.incumbents]
        members = [[duel(*pair, readings) for readings in self.objectives] for pair in pairs]
        rows = [[one for one in row if one is not None] for row in members]
        if any(None in row for row in members):
            return Verdict(False, 0.0, sum(seen.values()))
        return race_front(rows, self.rule)

    def _looks(self, whole: Scorecard) -> list[dict[str, int]]:
        """Items of each benchmark after which the rule looks at a candidate."""
        counts = _counts(whole)
        ends = rung_ends(list(counts.values()), self.rule.rungs)[:-1]
        return [dict(zip(counts, end, strict=True)) for end in ends]

    def values(self, card: Scorecard, verdict: Verdict) -> tuple[float, ...]:
        """What the sampler is told of a stopped candidate, one value for each objective.

        The score of the incumbent that it lost to, less what it is behind on the items that both
        have: `evals.racing.expected`, for every kind of figure.

        Args:
            card: Of the items seen.
            verdict: On that card.
        """
        incumbent = self.incumbents[verdict.by or 0]
        same = _first(incumbent, card)
        return tuple(
            objective([incumbent], readings, signal=True)
            + objective([card], readings, signal=True)
            - objective([same], readings, signal=True)
            for readings in self.objectives
        )


class Leaders:
    """Whom a next batch has to beat: the best trial, or the members of the Pareto front.

    Trials that were stopped are left out: their values are estimates. So are those that miss a
    limit: a candidate with lower values that keeps to it is better. Of equals the first counts.
    Higher values are better.

    Args:
        study: Whose trials so far are known.
    """

    def __init__(self, study: Study) -> None:
        self._front: list[_Leader] = []
        self._fresh = [
            _Leader(trial.number, tuple(trial.values), trial.user_attrs["scorecard"])
            for trial in finished(study)
            if not violation(trial)
        ]

    def add(self, number: int, values: tuple[float, ...], card: Scorecard) -> None:
        """Tell of a trial that was scored on all items."""
        self._fresh.append(_Leader(number, values, card))

    def before(self, number: int) -> tuple[Scorecard, ...]:
        """The scorecards of the leaders among the trials before a batch's first one."""
        for one in sorted(self._fresh, key=lambda leader: leader.number):
            if one.number < number and not any(_beats(other, one) for other in self._front):
                self._front = [other for other in self._front if not _beats(one, other)] + [one]
        self._fresh = [one for one in self._fresh if one.number >= number]
        return tuple(one.scorecard for one in self._front)


@dataclass(frozen=True, slots=True)
class _Leader:
    number: int
    values: tuple[float, ...]
    card: Scorecard | Mapping[str, Any]

    @property
    def scorecard(self) -> Scorecard:
        return self.card if isinstance(self.card, Scorecard) else card_from_dict(self.card)


def duel(incumbent: Scorecard, card: Scorecard, readings: Sequence[Reading]) -> Duel | None:
    """One objective's race, or None where no benchmark of it has scores per item.

    Figures of a whole set (F1, BLEU) have no score per item; what they could give the candidate at
    most is added to the margin. Scores are bounded where they are probabilities or right-or-wrong;
    else the race takes differences to be symmetric around their mean.

    Args:
        incumbent: Of all items.
        card: Of the candidate's first items.
        readings: The objective's benchmarks.
    """
    total = sum(one.weight for one in readings)
    raced = [one for one in readings if _key(one) not in one.figures]
    others = [one for one in readings if _key(one) in one.figures]
    if not raced:
        return None
    whole = item_scores(incumbent, raced, signal=True)
    part = item_scores(card, raced, signal=True)
    figures = item_scores(incumbent, others, signal=True)
    most = [1.0 if one.signs[_key(one)] > 0 else _LOWEST for one in others]
    beyond = [
        one.weight / total * (top - float(scores.mean()))
        for one, top, scores in zip(others, most, figures, strict=True)
    ]
    bounded = all(_bounded(one, incumbent) and _bounded(one, card) for one in raced)
    spans = [float(item_weights(incumbent, one).max()) for one in raced]
    return Duel(
        whole,
        part,
        [one.weight / total for one in raced],
        spans if bounded else None,
        sum(beyond),
    )


def _beats(one: _Leader, other: _Leader) -> bool:
    """Whether one is nowhere worse, and somewhere better or the first."""
    better = one.values != other.values or one.number < other.number
    return better and all(a >= b for a, b in zip(one.values, other.values, strict=True))


def _key(one: Reading) -> str:
    return one.metric if one.signal is None else one.signal


def _bounded(one: Reading, card: Scorecard) -> bool:
    values = card.items[one.name][_key(one)]
    return one.graded or all(value in (0.0, 1.0) for value in values)


def _counts(card: Scorecard) -> dict[str, int]:
    return {score.task: score.n for score in card.scores}


def _first(card: Scorecard, like: Scorecard) -> Scorecard:
    """The items of a card that another has scored too."""
    counts = _counts(like)
    items = {
        task: {key: values[: counts[task]] for key, values in results.items()}
        for task, results in card.items.items()
    }
    return replace(card, items=items)
