"""What the stored trials of a study say item by item, for samplers that learn from it."""

from collections.abc import Sequence

import numpy as np
from optuna.trial import FrozenTrial

from evals.odds import Evidence, evidence, has_odds, odds
from search.genes import CONSTRAINTS
from search.goals import Goals
from search.outputs import Outputs, Part, Reader, joined
from search.record import STOPPED, card_from_dict


def reader_of(goals: Goals) -> Reader | None:
    """How trials of a study are read; None if no item says more than its score does."""
    aims = goals.maximized if goals.pareto else [a for a in goals.aims if a.reading is not None]
    total = sum(a.config.weight for a in aims) + sum(a.config.weight for a in goals.functions)
    shares = np.eye(len(aims)) if goals.pareto else [[a.config.weight / total] for a in aims]
    graded = [
        (aim.reading, np.array(share, dtype=np.float64))
        for aim, share in zip(aims, shares, strict=True)
        if aim.reading is not None and has_odds(aim.reading)
    ]
    cache: dict[int, tuple[Evidence, ...]] = {}
    last: dict[tuple[int, ...], Outputs] = {}  # all trials of a batch are drawn from the same ones

    def items(trial: FrozenTrial) -> tuple[Evidence, ...]:
        if trial.number not in cache:
            card = card_from_dict(trial.user_attrs["scorecard"])
            cache[trial.number] = tuple(evidence(card, reading) for reading, _ in graded)
        return cache[trial.number]

    def read(trials: Sequence[FrozenTrial]) -> tuple[list[FrozenTrial], Outputs] | None:
        whole = [t for t in trials if "scorecard" in t.user_attrs and STOPPED not in t.user_attrs]
        if not whole:
            return None
        numbers = tuple(trial.number for trial in whole)
        if numbers not in last:
            last.clear()
            last[numbers] = outputs(whole)
        return whole, last[numbers]

    def outputs(whole: Sequence[FrozenTrial]) -> Outputs:
        columns = list(zip(*map(items, whole), strict=True))
        parts = [
            Part(len(models[0].values), models[0].factors, share)
            for models, (_, share) in zip(columns, graded, strict=True)
        ]
        tables = [odds(models, one) for models, (one, _) in zip(columns, graded, strict=True)]
        told = np.array([trial.values for trial in whole])
        missed = [trial.user_attrs.get(CONSTRAINTS, ()) for trial in whole]
        return joined(parts, np.hstack(tables), told, np.array(missed, dtype=np.float64))

    return read if graded else None
