"""One study on a landscape: items dealt to roles, every evaluated item counted, a winner judged.

Contestants see a landscape only through a `Game`, which charges what they look at.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from landscapes import Column, Landscape, Results

from search.space import Values

Array = np.ndarray[Any, Any]
SEARCH, SELECT = 32, 32  # items of each task; what is left, 64 of each, is the holdout


@dataclass(frozen=True, slots=True)
class Deal:
    """Which items play which role, positions in the landscape's list.

    Attributes:
        search: In the order in which they are asked.
        select: For the choice among finalists.
        holdout: For the judge alone.
    """

    search: Array
    select: Array
    holdout: Array


class SpentError(Exception):
    """The budget does not pay for what was asked."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One recipe that was looked at.

    Attributes:
        values: Its numbers and choices.
        items: Evaluations that it cost; 0 for a recipe seen before.
        spent: Evaluations of the study up to here, this one among them.
        results: On all items; only those of `seen` are a contestant's business.
        seen: Positions of the items that it was evaluated on.
    """

    values: Values
    items: int
    spent: int
    results: Results
    seen: Array


@dataclass(slots=True)
class Game:
    """One study.

    Attributes:
        landscape: Where it is played.
        deal: Who may look at which items.
        budget: Item evaluations that it may cost.
        trials: What was looked at, in order.
        spent: Evaluations so far.
        proposing: CPU seconds that samplers of ours took.
    """

    landscape: Landscape
    deal: Deal
    budget: int
    trials: list[Trial] = field(default_factory=list[Trial])
    spent: int = 0
    proposing: float = 0.0

    def look(self, values: Values, items: Array | None = None, *, free: bool = False) -> Trial:
        """Evaluate a recipe.

        Args:
            values: The recipe.
            items: Positions of items; all search items if not given. One that stops a candidate
                early gives fewer.
            free: Charge nothing: the recipe was evaluated before.

        Raises:
            SpentError: If the budget doesn't pay for it.
        """
        seen = self.deal.search if items is None else items
        self.pay(0 if free else len(seen))
        cost = 0 if free else len(seen)
        trial = Trial(values, cost, self.spent, self.landscape.results(values), seen)
        self.trials.append(trial)
        return trial

    def pay(self, items: int) -> None:
        """Charge evaluations.

        Raises:
            SpentError: If there are too few left.
        """
        if self.spent + items > self.budget:
            raise SpentError
        self.spent += items


def deal(landscape: Landscape, seed: int) -> Deal:
    """Deal the items of each task to the three roles anew."""
    chance = np.random.default_rng([seed, 1])
    roles: tuple[list[Array], ...] = ([], [], [])
    for task in np.unique(landscape.tasks):
        order = chance.permutation(np.flatnonzero(landscape.tasks == task))
        for role, part in zip(roles, np.split(order, [SEARCH, SEARCH + SELECT]), strict=True):
            role.append(part)
    # The tasks take turns, so that any first items are of all tasks alike.
    return Deal(*(np.stack(role, axis=1).reshape(-1) for role in roles))


def score(landscape: Landscape, values: Column, items: Array) -> tuple[float, ...]:
    """The mean of per-item values for each objective."""
    return tuple(float(values[items[own[items]]].mean()) for own in landscape.objectives)


def accuracy(game: Game, trial: Trial, items: Array | None = None) -> tuple[float, ...]:
    """A trial's share of right answers for each objective, on the items it saw or on others."""
    return score(game.landscape, trial.results.right, trial.seen if items is None else items)


def probability(game: Game, trial: Trial, items: Array | None = None) -> tuple[float, ...]:
    """A trial's mean probability of the right option for each objective."""
    return score(game.landscape, trial.results.graded, trial.seen if items is None else items)


def per_item(results: Results, signal: str) -> Column:
    """What a signal is, item by item, from 0 to 1."""
    return {"accuracy": results.right, "probability": results.graded, "soft": results.soft}[signal]


def soft(game: Game, trial: Trial, items: Array | None = None) -> tuple[float, ...]:
    """A trial's mean soft accuracy for each objective."""
    return score(game.landscape, trial.results.soft, trial.seen if items is None else items)


SIGNALS = {"accuracy": accuracy, "probability": probability, "soft": soft}


def judge(game: Game, winners: Sequence[Trial]) -> float:
    """What a study was worth: on the judge's items, right answers of the one winner.

    With several objectives the winners are a front, and it is the hypervolume that it dominates
    above chance, as a share of what a perfect model would.
    """
    ground = game.landscape.judged or game.landscape
    items = game.deal.holdout if ground is game.landscape else np.arange(len(ground.tasks))
    scores = [score(ground, ground.results(trial.values).right, items) for trial in winners]
    if len(game.landscape.objectives) == 1:
        return scores[0][0]
    chance = 1 / 3
    area, reached = 0.0, chance
    for first, second in sorted(scores, reverse=True):
        if first > chance and second > reached:
            area += (first - chance) * (second - reached)
            reached = second
    return area / (1 - chance) ** 2


def front(scores: Sequence[tuple[float, ...]]) -> list[int]:
    """Positions of the scores that no other is at least as good as in all and better in one."""
    table = np.array(scores)
    return [
        at
        for at, one in enumerate(table)
        if not ((table >= one).all(1) & (table > one).any(1)).any()
    ]
