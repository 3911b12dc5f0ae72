# pyright: standard
"""Figures of a whole set: what is kept of each item, and what each item counts in the figure.

Most metrics are means over items. BLEU, chrF, TER, F1 and Matthews' correlation are not: of each
item the counts are kept that the figure is made of, so that it can be made again of any items. To
compare two models item by item, the figure is shared out among its items by the jackknife.
"""

import functools
import math
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from lm_eval.api import metrics as lm_eval
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from evals.scorecard import Value

Array = np.ndarray[Any, np.dtype[np.float64]]
Aggregate = Callable[[Any], Any]
"""lm-eval's way from the results of all items to a figure."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a whole set whose items are kept as tuples of numbers.

    Attributes:
        keep: From lm-eval's results of a task's items to what is kept of each; None for an item
            that has no such numbers.
        whole: From what is kept of all items to the figure.
        without: From the same to the figures that lack one item each, `(items,)`.
        unit: What the figure counts as one: 100 for a percentage.
    """

    keep: Callable[[Sequence[Any]], list[Value | None]]
    whole: Callable[[Sequence[Any]], float]
    without: Callable[[Sequence[Any]], Array]
    unit: float = 1.0


def figure_name(aggregate: Aggregate | None) -> str | None:
    """The name in `FIGURES` of an aggregation of lm-eval; None for any other."""
    return next((name for name, known in _AGGREGATES.items() if known is aggregate), None)


def keep(aggregate: Aggregate | None, results: Sequence[Any]) -> list[Value | None]:
    """What is kept of lm-eval's results of one task's items under one metric.

    The figure of what is kept, by `whole`, is the aggregation of the results: those numbers
    themselves, the counts of a figure in `FIGURES`, or, for an aggregation that only a task
    knows, each item's share in the figure.

    Args:
        aggregate: The metric's aggregation; None if the task has none for it.
        results: As `process_results` gives them.

    Returns:
        For each item its numbers, or None if it has none.
    """
    if aggregate is None or aggregate in _ITEM_BY_ITEM:
        return [plain(result) for result in results]
    if aggregate is lm_eval.brier_score:  # a mean over items, each alone
        return [_attempt(aggregate, [result]) for result in results]
    name = figure_name(aggregate)
    try:
        return FIGURES[name].keep(results) if name else _keep_shares(aggregate, results)
    except Exception:  # lm-eval's or a task's own code, with results that it is not made for
        return [None] * len(results)


def whole(aggregate: Aggregate, kept: Sequence[Value]) -> float:
    """The figure that lm-eval's aggregation gives, from what `keep` kept."""
    if (name := figure_name(aggregate)) is not None:
        return FIGURES[name].whole(kept)
    return float(aggregate(list(kept)) if aggregate in _ITEM_BY_ITEM else lm_eval.mean(kept))


def falls(aggregate: Aggregate) -> bool:
    """Whether the figure falls when what is kept of the items rises."""
    return aggregate in _FALLING


def shares(name: str, kept: Sequence[Value]) -> Array:
    """Each item's share in a figure of the whole set, `(items,)`; a percentage counts up to 1.

    Their mean is the figure, and their spread over the root of n its standard error: pseudo-values
    of the jackknife (Tukey 1958), moved by their common bias.

    Args:
        name: In `FIGURES`.
        kept: What is kept of one task's items.
    """
    figure = FIGURES[name]
    return _shared_out(figure.whole(kept), lambda: figure.without(kept), len(kept)) / figure.unit


def plain(value: Any) -> Value | None:
    """A metric's per-item result as numbers, or None for those that keep texts."""
    if isinstance(value, tuple | list):
        parts = [plain(part) for part in value]
        flat = tuple(part for part in parts if isinstance(part, float))
        return flat if len(flat) == len(parts) else None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _shared_out(figure: float, without: Callable[[], Array], count: int) -> Array:
    if count < 2:
        return np.full(count, figure)
    left = without()
    return figure + (count - 1) * (left.mean() - left)


def _keep_shares(aggregate: Aggregate, results: Sequence[Any]) -> list[Value | None]:
    """Shares in a figure of which nothing is known but how to make it.

    A mean of single items is found out by trying, as it costs no more than the figure itself;
    for any other, the figure is made as many times as there are different results.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sets with one item, or without an item of some class
        figure, half = (_attempt(aggregate, part) for part in (results, results[::2]))
        if figure is None:
            return [None] * len(results)
        single = [_attempt(aggregate, [result]) for result in results]
        if _is_mean(single, figure) and _is_mean(single[::2], half):
            return list(single)
        left = functools.partial(_without_each, aggregate, results)
        return list(_shared_out(figure, left, len(results)).tolist())


def _attempt(aggregate: Aggregate, results: Sequence[Any]) -> float | None:
    try:
        return float(aggregate(list(results)))
    except Exception:  # a task's own code, or an item that lacks what lm-eval's needs
        return None


def _is_mean(single: Sequence[float | None], figure: float | None) -> bool:
    known = [value for value in single if value is not None]
    if figure is None or len(known) < len(single):
        return False
    return math.isclose(sum(known) / len(known), figure, rel_tol=1e-9, abs_tol=1e-12)


def _without_each(aggregate: Aggregate, results: Sequence[Any]) -> Array:
    """Equal items leave equal sets, and many results have few values."""
    known: dict[Any, float] = {}
    keys = [key if isinstance(key, Hashable) else at for at, key in enumerate(results)]
    for at, key in enumerate(keys):
        if key not in known:
            known[key] = float(aggregate([*results[:at], *results[at + 1 :]]))
    return np.array([known[key] for key in keys])


def _of_pairs(aggregate: Aggregate) -> Figure:
    """A figure of pairs of right and given answers."""
    return Figure(
        lambda results: [plain(result) for result in results],
        lambda kept: float(aggregate(list(kept))),
        functools.partial(_without_each, aggregate),
    )


def _of_texts(metric: Any) -> Figure:
    """A figure of sacrebleu's, made of the sums of each text's statistics."""

    def score(sums: Array) -> float:
        return float(metric._compute_score_from_stats(sums.tolist()).score)

    def without(kept: Sequence[Any]) -> Array:
        counts = np.asarray(kept, dtype=np.float64)
        return np.array([score(sums) for sums in counts.sum(axis=0) - counts])

    return Figure(
        functools.partial(_text_statistics, metric),
        lambda kept: score(np.asarray(kept, dtype=np.float64).sum(axis=0)),
        without,
        unit=100.0,
    )


def _text_statistics(metric: Any, results: Sequence[Any]) -> list[Value | None]:
    """Statistics of sacrebleu of each text, with its references as lm-eval gives them."""
    references, texts = lm_eval._sacreformat(*zip(*results, strict=True))
    found = metric._extract_corpus_statistics(texts, references)
    return [tuple(float(count) for count in counts) for counts in found]


def _kept_or_missing(results: Sequence[Any]) -> list[Value | None]:
    """Values and their number: NaN is the result of an item that doesn't count."""
    values = [float(result) for result in results]
    return [(0.0, 0.0) if math.isnan(value) else (value, 1.0) for value in values]


def _mean_of_known(kept: Sequence[Any]) -> float:
    total, count = np.asarray(kept, dtype=np.float64).sum(axis=0)
    return float(total / count) if count else math.nan


def _mean_without(kept: Sequence[Any]) -> Array:
    values = np.asarray(kept, dtype=np.float64)
    total, count = (values.sum(axis=0) - values).T
    return np.divide(total, count, out=np.full(len(values), _mean_of_known(kept)), where=count > 0)


_ITEM_BY_ITEM: tuple[Aggregate, ...] = (
    lm_eval.mean,
    lm_eval.median,
    lm_eval.perplexity,
    lm_eval.weighted_perplexity,
    lm_eval.bits_per_byte,
)
_FALLING: tuple[Aggregate, ...] = _ITEM_BY_ITEM[2:]

_AGGREGATES: Mapping[str, Aggregate] = cast(
    "Any",
    {
        "bleu": lm_eval.bleu,
        "chrf": lm_eval.chrf,
        "chrf++": lm_eval.chrfpp,
        "ter": lm_eval.ter,
        "f1": lm_eval.f1_score,
        "matthews_corrcoef": lm_eval.matthews_corrcoef,
        "nanmean": lm_eval.nanmean,
    },
)

# sacrebleu's defaults, as lm-eval takes them; `force` only drops a warning about the input.
FIGURES: Mapping[str, Figure] = {
    "bleu": _of_texts(BLEU(force=True)),
    "chrf": _of_texts(CHRF()),
    "chrf++": _of_texts(CHRF(word_order=2)),
    "ter": _of_texts(TER()),
    "f1": _of_pairs(lm_eval.f1_score),
    "matthews_corrcoef": _of_pairs(lm_eval.matthews_corrcoef),
    "nanmean": Figure(_kept_or_missing, _mean_of_known, _mean_without),
}
