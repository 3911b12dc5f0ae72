"""The next trials of a study: those that a killed process left behind, or new ones."""

from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import TrialState

from merge_core.recipe import Recipe
from search.known import fingerprint
from search.samplers import Drawn, sampler_for
from search.space import Choice, Dimension, Real, SearchSpace, Values


@dataclass(frozen=True, slots=True)
class Proposer:
    """How trials are proposed.

    Attributes:
        word: The sampler's.
        seed: The study's.
        batch: Trials that are proposed before the first of them is told.
    """

    word: str
    seed: int
    batch: int


@dataclass(frozen=True, slots=True)
class Asked:
    """A trial that has its values but no result yet."""

    trial: optuna.Trial
    recipe: Recipe

    @property
    def key(self) -> str:
        """The same for all recipes that make the same model."""
        return fingerprint(self.recipe)


def ask_batch(
    study: optuna.Study, space: SearchSpace, proposer: Proposer, trials: int
) -> tuple[Asked, ...]:
    """Propose the trials of the next batch, all of them before any of them is told.

    What is proposed depends on the trials told before the batch and on nothing else, neither on
    how many are scored at a time nor on which of them ends first. Batches are places in the order
    of trials: one of which some trials are told already is finished before the next one begins.

    Args:
        study: Where trials are kept.
        space: What is searched.
        proposer: How.
        trials: The budget; no trial beyond it is begun.
    """
    history = study.get_trials(deepcopy=False)
    numbers = [trial.number for trial in history if trial.state is TrialState.RUNNING]
    size = proposer.batch
    end = min((numbers or [len(history)])[0] // size * size + size, trials)
    numbers += range(len(history), end)
    return tuple(_ask(study, space, proposer, number) for number in numbers)


def _ask(study: optuna.Study, space: SearchSpace, proposer: Proposer, number: int) -> Asked:
    trial = next_trial(study, space, proposer, number)
    return Asked(trial, space.decode(suggest(trial, space)))


def next_trial(
    study: optuna.Study, space: SearchSpace, proposer: Proposer, number: int
) -> optuna.Trial:
    """A trial by its number: one that a killed process left behind, or a new one.

    The sampler is made anew from the trials told so far, so both get the values that an
    uninterrupted study would have given them. What a sampler draws at once is stored at once: its
    model may see the trial's own first values when it is asked for the rest. Failing the orphan
    instead would shift all numbers after it, and CMA-ES would lose the point from its generation.
    """
    history = study.get_trials(deepcopy=False)
    orphan = history[number] if number < len(history) else None
    study.sampler = sampler_for(
        proposer.word, space, history, proposer.seed, number, batch=proposer.batch
    )
    if orphan and "drawn" in orphan.user_attrs:
        study.sampler = Drawn(orphan.user_attrs["drawn"], study.sampler)
    trial = optuna.Trial(study, orphan._trial_id) if orphan else study.ask()  # pyright: ignore[reportPrivateUsage]
    if "drawn" not in trial.user_attrs:
        trial.set_user_attr("drawn", trial.relative_params)
    return trial


def suggest(trial: optuna.Trial, space: SearchSpace) -> Values:
    """Draw a coordinate of every dimension that exists under those before it, in order."""

    def ask(dimension: Dimension) -> Any:
        if isinstance(dimension, Choice):
            return trial.suggest_categorical(dimension.name, dimension.options)
        low, high, log = dimension.low, dimension.high, dimension.log
        if isinstance(dimension, Real):
            return trial.suggest_float(dimension.name, low, high, log=log)
        return trial.suggest_int(dimension.name, dimension.low, dimension.high, log=log)

    return space.draw(ask)
