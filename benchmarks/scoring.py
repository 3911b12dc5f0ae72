"""How a study of ours scores candidates: repeats are free, the lost are stopped."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from search_game import SIGNALS, Game, SpentError, Trial, front, per_item

from evals.racing import Duel, Rule, expected, race_front, rung_ends
from search.space import Values

Array = np.ndarray[Any, Any]


@dataclass(slots=True)
class Scoring:
    """The search items of one study.

    Attributes:
        game: Who charges for them.
        protocol: Of a contestant.
        kept: Evaluations that are kept for the finalists.
        free: Fingerprints of what was scored before the first trial.
        known: What was scored in full, by fingerprint.
    """

    game: Game
    protocol: Any
    kept: int
    free: set[str]
    known: dict[str, Trial] = field(default_factory=dict[str, Trial])

    @classmethod
    def of(cls, game: Game, protocol: Any, references: int) -> "Scoring":
        """With the references scored and paid."""
        known = set(game.landscape.references) if references else set[str]()
        scoring = cls(game, protocol, protocol.finalists * len(game.deal.select), known)
        game.pay(references * round(len(game.deal.search) * protocol.share))
        return scoring

    def look(self, values: Values, rivals: Sequence[Trial]) -> tuple[float, ...]:
        """Score a candidate and say what its sampler is told.

        Args:
            values: The candidate.
            rivals: Whom it may lose to: the best told before its batch.

        Raises:
            SpentError: If what is left is the finalists'.
        """
        game, read = self.game, SIGNALS[self.protocol.signal]
        key = game.landscape.fingerprint(values)
        items = game.deal.search[: round(len(game.deal.search) * self.protocol.share)]
        if key in self.known:
            return read(game, game.look(values, items, free=True))
        if key in self.free:
            self.known[key] = game.look(values, items, free=True)
            return read(game, self.known[key])
        if game.spent + len(items) + self.kept > game.budget:
            raise SpentError
        results = game.landscape.results(values)
        for seen in self._rungs(items) if rivals and self.protocol.racing else ():
            duels = [self._duels(rival, results, items, seen) for rival in rivals]
            verdict = race_front(duels, Rule())
            if verdict.lost:
                game.look(values, items[:seen])
                return tuple(expected(duel) for duel in duels[verdict.by])
        self.known[key] = game.look(values, items)
        return read(game, self.known[key])

    def leaders(self) -> list[Trial]:
        """The best of what was scored in full: one trial, or a front."""
        every = list(self.known.values())
        if not every:
            return []
        scores = [SIGNALS[self.protocol.signal](self.game, trial) for trial in every]
        if len(scores[0]) > 1:
            return [every[at] for at in front(scores)]
        return [every[int(np.argmax([score for (score,) in scores]))]]

    def _rungs(self, items: Array) -> list[int]:
        """Items seen when a candidate may be stopped; the last rung has all of them."""
        tasks = len(np.unique(self.game.landscape.tasks))
        ends = rung_ends([len(items) // tasks] * tasks, Rule().rungs)
        return [sum(end) for end in ends[:-1]]

    def _duels(self, rival: Trial, results: Any, items: Array, seen: int) -> list[Duel]:
        whole = per_item(rival.results, self.protocol.signal)
        part = per_item(results, self.protocol.signal)
        ground, duels = self.game.landscape, list[Duel]()
        for own in ground.objectives:
            tasks = np.unique(ground.tasks[own])
            places = [items[ground.tasks[items] == task] for task in tasks]
            firsts = [items[:seen][ground.tasks[items[:seen]] == task] for task in tasks]
            duels.append(
                Duel(
                    [whole[at].astype(np.float64) for at in places],
                    [part[at].astype(np.float64) for at in firsts],
                    [1 / len(tasks)] * len(tasks),
                    [1.0] * len(tasks),
                )
            )
        return duels
