"""What trials report, in a form that a model of them can learn: numbers as smooth as they get.

The mean probability of right options bends where items turn from wrong to right; the log-odds of
each item hardly bend at all. So items whose result is a probability are learnt one by one, and put
together again only where a recipe is judged: Bayesian optimisation of a composite function
(Astudillo and Frazier 2019, arXiv:1906.01537). Everything else is learnt as the figure it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial

from search.genes import CONSTRAINTS

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Outputs:
    """What trials reported.

    Attributes:
        table: `(trials, outputs)`.
        values: From outputs `(..., outputs)` to what trials are told, `(..., values)`.
        missed: From outputs to what is missed of limits, `(..., limits)`: kept at 0 and below.
    """

    table: Array
    values: Callable[[NDArray[Any]], NDArray[Any]]
    missed: Callable[[NDArray[Any]], NDArray[Any]]


class Reader(Protocol):
    """Reads what trials of a study reported."""

    def __call__(self, trials: Sequence[FrozenTrial]) -> tuple[list[FrozenTrial], Outputs] | None:
        """The trials whose outputs are all known, and these; None if nothing is known of items."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """Items of one benchmark in the values that trials are told.

    Attributes:
        items: How many.
        factors: What each counts, `(items,)`.
        shares: What their mean counts in each value, `(values,)`.
    """

    items: int
    factors: Array
    shares: Array


def plain(trials: Sequence[FrozenTrial]) -> tuple[list[FrozenTrial], Outputs]:
    """Outputs that are the told values and the constraints themselves."""
    values = np.array([cast("list[float]", trial.values) for trial in trials], dtype=np.float64)
    count = values.shape[1]
    limits = [_limits(trial) for trial in trials]
    most = max(map(len, limits))
    known = [at for at, missed in enumerate(limits) if len(missed) == most]
    table = np.hstack(
        [values[known], np.array([limits[at] for at in known]).reshape(len(known), most)]
    )
    outputs = Outputs(table, lambda rows: rows[..., :count], lambda rows: rows[..., count:])
    return [trials[at] for at in known], outputs


def joined(parts: Sequence[Part], odds: Array, told: Array, missed: Array) -> Outputs:
    """Outputs that are the log-odds of items, what these don't explain of the values, and limits.

    Args:
        parts: Of the values, in the order of the items.
        odds: Of each trial, `(trials, items of all parts)`.
        told: What trials were told, `(trials, values)`.
        missed: What they miss of limits, `(trials, limits)`.
    """
    ends = np.cumsum([part.items for part in parts]).tolist()
    last, count = ends[-1], told.shape[1]

    def explained(table: NDArray[Any]) -> NDArray[Any]:
        found = np.zeros((*table.shape[:-1], count), table.dtype)
        for part, end in zip(parts, ends, strict=True):
            # 1 / (1 + exp(-x)) = (1 + tanh(x / 2)) / 2, which numpy computes four times faster.
            bent = np.tanh(table[..., end - part.items : end] / 2)
            factors = part.factors.astype(table.dtype)
            means = (factors.sum() + bent @ factors) / (2 * part.items)
            found += means[..., None] * part.shares.astype(table.dtype)
        return found

    return Outputs(
        np.hstack([odds, told - explained(odds), missed]),
        lambda table: explained(table) + table[..., last : last + count],
        lambda table: table[..., last + count :],
    )


def _limits(trial: FrozenTrial) -> list[float]:
    missed: Any = trial.user_attrs.get(CONSTRAINTS) or list(trial.constraints.values())
    return list(missed)
