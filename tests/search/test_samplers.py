"""Each word a sampler, and each sampler a function of (history, seed, trial number).

A new sampler joins by its name in `WORDS`.
"""

# pyright: reportPrivateUsage=false

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState

from merge_core.checkpoint import Checkpoint
from merge_core.recipe import from_dict
from search import cat_cma
from search.asking import Asked, Proposer, ask
from search.holes import build_space
from search.samplers import (
    RULES,
    WORDS,
    choose_sampler,
    refusal,
    sampler_for,
    trial_seed,
)
from search.space import Choice, Dimension, Real, SearchSpace

Read = Callable[[dict[str, Any]], SearchSpace]
LEARNING = tuple(word for word in WORDS if word not in ("qmc", "random"))
MIXED = tuple(word for word in WORDS if word != "cmaes")
SEVERAL = tuple(word for word in WORDS if word not in ("cmaes", "catcma"))
SLOW = [pytest.param(w, marks=pytest.mark.slow if w == "gp" else ()) for w in LEARNING]
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


def plain(count: int, starts: Sequence[dict[str, float]] = ()) -> Any:
    """A space of numbers from 0 to 1.5 whose usual starts can be said."""
    linear = ("linear",)
    knots = [Real(f"a.weight@{i}", 0.0, 1.5, False, linear, "weight") for i in range(count)]
    return bare(*knots, starts=starts)


def bare(*dimensions: Dimension, starts: Sequence[dict[str, float]] = ()) -> Any:
    """A space of dimensions that decide nothing."""
    space = SearchSpace({"models": []}, ("linear",), dimensions)
    recipe = from_dict({"merge_method": "linear", "models": ["a"]})
    return SimpleNamespace(
        depths={},
        dimensions=dimensions,
        draw=space.draw,
        starts=lambda: starts,
        decode=lambda _: recipe,
    )


def value_of(values: dict[str, Any]) -> float:
    """A smooth objective with its optimum inside."""
    return -sum((math.sin(3 * v) - 0.4) ** 2 for v in values.values() if isinstance(v, float))


class Search:
    """Asks and tells as the study does, with chances to be killed.

    Args:
        word: The sampler.
        space: What is searched.
        seed: The study's seed.
        objectives: How many values a trial has.
    """

    def __init__(self, word: str, space: Any, seed: int = 5, objectives: int = 1) -> None:
        self.proposer = Proposer(word, seed, batch=1)
        self.space, self.objectives = space, objectives
        self.storage = optuna.storages.InMemoryStorage()
        directions: list[Literal["maximize"]] = ["maximize"] * objectives
        self.study = optuna.create_study(
            storage=self.storage, study_name="s", directions=directions
        )

    def reopen(self) -> None:
        """What a new process sees: the storage only."""
        cat_cma.forget()
        self.study = optuna.load_study(study_name="s", storage=self.storage)

    def trial(self, limit: float | None = None) -> None:
        """Ask and tell; with a limit of the sum of all numbers as a constraint."""
        asked = self.next_trial()
        params = asked.stored.params
        asked.tell(self.values(params), [] if limit is None else [total(params) - limit])

    def values(self, values: dict[str, Any]) -> list[float]:
        """The objectives: the smooth one, and one against it."""
        return [value_of(values), -total(values)][: self.objectives]

    def killed(self) -> None:
        """A trial that is asked for and never told."""
        self.next_trial()
        self.reopen()

    def batch(self, size: int, chance: random.Random, killed: int | None = None) -> None:
        """Ask for several trials, then tell them in any order of their ends.

        Args:
            size: How many.
            chance: Of the order.
            killed: Die once when so many were asked for.
        """
        begun = len(self.study.get_trials(deepcopy=False))
        asked: list[Asked] = []
        while len(asked) < size:
            if len(asked) == killed:
                killed = None
                self.reopen()
                asked = []
            asked.append(self._asked(begun + len(asked), size))
        chance.shuffle(asked)
        for one in asked:
            one.tell(self.values(one.stored.params))

    def next_trial(self) -> Asked:
        trials = self.study.get_trials(deepcopy=False)
        running = bool(trials) and trials[-1].state is TrialState.RUNNING
        return self._asked(len(trials) - running, self.proposer.batch)

    def _asked(self, number: int, size: int) -> Asked:
        proposer = replace(self.proposer, batch=size)
        history = list(self.study.get_trials(deepcopy=False))
        return ask(self.study, self.space, proposer, number, history)

    @property
    def params(self) -> list[dict[str, Any]]:
        """All trials' values."""
        return [trial.params for trial in self.study.get_trials()]


def total(values: dict[str, Any]) -> float:
    """The sum of all numbers."""
    return sum(v for v in values.values() if isinstance(v, float))


def straight(
    word: str, space: Any, trials: int, seed: int = 5, objectives: int = 1
) -> list[dict[str, Any]]:
    """A study that nothing happens to."""
    search = Search(word, space, seed, objectives)
    for _ in range(trials):
        search.trial()
    return search.params


def budget(word: str) -> int:
    """CMA-ES needs a warm-up and a generation or two before it is itself."""
    return 26 if word in ("cmaes", "catcma") else TRIALS


@pytest.mark.parametrize("word", WORDS)
def test_orphans_are_adopted_with_the_values_they_would_have_had(word: str, read_space: Read):
    """Each trial is also asked for by a process that has just begun."""
    space = numbers(read_space)
    search = Search(word, space)
    for number in range(budget(word)):
        search.reopen()
        if number in (0, 5, 11, 12, 20):
            search.killed()
        search.trial()
    assert len(search.params) == budget(word)
    assert search.params == straight(word, space, budget(word))


@pytest.mark.parametrize("word", MIXED)
def test_spaces_with_choices_are_resumed_too(word: str, read_space: Read):
    space = with_choices(read_space)
    search = Search(word, space)
    for number in range(TRIALS):
        search.reopen()
        if number in (3, 12):
            search.killed()
        search.trial()
    assert search.params == straight(word, space, TRIALS)


@pytest.mark.parametrize("word", SEVERAL)
def test_several_objectives_are_resumed_too(word: str, read_space: Read):
    space = with_choices(read_space)
    search = Search(word, space, objectives=2)
    for number in range(TRIALS):
        search.reopen()
        if number == 12:
            search.killed()
        search.trial()
    assert search.params == straight(word, space, TRIALS, objectives=2)


@pytest.mark.parametrize("word", WORDS)
def test_batches_dont_depend_on_the_order_of_ends_nor_on_kills(word: str, read_space: Read):
    space = numbers(read_space)
    one, other = Search(word, space), Search(word, space)
    for i in range(5):
        one.batch(4, random.Random(i))
        other.batch(4, random.Random(100 + i), killed=i)
    assert one.params == other.params
    later = [tuple(params.values()) for params in one.params[12:]]
    assert len(set(later)) == len(later)


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
    "word", [w for w in MIXED if w not in ("composite", "gp", "nsgaii")]
)  # they settle
def test_every_method_and_its_own_parameters_are_drawn(word: str, read_space: Read):
    """A method's parameters are drawn with the rest, also after trials that lack them."""
    space = with_choices(read_space)
    first = len(space.starts())
    params = straight(word, space, first + 24)[first:]
    densities = [values["a.density"] for values in params if "a.density" in values]
    assert len({values["merge_method"] for values in params}) == 2
    assert len(set(densities)) > 2
    assert all(0.1 <= density <= 1.0 for density in densities)


@pytest.mark.parametrize("word", LEARNING)
def test_a_sampler_looks_at_the_history(word: str, read_space: Read):
    """Otherwise all of the above would hold for random numbers."""
    space = numbers(read_space)
    assert straight(word, space, TRIALS) != straight("random", space, TRIALS)


@pytest.mark.parametrize("word", [word for word in LEARNING if word != "gp"])
def test_known_recipes_teach(word: str):
    """The first proposals of a model are better after good recipes than after random ones."""

    def first_proposals(starts: Sequence[dict[str, float]], seed: int) -> float:
        search = Search(word, plain(6, starts), seed)
        search.values = lambda values: [-distance(values)]
        for _ in range(26 if word == "tpe" else 16):
            search.trial()
        found = [distance(values) for values in search.params[10:]]
        return float(np.mean(found))

    known = [
        {f"a.weight@{i}": 0.4 + (0.1 if i == shifted else 0.05) for i in range(6)}
        for shifted in range(4)
    ]
    seeds = range(12 if word == "tpe" else 5)  # TPE learns least from so few
    taught, untaught = (
        np.mean([first_proposals(starts, seed) for seed in seeds]) for starts in (known, [])
    )
    assert taught < (0.95 if word == "tpe" else 0.7) * untaught


def distance(values: dict[str, float]) -> float:
    """Squared distance from 0.4 everywhere."""
    return sum((value - 0.4) ** 2 for value in values.values())


@pytest.mark.parametrize("word", SLOW)
def test_infeasible_trials_teach_less_than_feasible_ones(word: str):
    """The larger the numbers the better, but their sum may not be more than 1.5 of 4.5."""
    kept: dict[float, float] = {}
    for limit in (1.5, 100.0):
        search = Search(word, plain(3), seed=1)
        search.values = lambda values: [total(values)]
        for _ in range(20 if word == "gp" else 60):
            search.trial(limit)
        assert all(trial.constraints for trial in search.study.get_trials(deepcopy=False))
        kept[limit] = float(np.mean([total(p) <= 1.5 for p in search.params[-12:]]))
    assert kept[1.5] > kept[100.0] + 0.1


def test_what_is_kept_in_memory_changes_nothing():
    """CMA-ES goes on from what it was told, or is told all of it again."""
    for word in ("cmaes", "catcma"):
        space, fresh = plain(5), Search(word, plain(5))
        for _ in range(60):
            fresh.reopen()
            fresh.trial()
        assert fresh.params == straight(word, space, 60)


def test_the_word_of_the_study_is_taken(read_space: Read):
    space = numbers(read_space)
    for word in WORDS:
        assert choose_sampler(word, space, 10) == (word, "as the study says")


@pytest.mark.parametrize(
    ("knots", "trials", "objectives", "word"),
    [
        (3, 500, 1, "composite"),
        (3, 501, 1, "cmaes"),
        (1, 500, 1, "composite"),
        (1, 1000, 1, "tpe"),
        (2, 1000, 1, "cmaes"),
        (3, 500, 2, "composite"),
        (3, 501, 2, "nsgaii"),
    ],
)
def test_auto_chooses_for_numbers(
    knots: int, trials: int, objectives: int, word: str, read_space: Read
):
    space = numbers(read_space, knots)
    chosen, reason = choose_sampler("auto", space, trials, objectives)
    assert chosen == word
    assert "number" in reason or "objectives" in reason or "learns most" in reason
    assert refusal(chosen, space, trials, objectives) is None


def test_auto_chooses_for_choices(read_space: Read):
    space = with_choices(read_space)
    assert choose_sampler("auto", space, 500, 2)[0] == "composite"
    assert choose_sampler("auto", space, 1000, 2)[0] == "nsgaii"
    assert choose_sampler("auto", space, 1000) == ("tpe", "choices are searched")


@pytest.mark.parametrize(
    ("slices", "word"),
    [
        ({"cuts": 2, "of": ["a", "b"]}, "tpe"),
        ({"walk": 1, "of": ["a", "b"]}, "tpe"),
        ({"walk": 1, "of": ["a", "b"], "encoding": "numbers"}, "tpe"),
        ({"origin": ["a", "b"]}, "composite"),
    ],
)
def test_auto_chooses_for_orders_of_layers(
    slices: dict[str, Any], word: str, checkpoints: dict[str, Checkpoint]
):
    mistakes: list[str] = []
    space = build_space({"slices": slices}, ("a", "b"), mistakes, checkpoints)
    assert not mistakes
    assert choose_sampler("auto", space, 500)[0] == word
    assert choose_sampler("auto", space, 501)[0] in ("tpe", "cmaes")
    assert choose_sampler("auto", space, 500, 2)[0] == "composite"


@pytest.mark.parametrize(
    ("used", "word"),
    [
        ([], "tpe"),
        ([[0, "composite", "auto"]], "composite"),
        ([[0, "composite", "auto"], [8, "random", "random"]], "composite"),
        ([[0, "random", "random"]], "tpe"),
        ([[0, "composite", "composite"]], "tpe"),
        ([[0, "composite"]], "composite"),  # stored before it was kept who chose
        ([[0, "random"]], "tpe"),
    ],
)
def test_auto_stays_with_what_auto_took(used: list[list[Any]], word: str, read_space: Read):
    chosen, reason = choose_sampler("auto", with_choices(read_space), 1000, 1, used)
    assert chosen == word
    assert ("auto took it at trial 0" in reason) is (word != "tpe")
    assert choose_sampler("qmc", with_choices(read_space), 1000, 1, used)[0] == "qmc"


def test_auto_does_not_stay_with_what_cannot_search_any_more(read_space: Read):
    used = [[0, "cmaes", "auto"]]
    assert choose_sampler("auto", with_choices(read_space), 1000, 1, used)[0] == "tpe"
    assert choose_sampler("auto", with_choices(read_space), 1000, 2, used)[0] == "nsgaii"


def test_every_rule_is_of_use_and_the_last_one_fits_all():
    assert {rule.word for rule in RULES} <= set(WORDS)
    last = RULES[-1]
    assert (last.choices, last.several, last.trials, last.dimensions) == (None, None, None, 1)


def test_what_cannot_work_is_refused(read_space: Read):
    assert refusal("cmaes", with_choices(read_space)) == (
        "search.sampler: 'cmaes' can't draw the choice 'merge_method'; use catcma or tpe, or fix "
        "the choice"
    )
    assert refusal("cmaes", numbers(read_space, 1)) == (
        "search.sampler: 'cmaes' needs two dimensions or more; use tpe"
    )
    assert refusal("gp", numbers(read_space), trials=501) == (
        "search.sampler: 'gp' takes seconds for each proposal beyond 500 trials, and the budget "
        "is 501; use auto, tpe or cmaes"
    )
    for word in ("cmaes", "catcma"):
        assert refusal(word, numbers(read_space), objectives=2) == (
            f"search.sampler: '{word}' can't search for 2 objectives at once; use auto, nsgaii, "
            "evolution, tpe or gp"
        )


@pytest.mark.parametrize("word", ["auto", *WORDS])
def test_nothing_else_is_refused(word: str, read_space: Read):
    assert refusal(word, numbers(read_space), trials=500) is None
    if word != "cmaes":
        assert refusal(word, with_choices(read_space), trials=500) is None
        assert refusal(word, numbers(read_space, 1), trials=500) is None
    if word not in ("cmaes", "catcma"):
        assert refusal(word, with_choices(read_space), objectives=3) is None


def test_tpe_sees_the_best_and_the_latest_only():
    """A proposal's time doesn't grow with the study; what was best long ago still counts."""
    linear = ("linear",)
    space = SearchSpace({"models": []}, linear, (Real("x", 0.0, 1.0, False, linear, "weight"),))
    known: dict[str, BaseDistribution] = {"x": FloatDistribution(0.0, 1.0)}

    def proposals(history: Sequence[tuple[float, float]]) -> list[float]:
        study = optuna.create_study(direction="maximize")
        study.add_trials(
            [
                optuna.trial.create_trial(params={"x": x}, distributions=known, value=value)
                for x, value in history
            ]
        )
        trials = study.get_trials(deepcopy=False)
        found: list[float] = []
        for number in range(len(trials), len(trials) + 20):
            study.sampler = sampler_for("tpe", space, trials, 0, number)
            found.append(study.ask(known).params["x"])
        return found

    chance = np.random.default_rng(0)
    best = [(0.8 + 0.001 * i, 1.0) for i in range(25)]
    noise = [(float(x), 0.0) for x in chance.random(500)]
    assert abs(np.mean(proposals([*best, *noise])) - 0.81) < 0.05


def test_one_dimension_of_one_value_is_not_searched():
    linear = ("linear",)
    fixed = Choice("c", ("x",), linear, "c")
    free = Real("a.weight", 0.0, 1.0, False, linear, "weight")
    space = bare(free, fixed)
    for word in ("composite", "tpe", "catcma", "evolution", "qmc"):
        params = straight(word, space, 13)
        assert all(values["c"] == "x" for values in params)


def test_trial_seeds_are_fixed_and_spread():
    assert trial_seed(0, 0) == trial_seed(0, 0)
    seeds = {trial_seed(seed, number) for seed in range(20) for number in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**32 for seed in seeds)
