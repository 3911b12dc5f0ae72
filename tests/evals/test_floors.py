"""A floor on untouched items: the figure, the limit, and an interval of what lies between."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from lm_eval.api.metrics import bits_per_byte, mean, perplexity, weighted_perplexity

from evals.compare import compare
from evals.floors import BROKEN, KEPT, UNTOLD, ParentFloor, room_above, room_of
from evals.harness import Benchmark
from evals.items import Role
from evals.scorecard import Score, Scorecard, Value

ITEMS = 200


def benchmark(
    aggregate: Callable[[Any], float], *, better: bool, members: Sequence[int] = (0,) * ITEMS
) -> Benchmark:
    class Stub(Benchmark):
        @property
        def aggregations(self) -> dict[str, Callable[[Any], float]]:
            return {"metric": aggregate}

        def members(self, role: Role) -> tuple[int, ...]:  # noqa: ARG002
            return tuple(members)

        def figure(self, values: Sequence[Value], role: Role) -> float:  # noqa: ARG002
            return float(aggregate(list(values)))

    return Stub("t", "metric,none", better, 1.0, {})


def card(values: Sequence[Value]) -> Scorecard:
    score = Score("t", "metric,none", 0.0, None, len(values))
    return Scorecard((score,), {"t": {"metric,none": list(values)}}, 0.0, Role.HOLDOUT)


def answers(share: float, seed: int) -> list[float]:
    return (np.random.default_rng(seed).random(ITEMS) < share).astype(float).tolist()


def texts(level: float, seed: int) -> list[tuple[float, float]]:
    """Log-likelihoods and bytes of the same texts by models that differ in their seed."""
    counts = np.random.default_rng(0).integers(20, 200, ITEMS)
    generator = np.random.default_rng(seed)
    nats = counts * (level + 0.2 * generator.standard_normal(ITEMS))
    return [(-float(a), float(b)) for a, b in zip(nats, counts, strict=True)]


ACC = benchmark(mean, better=True)
BITS = benchmark(bits_per_byte, better=False)


def test_against_a_parent_the_interval_is_that_of_the_gain():
    ours, theirs = card(answers(0.7, 0)), card(answers(0.6, 1))
    room = room_above(ACC, ours, ParentFloor("math", theirs, 0.0))
    gain = compare({"ours": ours, "math": theirs}, [("ours", "math")], [ACC]).overall[0].gain
    assert (room.low, room.high) == pytest.approx((gain.low, gain.high))
    assert room.room == pytest.approx(gain.value)
    assert room.against == "math"


def test_slack_moves_the_limit_and_the_interval_alike():
    ours, theirs = card(answers(0.6, 0)), card(answers(0.6, 1))
    strict = room_above(ACC, ours, ParentFloor("math", theirs, 0.0))
    loose = room_above(ACC, ours, ParentFloor("math", theirs, 0.3))
    assert loose.limit == pytest.approx(strict.limit - 0.3)
    assert loose.low == pytest.approx(strict.low + 0.3)
    assert loose.room == pytest.approx(strict.room + 0.3)
    assert (strict.verdict, loose.verdict) == (UNTOLD, KEPT)


@pytest.mark.parametrize(("number", "verdict"), [(0.3, KEPT), (0.9, BROKEN), (0.61, UNTOLD)])
def test_a_number_is_a_limit_too(number: float, verdict: str):
    values = answers(0.6, 0)
    room = room_above(ACC, card(values), number)
    assert room.verdict == verdict
    assert room.room == pytest.approx(np.mean(values) - number)
    assert room.low < room.room < room.high


@pytest.mark.parametrize("aggregate", [bits_per_byte, weighted_perplexity])
def test_perplexities_are_resampled_as_what_they_are(aggregate: Callable[[Any], float]):
    ours, theirs = texts(1.0, 0), texts(1.1, 1)
    found = room_above(
        benchmark(aggregate, better=False), card(ours), ParentFloor("p", card(theirs), 0.0)
    )
    generator = np.random.default_rng(1)
    plain: list[float] = []
    for _ in range(1000):
        drawn = generator.integers(0, ITEMS, ITEMS)
        models = [[model[at] for at in drawn] for model in (ours, theirs)]
        plain.append(aggregate(models[1]) - aggregate(models[0]))
    low, high = np.quantile(plain, (0.025, 0.975))
    width = high - low
    assert found.room == pytest.approx(aggregate(theirs) - aggregate(ours))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.15 * width)
    assert found.verdict == KEPT


def test_a_perplexity_of_single_answers_has_no_count():
    values = np.random.default_rng(0).normal(-2, 0.5, ITEMS).tolist()
    room = room_above(benchmark(perplexity, better=False), card(values), 20.0)
    assert room.figure == pytest.approx(perplexity(values))
    assert 0 < room.low < room.room < room.high


def test_the_same_model_keeps_to_its_own_figure():
    values = texts(1.0, 0)
    room = room_above(BITS, card(values), ParentFloor("p", card(values), 0.0))
    assert (room.low, room.high, room.verdict) == (0.0, 0.0, KEPT)


def test_clusters_widen_it():
    values = [(-1.0 * (1 + at // 20 % 2), 1.0) for at in range(ITEMS)]
    single = room_above(BITS, card(values), 2.0)
    together = room_above(BITS, card(values), 2.0, np.arange(ITEMS) // 20)
    assert together.high - together.low > 2 * (single.high - single.low)


def test_tasks_of_a_group_have_a_figure_each():
    members = [0] * 150 + [1] * 50
    values = [(-1.0, 1.0)] * 150 + [(-3.0, 1.0)] * 50
    grouped = benchmark(bits_per_byte, better=False, members=members)
    room = room_above(grouped, card(values), 3.0)
    expected = 3.0 - (150 * 1 + 50 * 3) / 200 / np.log(2)  # no item differs within its task
    assert (room.low, room.high) == pytest.approx((expected, expected))


def test_a_figure_without_items_has_no_interval():
    kept = room_of("depth", 4, 5, None, -1.0)
    assert (kept.room, kept.low, kept.verdict) == (1, None, KEPT)
    assert room_of("depth", 6, 5, None, -1.0).verdict == BROKEN
