"""Per-item results and the scores made of them."""

import math
import statistics

import pytest

from evals.scorecard import Score, Scorecard, Value, mean_score


def mean(values: list[Value]) -> float:
    return statistics.fmean(values)


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
