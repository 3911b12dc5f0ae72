"""What the stored trials of a study say item by item, for samplers that learn from it."""

from collections.abc import Sequence

import numpy as np
from optuna.trial import FrozenTrial

from evals.objective import Odds, odds
from search.genes import CONSTRAINTS
from search.goals import Goals
from search.outputs import Outputs, Part, Reader, joined
from search.record import STOPPED, card_from_dict


def reader_of(goals: Goals) -> Reader | None:
    """How trials of a study are read; None if none of its objectives has graded items."""
    aims = goals.maximized if goals.pareto else [a for a in goals.aims if a.reading is not None]
    total = sum(a.config.weight for a in aims) + sum(a.config.weight for a in goals.functions)
    shares = np.eye(len(aims)) if goals.pareto else [[a.config.weight / total] for a in aims]
    graded = [
        (aim.reading, np.array(share, dtype=np.float64))
        for aim, share in zip(aims, shares, strict=True)
        if aim.reading is not None and aim.reading.graded
    ]
    cache: dict[int, tuple[Odds, ...]] = {}

    def items(trial: FrozenTrial) -> tuple[Odds, ...]:
        if trial.number not in cache:
            card = card_from_dict(trial.user_attrs["scorecard"])
            cache[trial.number] = tuple(odds(card, reading) for reading, _ in graded)
        return cache[trial.number]

    def read(trials: Sequence[FrozenTrial]) -> tuple[list[FrozenTrial], Outputs] | None:
        whole = [t for t in trials if "scorecard" in t.user_attrs and STOPPED not in t.user_attrs]
        if not whole:
            return None
        parts = [
            Part(len(one.odds), one.factors, share)
            for one, (_, share) in zip(items(whole[0]), graded, strict=True)
        ]
        rows = [np.concatenate([one.odds for one in items(trial)]) for trial in whole]
        told = np.array([trial.values for trial in whole])
        missed = [trial.user_attrs.get(CONSTRAINTS, ()) for trial in whole]
        return whole, joined(parts, rows, told, np.array(missed, dtype=np.float64))

    return read if graded else None
