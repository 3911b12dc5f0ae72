"""One word → an Optuna sampler, as a pure function of (history, seed, trial number).

A fresh sampler for every trial, seeded by study seed and trial number: a study that was killed
goes on as if it had never stopped, and nothing is pickled beside the storage.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    PartialFixedSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial, TrialState

from search.space import Choice, SearchSpace

_GP_TRIALS = 250  # beyond it a proposal takes a second and more
_FEWEST_FOR_CMAES = 2
_WARM_UP = 10  # trials before a model is fitted: CMA-ES starts at the best tenth of them


def choose_sampler(word: str, space: SearchSpace, trials: int) -> tuple[str, str]:
    """What `auto` means for a study, with the reason.

    Args:
        word: As the study says.
        space: What is searched.
        trials: The study's budget.

    Returns:
        The sampler's word and one sentence.
    """
    if word != "auto":
        return word, "as the study says"
    if space.has_choices:
        return "tpe", "choices are searched"
    if trials > _GP_TRIALS:
        word = "cmaes" if len(space.dimensions) >= _FEWEST_FOR_CMAES else "tpe"
        return word, f"numbers only, more than {_GP_TRIALS} trials"
    return "gp", f"numbers only, at most {_GP_TRIALS} trials"


def refusal(word: str, space: SearchSpace) -> str | None:
    """Why a sampler can't search a space, or None if it can."""
    choice = next((d for d in space.dimensions if isinstance(d, Choice)), None)
    if word == "cmaes" and choice is not None:
        return (
            f"search.sampler: 'cmaes' can't draw the choice '{choice.name}'; use tpe or fix the "
            "choice"
        )
    if word == "cmaes" and len(space.dimensions) < _FEWEST_FOR_CMAES:
        return "search.sampler: 'cmaes' needs two dimensions or more; use tpe"
    return None


def sampler_for(
    word: str, space: SearchSpace, history: Sequence[FrozenTrial], seed: int, number: int
) -> BaseSampler:
    """The sampler of one trial.

    Args:
        word: `tpe`, `cmaes`, `gp`, `qmc` or `random`.
        space: What is searched.
        history: All trials so far.
        seed: The study's seed.
        number: The trial's number; the first ones are the space's usual starts.
    """
    starts = space.starts()
    own = trial_seed(seed, number)
    done = [trial for trial in history if trial.state is TrialState.COMPLETE]
    if number < len(starts):
        return PartialFixedSampler(dict(starts[number]), Keyed(None, seed, number))
    if word == "qmc":
        return Keyed(_Sequence(number - len(starts), seed), seed, number)
    if word == "random" or len(done) < _WARM_UP:
        return Keyed(None, seed, number)
    match word:
        case "cmaes":  # enqueued trials would teach it nothing
            base = CmaEsSampler(seed=own, source_trials=done[:_WARM_UP])
        case "gp":
            base = GPSampler(seed=own)
        case _:
            base = TPESampler(
                seed=own,
                multivariate=True,
                group=space.has_choices,  # parameters that exist only under a choice
                constant_liar=False,  # the one trial that runs is this one
            )
    return Keyed(base, seed, number)


class Keyed(BaseSampler):
    """A sampler whose lone draws depend on seed, trial and parameter name, not on their order.

    A process may die between two draws of a trial; the draws that are left must then not get
    the random numbers of those that are stored.

    Args:
        base: Draws the parameters that belong together; None for pure random search.
        seed: The study's seed.
        number: The trial's number.
    """

    def __init__(self, base: BaseSampler | None, seed: int, number: int) -> None:
        self._base, self._seed, self._number = base, seed, number

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The parameters that belong together."""
        return self._base.infer_relative_search_space(study, trial) if self._base else {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Their values, drawn at once."""
        return self._base.sample_relative(study, trial, search_space) if self._base else {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A uniform value of any other parameter."""
        lone = RandomSampler(seed=trial_seed(self._seed, self._number, param_name))
        return lone.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Pass it on."""
        if self._base:
            self._base.before_trial(study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Pass it on."""
        if self._base:
            self._base.after_trial(study, trial, state, values)


class Drawn(RandomSampler):
    """The sampler of a trial whose joint draw is stored already; lone draws go on as before.

    Args:
        values: The joint draw.
        base: The trial's own sampler.
    """

    def __init__(self, values: Mapping[str, Any], base: BaseSampler) -> None:
        super().__init__(seed=0)
        self._values, self._base = values, base

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The stored value, or a lone draw."""
        if param_name in self._values:
            return self._values[param_name]
        return self._base.sample_independent(study, trial, param_name, param_distribution)


class _Sequence(QMCSampler):
    """A low-discrepancy sequence whose place is the trial's number, not a counter in storage."""

    def __init__(self, place: int, seed: int) -> None:
        super().__init__(seed=seed, scramble=True, warn_independent_sampling=False)
        self._place = place

    def _find_sample_id(self, *_: object, **__: object) -> int:
        return self._place


def trial_seed(*parts: int | str) -> int:
    """A seed of 32 bits from the study's seed, a trial's number and perhaps a name."""
    text = ":".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")


optuna.logging.set_verbosity(optuna.logging.ERROR)
