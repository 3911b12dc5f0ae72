"""The one number of a search, and the per-item scores behind it."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from lm_eval.api.metrics import bits_per_byte, perplexity

from evals.harness import Benchmark
from evals.objective import item_scores, objective
from evals.scorecard import Scorecard, Value


def benchmark(
    name: str, better: bool, aggregate: Callable[[Sequence[Value]], float], weight: float = 1.0
) -> Benchmark:
    class Stub(Benchmark):
        @property
        def aggregations(self) -> dict[str, Callable[[Sequence[Value]], float]]:
            return {"metric": aggregate}

    return Stub(name, "metric,none", better, weight, {})


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def card(**items: Sequence[Value]) -> Scorecard:
    return Scorecard((), {name: {"metric,none": values} for name, values in items.items()}, 0.0)


ACC = benchmark("acc", True, mean)
ERRORS = benchmark("errors", False, mean)
PERPLEXITY = benchmark("ppl", False, perplexity)
BITS = benchmark("bits", False, bits_per_byte)


def test_accuracy_is_itself():
    assert item_scores(card(acc=[1.0, 0.0, 1.0]), [ACC])[0].tolist() == [1, 0, 1]
    assert objective([card(acc=[1.0, 0.0, 1.0])], [ACC]) == pytest.approx(2 / 3)


def test_a_mean_that_shall_fall_is_turned():
    assert objective([card(errors=[3.0, 1.0])], [ERRORS]) == -2.0


def test_a_perplexity_is_the_mean_log_likelihood():
    values = [-2.0, -4.0]
    found = objective([card(ppl=values)], [PERPLEXITY])
    assert found == -3.0
    assert math.exp(-found) == pytest.approx(perplexity(values))


def test_bits_per_byte_are_nats_per_byte():
    assert item_scores(card(bits=[(-8.0, 4), (-9.0, 3)]), [BITS])[0].tolist() == [-2.0, -3.0]


def test_an_empty_text_among_others_does_not_end_the_study():
    item_scores(card(bits=[(-8.0, 4), (0.0, 0)]), [BITS])


@pytest.mark.parametrize(
    ("one", "good", "poor"),
    [
        (ACC, [1.0, 1.0], [1.0, 0.0]),
        (ERRORS, [0.0, 1.0], [1.0, 1.0]),
        (PERPLEXITY, [-1.0, -2.0], [-1.0, -3.0]),
        (BITS, [(-2.0, 4), (-4.0, 4)], [(-2.0, 4), (-9.0, 4)]),
    ],
    ids=lambda value: value.name if isinstance(value, Benchmark) else None,
)
def test_the_better_model_has_the_higher_objective(
    one: Benchmark, good: list[Value], poor: list[Value]
):
    assert objective([card(**{one.name: good})], [one]) > objective(
        [card(**{one.name: poor})], [one]
    )


def test_a_study_may_turn_a_metric_round():
    """`direction: maximize` for a perplexity: an unlearning study wants it high."""
    worse_is_better = benchmark("ppl", True, perplexity)
    assert objective([card(ppl=[-4.0])], [worse_is_better]) == 4.0


def test_benchmarks_are_averaged_by_weight():
    heavy = benchmark("heavy", True, mean, weight=3.0)
    assert objective([card(acc=[1.0] * 9, heavy=[0.0])], [ACC, heavy]) == pytest.approx(0.25)


def test_several_cards_are_pooled_item_by_item():
    cards = [card(acc=[1.0, 1.0, 1.0]), card(acc=[0.0])]
    assert objective(cards, [ACC]) == pytest.approx(0.75)
