"""The claim: candidates against references, on items that nothing has touched."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evals.harness import Benchmark
from evals.objective import item_scores, reading, unchanged
from evals.power import items_to_tell
from evals.resampling import Clusters
from evals.scorecard import Scorecard, Value
from evals.statistics import LEVEL, Gain, holm, paired_gains

BETTER, WORSE, EQUIVALENT, TOO_FEW = "better", "worse", "equivalent", "not enough items"
MARGIN = 0.01


@dataclass(frozen=True, slots=True)
class Comparison:
    """A candidate against one reference, on one benchmark or on all of them.

    Attributes:
        candidate: Name of the model that a claim is made for.
        reference: Name of the other.
        task: The benchmark; None for the weighted mean of all.
        gain: The paired difference, positive where the candidate is better.
        p: Corrected for all comparisons of its kind, overall or by benchmark (Holm).
        verdict: `better`, `worse`, `equivalent` or `not enough items`, at 5%.
        needed: Items in all that would tell, for `not enough items`; None if no number would.
    """

    candidate: str
    reference: str
    task: str | None
    gain: Gain
    p: float
    verdict: str
    needed: int | None


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What was found about several pairs of models.

    Attributes:
        overall: One for each pair, on the weighted mean of all benchmarks.
        tasks: One for each benchmark and pair; empty if there is one benchmark.
        chances: For each candidate the probability that it is better than every reference that it
            was compared with, on resampled items.
        margin: Differences below it don't matter.
    """

    overall: tuple[Comparison, ...]
    tasks: tuple[Comparison, ...]
    chances: Mapping[str, float]
    margin: float


def compare(
    cards: Mapping[str, Scorecard],
    pairs: Sequence[tuple[str, str]],
    benchmarks: Sequence[Benchmark],
    clusters: Sequence[Clusters | None] | None = None,
    margin: float = MARGIN,
    rivals: Iterable[str] | None = None,
) -> Verdicts:
    """Compare models that were scored on the same items.

    Args:
        cards: Scorecards by name.
        pairs: Candidate and reference of every comparison.
        benchmarks: In the order of the scorecards.
        clusters: For each benchmark the cluster of each item `(items,)`, or None where items are
            independent.
        margin: Differences below it don't matter, in units of the metrics: .01 is a point of
            accuracy.
        rivals: References that a candidate's probability of being best is about; None: all.
    """
    readings = [reading(benchmark) for benchmark in benchmarks]
    scores = {name: item_scores(card, readings) for name, card in cards.items()}
    differences = [
        np.column_stack([scores[ours][at] - scores[theirs][at] for ours, theirs in pairs])
        for at in range(len(benchmarks))
    ]
    moved = [
        np.column_stack([~unchanged(one, cards[ours], cards[theirs]) for ours, theirs in pairs])
        for one in readings
    ]
    weights = [benchmark.weight for benchmark in benchmarks]
    gains = paired_gains(differences, weights, clusters, moved=moved)
    by_task = [
        (ours, theirs, benchmark.name, gain)
        for benchmark, found in zip(benchmarks, gains.tasks, strict=True)
        for (ours, theirs), gain in zip(pairs, found, strict=True)
    ]
    overall = [(*pair, None, gain) for pair, gain in zip(pairs, gains.overall, strict=True)]
    known = {theirs for _, theirs in pairs} if rivals is None else set(rivals)
    return Verdicts(
        _judged(overall, margin),
        _judged(by_task, margin) if len(benchmarks) > 1 else (),
        _chances(pairs, gains.resampled, known),
        margin,
    )


def verdict(gain: Gain, p: float, margin: float) -> str:
    """What may be said: `better` and `worse` need the corrected p-value and the interval.

    `equivalent` needs the whole interval within the margin: two one-sided tests at 2.5%.
    """
    if p < LEVEL and gain.low > 0:
        return BETTER
    if p < LEVEL and gain.high < 0:
        return WORSE
    return EQUIVALENT if -margin <= gain.low and gain.high <= margin else TOO_FEW


def in_points(cards: Iterable[Scorecard], task: str | None = None) -> bool:
    """Whether scores lie between 0 and 1 or are percentages, so that a hundredth is a point."""
    return all(
        score.unit != 1 or _are_shares(card.items[score.task][score.metric])
        for card in cards
        for score in card.scores
        if task in (None, score.task)
    )


def _are_shares(values: Iterable[Value]) -> bool:
    return all(isinstance(value, float | int) and 0 <= value <= 1 for value in values)


def _judged(
    found: Sequence[tuple[str, str, str | None, Gain]], margin: float
) -> tuple[Comparison, ...]:
    corrected = holm([gain.p for *_, gain in found])
    judged: list[Comparison] = []
    for (ours, theirs, task, gain), p in zip(found, corrected, strict=True):
        word = verdict(gain, p, margin)
        needed = None
        if word == TOO_FEW:
            needed = items_to_tell(gain.value, gain.error, gain.n, margin, len(found))
        judged.append(Comparison(ours, theirs, task, gain, p, word, needed))
    return tuple(judged)


def _chances(
    pairs: Sequence[tuple[str, str]], resampled: np.ndarray, rivals: set[str]
) -> dict[str, float]:
    """How often a candidate beats all its rivals on the same resampled items; a tie is half."""
    chances: dict[str, float] = {}
    for candidate in dict.fromkeys(ours for ours, _ in pairs):
        columns = [at for at, (o, t) in enumerate(pairs) if o == candidate and t in rivals]
        if columns:
            least = resampled[:, columns].min(axis=1)
            chances[candidate] = float((least > 0).mean() + (least == 0).mean() / 2)
    return chances
