"""Racing: a candidate that has lost to the incumbent already is not scored to the end.

A fixed-threshold test that is looked at after every rung stops a quarter of the candidates that
are as good as the incumbent. An e-value doesn't: it is the capital of a gambler who bets, item by
item, that the candidate is worse; where it isn't, capital never reaches 1 / error with a larger
probability than `error`, however often one looks (Ville 1939). The bets on a finite set of items
drawn without replacement are those of Waudby-Smith and Ramdas (2020, 2024).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evals.errors import EvaluationError

Array = np.ndarray[Any, np.dtype[np.float64]]

RUNGS = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of the items after which a candidate may be stopped."""

_CAP = 0.9  # of the largest bet that can't lose everything
_TINY = 1e-18  # variance where no two items have differed yet
_LEAST = 1e-3  # of the range: what is left where the remaining items can't save the candidate


@dataclass(frozen=True, slots=True)
class Rule:
    """When a candidate has lost.

    Attributes:
        error: Probability that one is stopped whose score on all items would lie within the margin
            of the incumbent's.
        margin: In standard errors of the paired difference on all items. The incumbent is the best
            of many and the luckiest; with 1.5, at most 6% of the candidates that are as good as the
            luckiest of 100 equals are stopped (docs/racing.md).
        points: More margin, in units of the objective.
        rungs: Shares of the items after which is looked; the bets are sized to win there. The
            promise holds wherever one looks, but after the first half the margin is all that saves
            who is as good as the luckiest: at every eighth 13% to 19% of those are stopped.
    """

    error: float = 0.05
    margin: float = 1.5
    points: float = 0.0
    rungs: tuple[float, ...] = RUNGS


@dataclass(frozen=True, slots=True)
class Duel:
    """One objective's per-item scores of an incumbent and of a candidate; higher is better.

    Attributes:
        incumbent: All items of each benchmark, in the ledger's order, `(items,)` each.
        candidate: The first items of each, `(seen,)` each: as many as `rung_ends` says.
        weights: What each benchmark counts; 1 in all, or less where some can't be raced.
        span: The largest minus the least score that an item of each benchmark can have; None where
            there is no such bound.
        beyond: What benchmarks that can't be raced could give the candidate at most, in units of
            the objective.
    """

    incumbent: Sequence[Array]
    candidate: Sequence[Array]
    weights: Sequence[float]
    span: Sequence[float] | None = None
    beyond: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the items seen so far say.

    Attributes:
        lost: Whether the candidate may be stopped.
        evidence: The e-value that it is worse than the incumbent by more than the margin.
        items: Items seen, of all benchmarks.
        by: Of several incumbents the one that it is furthest behind.
    """

    lost: bool
    evidence: float
    items: int
    by: int = 0


def race(duel: Duel, rule: Rule | None = None) -> Verdict:
    """Whether a candidate has lost to the incumbent.

    Items are bet on in rounds that hold each benchmark's share of them; an item multiplies the
    capital by 1 + stake x (its loss - what the items that are left may lose on average), with one
    stake for the round. Then a round's factor has expectation at most 1, if all items together lose
    no more than the margin: over a benchmark's items, drawn without replacement, the expected
    product is at most the product of the means (Maclaurin), over benchmarks at most a power of the
    weighted mean (arithmetic and geometric mean). So the promise is about the objective, whichever
    benchmarks a candidate gains and loses on, and about these very items, by which the incumbent
    may have been chosen. It is exact where benchmarks have equal numbers of items, else to within
    one item of each, and needs an order of items that knows nothing of their scores.

    The margin in standard errors is the items' own, as seen before each round. Without a `span`
    the stakes are self-normalised (de la Peña 1999), exact where a round's paired differences are
    symmetric around their mean, as sign-flip tests take them to be, and up to their third moment
    else.

    Args:
        duel: The scores.
        rule: When it has lost; default `Rule()`.

    Raises:
        EvaluationError: If the candidate has more items than the incumbent, or one gains more than
            its span allows.
    """
    _check(duel)
    rule = rule or Rule()
    capital = math.exp(min(_log_capital(duel, rule), 700.0))
    return Verdict(capital >= 1 / rule.error, capital, sum(map(len, duel.candidate)))


def race_front(members: Sequence[Sequence[Duel]], rule: Rule | None = None) -> Verdict:
    """Whether some member of the front dominates a candidate with confidence.

    It does if the candidate has lost to it in every objective. For one member that needs no
    correction (all have to be lost); for the choice of the member the error is divided by their
    number.

    Args:
        members: For each member of the front a duel in each objective.
        rule: When an objective is lost.
    """
    rule = rule or Rule()
    verdicts = [[race(duel, rule) for duel in duels] for duels in members]
    least = [min(one.evidence for one in row) for row in verdicts]
    if not least:
        return Verdict(False, 0.0, 0)
    by = int(np.argmax(least))
    evidence = least[by] / len(members)
    return Verdict(evidence >= 1 / rule.error, evidence, verdicts[by][0].items, by)


def rung_ends(counts: Sequence[int], rungs: Sequence[float] = RUNGS) -> tuple[tuple[int, ...], ...]:
    """How many items of each benchmark have been scored after each rung; the last has all.

    Benchmarks advance together, whatever their sizes. Where one has few items, rungs coincide and
    are left out.

    Args:
        counts: Items of each benchmark.
        rungs: Shares of the items.
    """
    rounds = min(counts)
    ends = {math.ceil(share * rounds - 1e-9): None for share in sorted(rungs)}
    ends[rounds] = None
    return tuple(tuple(end * count // rounds for count in counts) for end in ends)


def expected(duel: Duel) -> float:
    """A stopped candidate's objective as it may have been: what the sampler is told.

    The incumbent's score on all items minus the mean paired difference on those seen: items that
    happened to be hard are hard for both, so this is nearer than the mean of what was seen. It is a
    little low on average, since candidates are stopped where they look worst.
    """
    total = 0.0
    for weight, whole, part in zip(duel.weights, duel.incumbent, duel.candidate, strict=True):
        total += weight * float(whole.mean() - (whole[: len(part)] - part).mean())
    return total


@dataclass(frozen=True, slots=True)
class _Rounds:
    """Paired losses in rounds, each weighted so that the mean of all is the objective's loss.

    Attributes:
        losses: Incumbent minus candidate, `(items,)`.
        of: The round of each, `(items,)`.
        total: Items of all rounds, also of those to come.
        seen: Items before each round, `(rounds,)`.
        lost: The sum of losses before each round, `(rounds,)`.
        variance: Of an item's loss within its benchmark, as seen before each round, `(rounds,)`.
        gain: The most that an item can gain; None if there is no such bound.
    """

    losses: Array
    of: np.ndarray[Any, np.dtype[np.int64]]
    total: int
    seen: Array
    lost: Array
    variance: Array
    gain: float | None


def _check(duel: Duel) -> None:
    spans = duel.span or [math.inf] * len(duel.incumbent)
    parts = zip(duel.incumbent, duel.candidate, spans, strict=True)
    for number, (whole, part, span) in enumerate(parts):
        if len(part) > len(whole):
            raise EvaluationError(
                f"racing: benchmark {number}: the candidate has {len(part)} items, the incumbent "
                f"{len(whole)}; both need the same items in the same order"
            )
        gain = float((part - whole[: len(part)]).max(initial=0.0))
        if gain > span + 1e-6:
            raise EvaluationError(
                f"racing: benchmark {number}: an item gains {gain:g}, more than the span {span:g}; "
                "give the span of its scores, or None if they have no bound"
            )


def _log_capital(duel: Duel, rule: Rule) -> float:
    """Logarithm of the mean capital of gamblers who each size their stakes to win at one rung."""
    rounds = _rounds(duel)
    margin = rule.margin * np.sqrt(rounds.variance / rounds.total) + rule.points + duel.beyond
    # What the items that are left lose on average if all together lose by the margin.
    left = (rounds.total * margin - rounds.lost) / (rounds.total - rounds.seen)
    wanted = 2 * math.log(1 / rule.error)
    logs = [
        _gamble(rounds, left, np.sqrt(wanted / (share * rounds.total * rounds.variance)))
        for share in rule.rungs
        if share < 1
    ]
    return float(np.logaddexp.reduce(logs) - math.log(len(logs))) if logs else 0.0


def _gamble(rounds: _Rounds, left: Array, stakes: Array) -> float:
    excess = rounds.losses - left[rounds.of]
    if rounds.gain is None:
        won = stakes * np.bincount(rounds.of, excess, minlength=len(stakes))
        return float((won - won**2 / 2).sum())
    stakes = np.minimum(stakes, _CAP / np.maximum(rounds.gain + left, _LEAST * rounds.gain))
    return float(np.log1p(stakes[rounds.of] * excess).sum())


def _rounds(duel: Duel) -> _Rounds:
    wholes = duel.incumbent
    counts = [len(scores) for scores in wholes]
    number, total = min(counts), sum(counts)
    shares = [weight * total / n for weight, n in zip(duel.weights, counts, strict=True)]
    # Whole rounds only: the last for which every benchmark has its items.
    parts = zip(duel.candidate, counts, strict=True)
    done = min(((len(part) + 1) * number - 1) // n for part, n in parts)
    losses: list[Array] = []
    of: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    sums = np.zeros((3, len(counts), done))
    for b, (whole, part) in enumerate(zip(wholes, duel.candidate, strict=True)):
        end = done * counts[b] // number
        loss = shares[b] * (whole[:end] - part[:end])
        at = -(-(np.arange(1, end + 1) * number) // counts[b]) - 1
        sums[:, b] = [np.bincount(at, x, minlength=done) for x in (np.ones(end), loss, loss**2)]
        losses.append(loss)
        of.append(at)
    seen, lost, squared = np.cumsum(sums, axis=2) - sums
    apart = np.maximum(squared - lost**2 / np.maximum(seen, 1), 0).sum(axis=0)
    # The incumbent's own variance counts as one item before there is any of the differences.
    squares = [
        n * share**2 * float(x.var()) for n, share, x in zip(counts, shares, wholes, strict=True)
    ]
    variance = (apart + sum(squares) / total) / (seen.sum(axis=0) + 1)
    spans = duel.span and [share * span for share, span in zip(shares, duel.span, strict=True)]
    return _Rounds(
        np.concatenate(losses),
        np.concatenate(of),
        total,
        seen.sum(axis=0),
        lost.sum(axis=0),
        np.maximum(variance, _TINY),
        max(spans) if spans else None,
    )
