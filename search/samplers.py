"""One word → an Optuna sampler, as a pure function of (history, seed, trial number).

A fresh sampler for every trial, seeded by study seed and trial number: a study that was killed
goes on as if it had never stopped, and nothing is pickled beside the storage.
"""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    PartialFixedSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial, TrialState

from search.cat_cma import CmaSampler
from search.composite import DESIGN, Composite
from search.cuts import Cuts
from search.dimensions import lone
from search.evolution import Evolution, Population, elite
from search.genes import Params, cube, distributions, filled, told, view
from search.known import fingerprint
from search.layouts import Layout
from search.outputs import Reader
from search.space import Choice, SearchSpace, holes
from search.walks import Walk

WORDS = ("composite", "tpe", "cmaes", "catcma", "gp", "nsgaii", "evolution", "qmc", "random")

UNRACED = ("composite", "gp")  # to a Gaussian process an estimate is as exact as a score
_ONE_OBJECTIVE = ("cmaes", "catcma")
_MOST_FOR_GP = 500  # Optuna's own limit; benchmarks/README.md has the seconds of a proposal
_FEWEST_FOR_CMAES = 2
_WARM_UP = 10  # trials told before a model is fitted
_BEST, _LATEST = 25, 225  # what TPE looks at: it takes no more than 25 as good ones anyway


@dataclass(frozen=True, slots=True)
class Rule:
    """When `auto` takes a sampler; the first rule that fits is taken.

    Attributes:
        word: The sampler.
        reason: Why, for the reader.
        choices: Only if choices are searched (True) or numbers only (False).
        several: Only with several objectives (True) or with one (False).
        trials: At most so many.
        dimensions: At least so many.
        pieces: Only if the order of layers is put together of pieces (`cuts`, `walk`).
    """

    word: str
    reason: str
    choices: bool | None = None
    several: bool | None = None
    trials: int | None = None
    dimensions: int = 1
    pieces: bool = False


# What they rest on is in benchmarks/SEARCH.md.
RULES = (
    Rule(
        "tpe",
        "pieces of layers are searched, where it takes luck for a gain least",
        several=False,
        trials=500,
        pieces=True,
    ),
    Rule("composite", "at most {trials} trials, from each of which it learns most", trials=500),
    Rule("nsgaii", "several objectives, many trials", several=True),
    Rule("cmaes", "numbers only, many trials", choices=False, dimensions=_FEWEST_FOR_CMAES),
    Rule("tpe", "one number only, many trials", choices=False),
    Rule("tpe", "choices are searched"),
)


Used = Sequence[Sequence[Any]]
"""What proposed in a study: from which trial on, which sampler, and what the study file said.

In studies stored before the last is missing.
"""


def choose_sampler(
    word: str, space: SearchSpace, trials: int, objectives: int = 1, used: Used = ()
) -> tuple[str, str]:
    """What `auto` means for a study, with the reason.

    It stays with what it once chose, also under another budget: a study that goes on is the same
    as one that was never stopped.

    Args:
        word: As the study says.
        space: What is searched.
        trials: The study's budget.
        objectives: How many values a trial has.
        used: What proposed so far.

    Returns:
        The sampler's word and one sentence.
    """
    if word != "auto":
        return word, "as the study says"
    rule = next(rule for rule in RULES if _fits(rule, space, trials, objectives))
    number, before = next(filter(_by_auto, reversed(used)), (0, rule.word))[:2]
    if before != rule.word and refusal(before, space, trials, objectives) is None:
        return before, f"auto took it at trial {number}, and stays with it"
    return rule.word, rule.reason.format(trials=rule.trials)


def _by_auto(entry: Sequence[Any]) -> bool:
    """Whether `auto` chose; where that isn't stored, whether it could have."""
    _, word, *stated = entry
    return stated == ["auto"] if stated else word in {rule.word for rule in RULES}


def _fits(rule: Rule, space: SearchSpace, trials: int, objectives: int) -> bool:
    return (
        rule.choices in (None, space.has_choices)
        and rule.several in (None, objectives > 1)
        and (rule.trials is None or trials <= rule.trials)
        and len(space.dimensions) >= rule.dimensions
        and (not rule.pieces or _in_pieces(space))
    )


def _in_pieces(space: SearchSpace) -> bool:
    forms = [node.form for node in holes(space.template) if isinstance(node, Layout)]
    return any(isinstance(form, Cuts | Walk) for form in forms)


def refusal(word: str, space: SearchSpace, trials: int = 0, objectives: int = 1) -> str | None:
    """Why a sampler can't search a space, or None if it can.

    Args:
        word: As the study says.
        space: What is searched.
        trials: The study's budget.
        objectives: How many values a trial has.
    """
    choice = next((d for d in space.dimensions if isinstance(d, Choice)), None)
    if word in _ONE_OBJECTIVE and objectives > 1:
        return (
            f"search.sampler: '{word}' can't search for {objectives} objectives at once; use "
            "auto, nsgaii, evolution, tpe or gp"
        )
    if word == "cmaes" and choice is not None:
        return (
            f"search.sampler: 'cmaes' can't draw the choice '{choice.name}'; use catcma or tpe, "
            "or fix the choice"
        )
    if word == "cmaes" and len(space.dimensions) < _FEWEST_FOR_CMAES:
        return "search.sampler: 'cmaes' needs two dimensions or more; use tpe"
    if word == "gp" and trials > _MOST_FOR_GP:
        return (
            f"search.sampler: 'gp' takes seconds for each proposal beyond {_MOST_FOR_GP} trials, "
            f"and the budget is {trials}; use auto, tpe or {'catcma' if choice else 'cmaes'}"
        )
    return None


def sampler_for(
    word: str,
    space: SearchSpace,
    history: Sequence[FrozenTrial],
    seed: int,
    number: int,
    *,
    batch: int = 1,
    reader: Reader | None = None,
    trials: Sequence[FrozenTrial] | None = None,
) -> BaseSampler:
    """The sampler of one trial: the same for the same arguments, in any process.

    What other trials of its batch draw matters to `composite` and `gp` only, which keep away from
    them; of those they see the ones with lower numbers. All other samplers see told trials only.

    Args:
        word: One of `WORDS`.
        space: What is searched.
        history: All trials so far.
        seed: The study's seed.
        number: The trial's number; the first ones are the space's usual starts.
        batch: How many trials are asked for before the first of them is told.
        reader: What trials reported of their items, for `composite`.
        trials: Those of the history that are told, if they are known.
    """
    starts = space.starts()
    if number < len(starts):
        return PartialFixedSampler(dict(starts[number]), Keyed(None, seed, number))
    known = distributions(space)
    trials = told(history) if trials is None else trials
    if word == "qmc":
        return Keyed(_Sequence(seed, number - len(starts)), seed, number, trials, known)
    if word == "random" or len(trials) < (1 if word == "composite" else _WARM_UP) or not known:
        return Keyed(None, seed, number)
    own = trial_seed(seed, number)
    match word:
        case "composite":
            running = _running(history, number)
            lost = [t for t in history if t.state is TrialState.FAIL]
            first = number < len(starts) + DESIGN
            base = Composite(
                space.dimensions,
                known,
                trials,
                lost,
                running,
                own,
                first=first,
                reader=reader,
                key=_key_of(space),
            )
        case "cmaes" | "catcma":
            base = CmaSampler(known, trials, own, batch)
        case "gp":
            base = GPSampler(seed=own, warn_independent_sampling=False)
            trials = [*filled(trials, cube(known)), *_running(history, number)]
        case "nsgaii":
            base = Population(known, own)
        case "evolution":
            base = Evolution(known, own)
        case _:
            conditional = any(dimension.under for dimension in space.dimensions)
            base = _Tpe(own, conditional=conditional)
            known = None if conditional else known
    return Keyed(base, seed, number, trials, known)


def _running(history: Sequence[FrozenTrial], number: int) -> list[FrozenTrial]:
    """Trials of lower numbers that have no values yet."""
    return [t for t in history if t.state is TrialState.RUNNING and t.number < number]


def _key_of(space: SearchSpace) -> Callable[[Params], str] | None:
    """What stands for a candidate's model, where many values mean the same order of layers."""
    if not any(isinstance(node, Layout) for node in holes(getattr(space, "template", None))):
        return None

    def key(params: Params) -> str:
        values = space.draw(lambda d: params[d.name] if d.name in params else lone(d))
        return fingerprint(space.decode(values), space.depths)

    return key


class Keyed(BaseSampler):
    """A sampler whose lone draws depend on seed, trial and parameter name, not on their order.

    A process may die between two draws of a trial; the draws that are left must then not get
    the random numbers of those that are stored.

    Args:
        base: Draws the parameters that belong together; None for pure random search.
        seed: The study's seed.
        number: The trial's number.
        seen: The trials that the base sampler sees.
        known: What it draws; None lets it find that out itself, which takes as long as drawing.
    """

    def __init__(
        self,
        base: BaseSampler | None,
        seed: int,
        number: int,
        seen: Sequence[FrozenTrial] = (),
        known: Mapping[str, BaseDistribution] | None = None,
    ) -> None:
        self._base, self._seed, self._number = base, seed, number
        self._seen, self._known = seen, known

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The parameters that belong together."""
        if self._base is None or self._known is not None:
            return dict(self._known or {})
        return self._base.infer_relative_search_space(view(study, self._seen), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Their values, drawn at once."""
        if self._base is None:
            return {}
        return self._base.sample_relative(view(study, self._seen), trial, search_space)

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


class _Sequence(QMCSampler):
    """A low-discrepancy sequence whose place is the trial's number, not a counter in storage."""

    def __init__(self, seed: int, place: int) -> None:
        super().__init__(seed=seed, scramble=True, warn_independent_sampling=False)
        self._place = place

    def _find_sample_id(self, *_: object, **__: object) -> int:
        return self._place


class _Tpe(TPESampler):
    """TPE that reads no more trials than it learns from.

    It takes at most 25 trials as good ones and weighs the others by age, so the best and the latest
    are seen; a proposal's time then doesn't grow with the study.
    """

    def __init__(self, seed: int, *, conditional: bool) -> None:
        super().__init__(
            seed=seed,
            multivariate=True,
            group=conditional,  # parameters that exist only under a choice
            constant_liar=False,  # a proposal depends on told trials only
        )

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return super().infer_relative_search_space(_lately(study), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return super().sample_relative(_lately(study), trial, search_space)


def _lately(study: Study) -> Study:
    """The best trials and the latest ones, in order of number."""
    trials = study.get_trials(deepcopy=False)
    if len(trials) <= _BEST + _LATEST:
        return study
    best = elite(study, trials[:-_LATEST], _BEST)
    kept = sorted(best, key=lambda trial: trial.number)
    return view(study, [*kept, *trials[-_LATEST:]])


def trial_seed(*parts: int | str) -> int:
    """A seed of 32 bits from the study's seed, a trial's number and perhaps a name."""
    text = ":".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")


optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=ExperimentalWarning, module="search")
