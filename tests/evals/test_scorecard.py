"""Per-item results and the scores made of them."""

import json
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.scorecard import Score, Scorecard, Value, mean_score, pack, unpack


def mean(values: list[Value]) -> float:
    return statistics.fmean(values)


binary = st.lists(st.sampled_from([0.0, 1.0]))
numbers = st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32))
pairs = st.lists(st.tuples(st.floats(-1e4, 0), st.integers(1, 500)))


@given(binary)
def test_right_and_wrong_pack_into_a_string(values: list[float]):
    packed = pack(values)
    assert packed == "".join("1" if value else "0" for value in values)
    assert unpack(packed) == tuple(values)


@given(st.one_of(numbers, pairs))
def test_other_values_survive_storage_to_seven_digits(values: list[Value]):
    back = unpack(json.loads(json.dumps(pack(values))))
    assert len(back) == len(values)
    for old, new in zip(values, back, strict=True):
        assert new == pytest.approx(old, rel=1e-6)
        assert isinstance(new, tuple) == isinstance(old, tuple)


def test_packing_again_changes_nothing():
    values = [0.123456789, (-12.3456789, 7)]
    assert pack(unpack(pack(values))) == pack(values)


def test_a_score_is_the_aggregate_with_the_standard_error_of_the_mean():
    values = [1.0, 0.0, 1.0, 1.0, 0.0]
    score = mean_score("task", "acc", values, mean)
    assert score.value == pytest.approx(0.6)
    assert score.stderr == pytest.approx(statistics.stdev(values) / math.sqrt(5))
    assert (score.n, score.unscored) == (5, None)


def test_a_single_item_and_pairs_have_no_standard_error():
    assert mean_score("task", "acc", [1.0], mean).stderr is None
    ratio = mean_score("task", "bpb", [(-1.0, 2.0), (-3.0, 2.0)], lambda v: v[0][0])
    assert ratio.value == -1.0
    assert ratio.stderr is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, (1.0, math.nan)])
def test_a_number_that_is_none_makes_the_score_missing(bad: Value):
    score = mean_score("task", "acc", [1.0, bad, 1.0, bad], mean)
    assert score == Score("task", "acc", None, None, 4, "2 items are not finite numbers")


def test_an_infinite_aggregate_is_missing_too():
    score = mean_score("task", "perplexity", [-1.0], lambda _: math.inf)
    assert score.value is None
    assert score.unscored == "perplexity is inf"


def test_a_scorecard_tells_the_first_missing_score():
    good = Score("a", "acc", 0.0, 0.0, 3)
    bad = Score("b", "acc", None, None, 3, "2 items are not finite numbers")
    assert Scorecard((good,), {}, 0.0).failure is None
    assert Scorecard((good, bad), {}, 0.0).failure == "b: 2 items are not finite numbers"
