"""The claim: one candidate against several references, on items that nothing has touched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evals.harness import Benchmark
from evals.objective import item_scores
from evals.scorecard import Scorecard
from evals.statistics import Gain, holm, paired_gain

LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Comparison:
    """The candidate against one reference.

    Attributes:
        reference: Name of the other model.
        gain: The paired difference, positive where the candidate is better.
        p: Corrected for all references of the table (Holm).
        verdict: `better`, `worse` or `not distinguishable`, at 5%.
    """

    reference: str
    gain: Gain
    p: float
    verdict: str


def compare(
    candidate: Scorecard,
    references: Mapping[str, Scorecard],
    benchmarks: Sequence[Benchmark],
) -> tuple[Comparison, ...]:
    """Compare one model with others that were scored on the same items.

    Args:
        candidate: The model that a claim is made for.
        references: The others by name.
        benchmarks: In the order of the scorecards.
    """
    ours = item_scores(candidate, benchmarks)
    weights = [benchmark.weight for benchmark in benchmarks]
    gains = {
        name: paired_gain(ours, item_scores(card, benchmarks), weights)
        for name, card in references.items()
    }
    corrected = holm([gain.p for gain in gains.values()])
    return tuple(
        Comparison(name, gain, p, verdict(gain, p))
        for (name, gain), p in zip(gains.items(), corrected, strict=True)
    )


def verdict(gain: Gain, p: float) -> str:
    """What may be said: both the corrected p-value and the interval have to agree."""
    if p < LEVEL and gain.low > 0:
        return "better"
    if p < LEVEL and gain.high < 0:
        return "worse"
    return "not distinguishable"
