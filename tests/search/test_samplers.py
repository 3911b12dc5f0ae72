"""Each word a sampler, and each sampler a function of (history, seed, trial number)."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from search.asking import Proposer, next_trial, suggest
from search.samplers import choose_sampler, refusal, trial_seed
from search.space import SearchSpace

Read = Callable[[dict[str, Any]], SearchSpace]
WORDS = ("tpe", "cmaes", "gp", "qmc", "random")
TRIALS = 14


def numbers(read_space: Read, count: int = 3) -> SearchSpace:
    """A space of real numbers only."""
    hole = {"range": [0.0, 1.5], "knots": count}
    return read_space({"merge_method": "linear", "models": ["a"], "parameters": {"weight": hole}})


def with_choices(read_space: Read) -> SearchSpace:
    """A space whose density exists under one of two methods."""
    density = {"density": {"range": [0.1, 1.0]}}
    models = [{"model": "a", "parameters": density}, "b"]
    methods = {"choice": ["task_arithmetic", "ties"]}
    return read_space({"merge_method": methods, "base_model": "base", "models": models})


def value_of(values: dict[str, Any]) -> float:
    """A smooth objective with its optimum inside."""
    return -sum((math.sin(3 * v) - 0.4) ** 2 for v in values.values() if isinstance(v, float))


class Search:
    """Asks and tells as the study does, with chances to be killed.

    Args:
        word: The sampler.
        space: What is searched.
        seed: The study's seed.
    """

    def __init__(self, word: str, space: SearchSpace, seed: int = 5) -> None:
        self.space, self.proposer = space, Proposer(word, seed, batch=1)
        self.storage = optuna.storages.InMemoryStorage()
        self.study = optuna.create_study(storage=self.storage, study_name="s", direction="maximize")

    def reopen(self) -> None:
        """What a new process sees: the storage only."""
        self.study = optuna.load_study(study_name="s", storage=self.storage)

    def trial(self) -> None:
        trial = self.next_trial()
        self.study.tell(trial, value_of(suggest(trial, self.space)))

    def killed(self, drawn: int) -> None:
        """A trial that is asked for, of which some values are drawn, and that is never told."""
        trial = self.next_trial()
        suggest(trial, replace(self.space, dimensions=self.space.dimensions[:drawn]))
        self.reopen()

    def next_trial(self) -> optuna.Trial:
        trials = self.study.get_trials()
        number = len(trials) - (bool(trials) and trials[-1].state is TrialState.RUNNING)
        return next_trial(self.study, self.space, self.proposer, number)

    @property
    def params(self) -> list[dict[str, Any]]:
        return [trial.params for trial in self.study.get_trials()]


def straight(word: str, space: SearchSpace, trials: int, seed: int = 5) -> list[dict[str, Any]]:
    search = Search(word, space, seed)
    for _ in range(trials):
        search.trial()
    return search.params


def budget(word: str) -> int:
    """CMA-ES needs a warm-up and a generation or two before it is itself."""
    return 26 if word == "cmaes" else TRIALS


@pytest.mark.parametrize("word", WORDS)
def test_a_study_reopened_before_every_trial_goes_the_same_way(word: str, read_space: Read):
    space = numbers(read_space)
    search = Search(word, space)
    for _ in range(budget(word)):
        search.reopen()
        search.trial()
    assert search.params == straight(word, space, budget(word))


@pytest.mark.parametrize("drawn", [0, 1, 3])
@pytest.mark.parametrize("word", WORDS)
def test_an_orphan_is_adopted_with_the_values_it_would_have_had(
    word: str, drawn: int, read_space: Read
):
    space = numbers(read_space)
    search = Search(word, space)
    for number in range(budget(word)):
        if number in (0, 5, 11, 12, 20):
            search.killed(drawn)
        search.trial()
    assert len(search.params) == budget(word)
    assert search.params == straight(word, space, budget(word))


@pytest.mark.parametrize("word", ["tpe", "random"])
def test_spaces_with_choices_are_resumed_too(word: str, read_space: Read):
    space = with_choices(read_space)
    search = Search(word, space)
    for number in range(TRIALS):
        search.reopen()
        if number in (3, 12):
            search.killed(drawn=4 if number == 12 else 0)
        search.trial()
    assert search.params == straight(word, space, TRIALS)


@pytest.mark.parametrize("word", WORDS)
def test_trials_differ_from_each_other_and_between_seeds(word: str, read_space: Read):
    space = numbers(read_space)
    starts = len(space.starts())
    one, other = (straight(word, space, TRIALS, seed) for seed in (1, 2))
    assert one[:starts] == other[:starts] == list(space.starts())
    later = [tuple(params.values()) for params in one[starts:]]
    assert len(set(later)) == len(later)
    assert one[starts:] != other[starts:]


@pytest.mark.parametrize(
    "word",
    [
        "tpe",
        "gp",
        "random",
        "qmc",
    ],
)
def test_parameters_of_one_method_only_are_drawn_anew_each_time(word: str, read_space: Read):
    params = straight(word, with_choices(read_space), 20)[4:]
    densities = [values["a.density"] for values in params if "a.density" in values]
    assert len(densities) > 2
    assert len(set(densities)) == len(densities)


def test_a_sampler_looks_at_the_history(read_space: Read):
    """Otherwise all of the above would hold for random numbers."""
    space = numbers(read_space)
    for word in ("tpe", "cmaes", "gp"):
        assert straight(word, space, budget(word)) != straight("random", space, budget(word))


def test_the_word_of_the_study_is_taken(read_space: Read):
    space = numbers(read_space)
    for word in WORDS:
        assert choose_sampler(word, space, 10) == (word, "as the study says")


@pytest.mark.parametrize(
    ("knots", "trials", "word"),
    [(3, 250, "gp"), (3, 251, "cmaes"), (1, 250, "gp"), (1, 1000, "tpe"), (2, 1000, "cmaes")],
)
def test_auto_takes_gp_for_numbers_and_cmaes_for_long_searches(
    knots: int, trials: int, word: str, read_space: Read
):
    chosen, reason = choose_sampler("auto", numbers(read_space, knots), trials)
    assert chosen == word
    assert reason.startswith("numbers only")


def test_auto_takes_tpe_for_choices(read_space: Read):
    assert choose_sampler("auto", with_choices(read_space), 1000) == ("tpe", "choices are searched")


def test_cmaes_refuses_choices_and_single_numbers(read_space: Read):
    assert refusal("cmaes", with_choices(read_space)) == (
        "search.sampler: 'cmaes' can't draw the choice 'merge_method'; use tpe or fix the choice"
    )
    assert refusal("cmaes", numbers(read_space, 1)) == (
        "search.sampler: 'cmaes' needs two dimensions or more; use tpe"
    )
    assert refusal("cmaes", numbers(read_space)) is None


@pytest.mark.parametrize("word", ["auto", "tpe", "gp", "qmc", "random"])
def test_the_others_refuse_nothing(word: str, read_space: Read):
    assert refusal(word, with_choices(read_space)) is None
    assert refusal(word, numbers(read_space, 1)) is None


def test_trial_seeds_are_fixed_and_spread():
    assert trial_seed(0, 0) == trial_seed(0, 0)
    seeds = {trial_seed(seed, number) for seed in range(20) for number in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**32 for seed in seeds)
