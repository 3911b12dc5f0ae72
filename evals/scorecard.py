"""What scoring a candidate gives: per-item results, and scores as views on them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from evals.items import Role

Value = float | tuple[float, ...]
"""One item's result under one metric; a tuple where a figure is made of several sums (BLEU)."""


@dataclass(frozen=True, slots=True)
class Score:
    """One benchmark's figure.

    Attributes:
        task: The benchmark.
        metric: lm-eval's name of the metric.
        value: None if it could not be scored; never 0 in that case.
        stderr: Standard error over items, for metrics that are means.
        n: Number of items.
        unscored: Why `value` is None.
        unit: What the figure counts as one: 100 for a percentage.
    """

    task: str
    metric: str
    value: float | None
    stderr: float | None
    n: int
    unscored: str | None = None
    unit: float = 1.0


@dataclass(frozen=True, slots=True)
class Scorecard:
    """All scores of a model on one role's items.

    Attributes:
        scores: One for each benchmark, in study order.
        items: Per-item results: task → metric → values in the role's item order. A benchmark's
            search signal stands among its metrics, under a name without a comma.
        seconds: Wall time of the evaluation.
        role: Whose items they are.
        symptoms: Of benchmarks that generate: what went wrong → share of the items.
    """

    scores: tuple[Score, ...]
    items: Mapping[str, Mapping[str, Sequence[Value]]]
    seconds: float
    role: Role | None = None
    symptoms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # pyright: ignore

    @property
    def failure(self) -> str | None:
        """Why a score is missing, or None if all are there."""
        return next((f"{s.task}: {s.unscored}" for s in self.scores if s.value is None), None)


def mean_score(
    task: str,
    metric: str,
    values: Sequence[Value],
    aggregate: Callable[[Sequence[Value]], float],
) -> Score:
    """Turn per-item results into a score.

    Args:
        task: The benchmark.
        metric: Its metric.
        values: Per-item results.
        aggregate: From per-item results to one number.
    """
    flat = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
    if bad := sum(not math.isfinite(part) for part in flat):
        return Score(task, metric, None, None, len(values), f"{bad} items are not finite numbers")
    value = aggregate(values)
    if not math.isfinite(value):
        return Score(task, metric, None, None, len(values), f"{metric} is {value}")
    return Score(task, metric, value, _stderr(values), len(values))


def _stderr(values: Sequence[Value]) -> float | None:
    plain = [value for value in values if not isinstance(value, tuple)]
    if len(plain) < len(values) or len(plain) < 2:
        return None
    mean = sum(plain) / len(plain)
    return math.sqrt(sum((v - mean) ** 2 for v in plain) / (len(plain) - 1) / len(plain))
