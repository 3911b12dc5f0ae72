"""The next trials of a study: those that a killed process left behind, or new ones."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from merge_core.recipe import Recipe
from search.genes import distribution, told
from search.known import fingerprint
from search.outputs import Reader
from search.record import described
from search.samplers import sampler_for
from search.space import Choice, Dimension, SearchSpace, Values


@dataclass(frozen=True, slots=True)
class Proposer:
    """How trials are proposed.

    Attributes:
        word: The sampler's.
        seed: The study's.
        batch: Trials that are proposed before the first of them is told.
        reader: What trials reported of their items, for samplers that learn from it.
    """

    word: str
    seed: int
    batch: int
    reader: Reader | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A trial that has its values but no result yet.

    Attributes:
        study: Where it is kept.
        stored: As it was when it was asked for.
        recipe: That its values describe.
        key: The same for all recipes that make the same model.
    """

    study: optuna.Study
    stored: FrozenTrial
    recipe: Recipe
    key: str

    @property
    def number(self) -> int:
        """The trial's."""
        return self.stored.number

    def set_user_attr(self, name: str, value: Any) -> None:
        """Store something about it."""
        self.study._storage.set_trial_user_attr(self.stored._trial_id, name, value)  # pyright: ignore[reportPrivateUsage]

    def tell(self, values: Sequence[float] | None, missed: Sequence[float] = ()) -> None:
        """End it; Optuna's own `tell` reads the trial three times more to do so.

        Args:
            values: Of its objectives; None if it failed.
            missed: Of each limit, kept at 0 and below; where Optuna's samplers look for them.
        """
        for i, value in enumerate(missed):
            optuna.Trial(self.study, self.stored._trial_id).set_constraint(f"{i}", value)  # pyright: ignore[reportPrivateUsage]
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        storage, key = self.study._storage, self.stored._trial_id  # pyright: ignore[reportPrivateUsage]
        storage.set_trial_state_values(key, state, values)


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
    history = list(study.get_trials(deepcopy=False))
    numbers = [trial.number for trial in history if trial.state is TrialState.RUNNING]
    size = proposer.batch
    end = min((numbers or [len(history)])[0] // size * size + size, trials)
    numbers += range(len(history), end)
    ended = told(history)
    return tuple(ask(study, space, proposer, number, history, ended) for number in numbers)


def ask(
    study: optuna.Study,
    space: SearchSpace,
    proposer: Proposer,
    number: int,
    history: list[FrozenTrial],
    ended: Sequence[FrozenTrial] | None = None,
) -> Asked:
    """A trial by its number, with its values: one that a killed process left behind, or a new one.

    Orphans are adopted as they are. Failing one instead would shift all numbers after it, and
    CMA-ES would lose the point from its generation.

    Args:
        study: Where trials are kept.
        space: What is searched.
        proposer: How.
        number: The trial's: of an orphan, or the next.
        history: All trials so far; a new one is added.
        ended: Those that are told, if they are known: finding them among thousands takes a while.
    """
    if number < len(history):
        stored = history[number]
        recipe = space.decode(stored.params)
        return Asked(study, stored, recipe, fingerprint(recipe, space.depths))
    sampler = sampler_for(
        proposer.word,
        space,
        history,
        proposer.seed,
        number,
        batch=proposer.batch,
        reader=proposer.reader,
        trials=ended,
    )
    draft, values = _drawn(study, space, sampler, number)
    recipe = space.decode(values)
    key = fingerprint(recipe, space.depths)
    draft.user_attrs |= described(recipe, key)
    _begin(study, draft)
    history.append(draft)
    return Asked(study, draft, recipe, key)


def _drawn(
    study: optuna.Study, space: SearchSpace, sampler: BaseSampler, number: int
) -> tuple[FrozenTrial, Values]:
    """A trial with values that no storage knows yet; drawn as Optuna's own `Trial` draws them."""
    draft = create_trial(state=TrialState.RUNNING)
    draft.number = number
    study = copy.copy(study)
    study._storage = cast("Any", _Notes(study._storage, draft))  # pyright: ignore[reportPrivateUsage]
    joint = sampler.sample_relative(study, draft, sampler.infer_relative_search_space(study, draft))

    def ask(dimension: Dimension) -> Any:
        name, known = dimension.name, distribution(dimension)
        if known.single():
            value = dimension.options[0] if isinstance(dimension, Choice) else dimension.low
        elif name in joint:
            value = joint[name]
        else:
            value = sampler.sample_independent(study, draft, name, known)
        draft.params[name], draft.distributions[name] = value, known
        return value

    return draft, space.draw(ask)


class _Notes:
    """A storage in which samplers write on a trial that isn't there yet; read, it is the study's.

    Args:
        storage: The study's.
        draft: The trial.
    """

    def __init__(self, storage: BaseStorage, draft: FrozenTrial) -> None:
        self._storage, self._draft = storage, draft

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def set_trial_system_attr(self, _: int, key: str, value: Any) -> None:
        """Keep what a sampler wants to know again."""
        self._draft.system_attrs[key] = value

    def set_trial_user_attr(self, _: int, key: str, value: Any) -> None:
        """Keep what a sampler tells of the trial."""
        self._draft.user_attrs[key] = value


def _begin(study: optuna.Study, draft: FrozenTrial) -> None:
    """Store a new trial, all of it in one write.

    Sixty-four parameters one by one are as many commits, milliseconds each, and a process may die
    between two of them.
    """
    storage, key = study._storage, study._study_id  # pyright: ignore[reportPrivateUsage]
    draft._trial_id = storage.create_new_trial(key, template_trial=draft)  # pyright: ignore[reportPrivateUsage]
