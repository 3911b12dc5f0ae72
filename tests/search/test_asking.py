"""Batches: what is proposed depends on the batches told before, not on who ends first."""

import random
from collections.abc import Callable
from typing import Any

import optuna
import pytest

from search.asking import Asked, Proposer, ask_batch
from search.samplers import WORDS
from search.space import SearchSpace

Read = Callable[[dict[str, Any]], SearchSpace]
TRIALS = 26  # CMA-ES is itself after its warm-up and a generation
BATCH = 4


def space_of(read_space: Read) -> SearchSpace:
    hole = {"range": [0.0, 1.5], "knots": 3}
    return read_space({"merge_method": "linear", "models": ["a"], "parameters": {"weight": hole}})


def new_study() -> optuna.Study:
    return optuna.create_study(direction="maximize")


def value_of(asked: Asked) -> float:
    return -sum((value - 0.4) ** 2 for value in asked.stored.params.values())


def run(study: optuna.Study, space: SearchSpace, word: str, order: random.Random | None) -> list:
    proposer = Proposer(word, 3, BATCH)
    while batch := ask_batch(study, space, proposer, TRIALS):
        told = list(batch)
        if order:
            order.shuffle(told)
        for asked in told:
            asked.tell([value_of(asked)])
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("word", WORDS)
def test_the_order_in_which_a_batch_ends_changes_nothing(word: str, read_space: Read):
    space = space_of(read_space)
    assert run(new_study(), space, word, random.Random(1)) == run(new_study(), space, word, None)


@pytest.mark.parametrize("word", WORDS)
def test_a_batch_that_is_half_told_is_finished_first(word: str, read_space: Read):
    space = space_of(read_space)
    study, proposer = new_study(), Proposer(word, 3, BATCH)
    while batch := ask_batch(study, space, proposer, TRIALS):
        for asked in batch[: random.Random(len(study.trials)).randrange(1, BATCH + 1)]:
            asked.tell([value_of(asked)])  # and the process dies
    assert [trial.params for trial in study.trials] == run(new_study(), space, word, None)


def test_batches_end_at_the_budget_and_begin_at_their_places(read_space: Read):
    space, study, proposer = space_of(read_space), new_study(), Proposer("random", 0, BATCH)
    first = ask_batch(study, space, proposer, 6)
    assert [asked.number for asked in first] == [0, 1, 2, 3]
    for asked in first:
        asked.tell([0.0])
    second = ask_batch(study, space, proposer, 6)
    assert [asked.number for asked in second] == [4, 5]
    for asked in second:
        asked.tell([0.0])
    assert ask_batch(study, space, proposer, 6) == ()
    # A larger budget first fills the batch that the smaller one cut off.
    assert [asked.number for asked in ask_batch(study, space, proposer, 20)] == [6, 7]
