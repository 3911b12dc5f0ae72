"""One word → an Optuna sampler, as a pure function of (history, seed, trial number).

A fresh sampler for every trial, seeded by study seed and trial number: a study that was killed
goes on as if it had never stopped, and nothing is pickled beside the storage.
"""

import hashlib
from collections.abc import Sequence

import optuna
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

from search.space import SearchSpace

_GP_TRIALS = 250  # beyond it a proposal takes a second and more
_FEWEST_FOR_CMAES = 2
_WARM_UP = 10  # trials before CMA-ES: it starts at the best tenth of them, so fewer can't do


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
    if len(space.dimensions) >= _FEWEST_FOR_CMAES and trials > _GP_TRIALS:
        return "cmaes", f"numbers only, more than {_GP_TRIALS} trials"
    return "tpe", f"numbers only, at most {_GP_TRIALS} trials"


def refusal(word: str, space: SearchSpace) -> str | None:
    """Why a sampler can't search a space, or None if it can."""
    if word == "cmaes" and (choice := next((d for d in space.dimensions if _is_choice(d)), None)):
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
    if number < len(starts):
        return PartialFixedSampler(dict(starts[number]), RandomSampler(seed=own))
    match word:
        case "cmaes":
            return _cmaes(history, own)
        case "gp":
            return GPSampler(seed=own)
        case "qmc":
            return QMCSampler(seed=seed, scramble=True)  # a sequence: one seed for all of it
        case "random":
            return RandomSampler(seed=own)
        case _:
            group = space.has_choices  # parameters that exist only under a choice
            return TPESampler(seed=own, multivariate=True, group=group)


def trial_seed(seed: int, number: int) -> int:
    """A seed of 32 bits for one trial."""
    digest = hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def _cmaes(history: Sequence[FrozenTrial], seed: int) -> BaseSampler:
    """CMA-ES that begins at the best of the first trials; enqueued trials would teach it nothing."""
    done = [trial for trial in history if trial.state is TrialState.COMPLETE]
    if len(done) < _WARM_UP:
        return RandomSampler(seed=seed)
    return CmaEsSampler(seed=seed, source_trials=done[:_WARM_UP])


def _is_choice(dimension: object) -> bool:
    return type(dimension).__name__ == "Choice"


optuna.logging.set_verbosity(optuna.logging.ERROR)
