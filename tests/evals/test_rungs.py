"""Rungs are dropped where they cost more than they may."""

import pytest

from evals.harness import Harness
from evals.racing import RUNGS
from evals.rungs import CHOICES, affordable, overhead


@pytest.fixture
def harness(open_local, harness_of) -> Harness:
    return harness_of(open_local("tiny_choice", "tiny_generate"), batch_size=32)


def test_the_cost_is_of_tokens_and_passes_and_nothing_in_one_go(harness: Harness):
    assert overhead(harness, (1.0,)) == 0
    assert overhead(harness, RUNGS) > overhead(harness, (0.5, 1.0)) > 0.05


def test_a_few_short_items_are_scored_in_one_go(harness: Harness):
    assert affordable(harness) == (1.0,)


def test_the_most_wanted_that_fits_is_taken(harness: Harness):
    assert affordable(harness, most=100.0) == CHOICES[0]
    dear = overhead(harness, RUNGS)
    assert affordable(harness, (RUNGS, (0.5, 1.0)), most=dear - 0.01) == (0.5, 1.0)
