"""CMA-ES over numbers, or over numbers and choices at once, with no state beside the trials.

The optimisers are those of the package cmaes: `CMA` (Hansen 2016, arXiv:1604.00772) for real
numbers, `CatCMAwM` (Hamano et al. 2025, arXiv:2504.07884) for whole numbers and choices. What they
have learnt is found again by telling them all earlier trials once more; a process that goes on
keeps it and tells the new ones only. Optuna's own sampler pickles its optimiser into the storage.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from cmaes import CMA, CatCMAwM  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from search.genes import Cube, cube, merit

_BEST = 3  # the search begins in the middle of the best trials that it did not draw itself
_STEP = 0.12  # of a range; of 0.1 to 0.2, and 1 to 3 trials, the best on quadratics of 8 to 64 dims
_RESTART_STEP = 1 / 6
_MARGIN = 0.1  # a search that begins at a wall would draw half of its points beyond it
_CONVERGED = 1e-3  # of a range; nobody can tell merges apart that are nearer
_KEPT: dict[Any, _Learnt] = {}  # what this process has told already; it can be lost at any time
_MOST_KEPT = 8


class CmaSampler(BaseSampler):
    """Covariance matrix adaptation as a function of the trials told so far.

    A trial that it draws keeps the drawn point in its system attribute `cma`. All other trials
    (usual starts, known recipes, what another sampler drew) teach it where to begin. Infeasible
    trials are worse than all feasible ones, and ordered by their violation.

    Args:
        known: The space, whole.
        told: Trials with values, in order of number.
        seed: The trial's own seed.
        batch: How many trials are asked for before the first of them is told; a generation is
            made of whole batches, so that no trial is drawn from what is out of date.
    """

    def __init__(
        self,
        known: Mapping[str, BaseDistribution],
        told: Sequence[FrozenTrial],
        seed: int,
        batch: int = 1,
    ) -> None:
        self._known, self._told, self._seed = dict(known), told, seed
        self._cube = cube(known)
        usual = 4 + math.floor(3 * math.log(max(1, len(known))))
        self._size = math.ceil(usual / batch) * batch

    def infer_relative_search_space(self, *_: object, **__: object) -> dict[str, BaseDistribution]:
        """The whole space; a method's own parameters are drawn for all methods."""
        return self._known

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A point of the distribution that the told trials lead to."""
        if not search_space:
            return {}
        learnt = _learn(self._cube, self._told, self._size, study.direction)
        point, picks = learnt.ask(self._seed)
        drawn = {"point": point.tolist(), "picks": picks}
        study._storage.set_trial_system_attr(trial._trial_id, "cma", drawn)  # pyright: ignore[reportPrivateUsage]
        return self._cube.params(learnt.repaired(point), picks)

    def sample_independent(self, *_: object, **__: object) -> Any:
        """All that can vary is drawn at once."""
        raise NotImplementedError


@dataclass(slots=True)
class _Learnt:
    """An optimiser and what it was told.

    Attributes:
        cube: What is searched.
        size: Of the first generation.
        first: The trials that showed it where to begin.
        eaten: The trials that it was told, in order.
        direction: Of the objective.
        optimiser: Of the package cmaes.
        own: The trials that it drew, among the first `read` told ones, of which `last` is the last.
    """

    cube: Cube
    size: int
    first: list[FrozenTrial]
    eaten: list[FrozenTrial]
    direction: StudyDirection
    optimiser: CMA | CatCMAwM
    own: list[FrozenTrial]
    read: int = 0
    last: FrozenTrial | None = None

    def ask(self, seed: int) -> tuple[NDArray[np.float64], list[int]]:
        """Draw a point, which may be outside the cube, and places of the choices."""
        self.optimiser.reseed_rng(seed)
        drawn = self.optimiser.ask()
        if not isinstance(drawn, CatCMAwM.Solution):
            return drawn, []
        _, _, picked, raw = dataclasses.astuple(drawn)
        picks = [] if picked is None else [int(row.argmax()) for row in picked]
        return (np.zeros(0) if raw is None else raw), picks

    def repaired(self, point: NDArray[np.float64]) -> list[float]:
        """The point that is scored: in the cube, whole numbers at their places."""
        inside = np.clip(point, 0, 1).tolist()
        for i, places in enumerate(self.cube.whole, len(inside) - len(self.cube.whole)):
            inside[i] = round(inside[i] * (places - 1)) / (places - 1)
        return inside

    def tell(self, trials: list[FrozenTrial]) -> None:
        """Learn from a generation, by rank; begin anew, twice as wide, where it has converged.

        Widening: Auger and Hansen 2005, doi:10.1109/CEC.2005.1554902.
        """
        merits = [merit(trial, self.direction) for trial in trials]
        places = {one: float(i) for i, one in enumerate(sorted(set(merits)))}
        solutions = [(self._solution(t), places[m]) for t, m in zip(trials, merits, strict=True)]
        self.optimiser.tell(cast("Any", solutions))
        self.eaten.extend(trials)
        points = np.array([trial.system_attrs["cma"]["point"] for trial in trials])
        if points.size and float(np.ptp(points, axis=0).max()) < _CONVERGED:
            middle = np.full(len(self.cube.numbers), 0.5)
            wider = 2 * self.optimiser.population_size
            self.optimiser = _optimiser(self.cube, wider, middle, _RESTART_STEP, [])

    def _solution(self, trial: FrozenTrial) -> NDArray[np.float64] | CatCMAwM.Solution:
        drawn = trial.system_attrs["cma"]
        point = np.array(drawn["point"], np.float64)
        if isinstance(self.optimiser, CMA):
            return point
        return CatCMAwM.Solution(None, None, _rows(self.cube, drawn["picks"]), point)


def _learn(
    known: Cube, told: Sequence[FrozenTrial], size: int, direction: StudyDirection
) -> _Learnt:
    """The optimiser after the told trials, a generation at a time in order of number."""
    key = (repr(known), size, direction)
    learnt = _KEPT.get(key)
    if learnt is None or not _goes_on(learnt, told):
        learnt = _anew(known, told, size, direction)
        _keep(key, learnt)
    learnt.own += [trial for trial in told[learnt.read :] if _is_own(trial, known)]
    learnt.read, learnt.last = len(told), told[-1] if told else None
    while len(learnt.own) - len(learnt.eaten) >= (most := learnt.optimiser.population_size):
        learnt.tell(learnt.own[len(learnt.eaten) :][:most])
    return learnt


def _goes_on(learnt: _Learnt, told: Sequence[FrozenTrial]) -> bool:
    """Whether the told trials are those known and later ones; told trials never change."""
    known = bool(learnt.own) and learnt.read <= len(told)
    return known and told[learnt.read - 1] is learnt.last


def _anew(
    known: Cube, told: Sequence[FrozenTrial], size: int, direction: StudyDirection
) -> _Learnt:
    own = next((trial.number for trial in told if _is_own(trial, known)), math.inf)
    first = [trial for trial in told if trial.number < own]
    return _Learnt(known, size, first, [], direction, _begin(known, first, size, direction), [])


def _keep(key: Any, learnt: _Learnt) -> None:
    _KEPT.pop(key, None)
    while len(_KEPT) >= _MOST_KEPT:
        del _KEPT[next(iter(_KEPT))]
    _KEPT[key] = learnt


def _is_own(trial: FrozenTrial, known: Cube) -> bool:
    drawn = trial.system_attrs.get("cma")
    if drawn is None:
        return False
    return (len(drawn["point"]), len(drawn["picks"])) == (len(known.numbers), len(known.choices))


def _begin(
    known: Cube, first: list[FrozenTrial], size: int, direction: StudyDirection
) -> CMA | CatCMAwM:
    """Begin amid the best known recipes; enqueued ones would teach it nothing."""
    best = sorted(first, key=lambda trial: merit(trial, direction))[:_BEST]
    if not best:
        middle = np.full(len(known.numbers), 0.5)
        return _optimiser(known, size, middle, _RESTART_STEP, [])
    mean = np.mean([known.point(trial.params) for trial in best], axis=0)
    picks = [known.picks(trial.params) for trial in best]
    return _optimiser(known, size, np.clip(mean, _MARGIN, 1 - _MARGIN), _STEP, picks)


def _optimiser(
    known: Cube, size: int, mean: NDArray[np.float64], step: float, picks: list[list[int]]
) -> CMA | CatCMAwM:
    """The optimiser that a space needs; `picks` are the choices of good trials."""
    numbers, whole = len(mean), len(known.whole)
    if not known.choices and not whole and numbers > 1:
        # It draws again what falls outside, which suits narrow ranges better than a penalty.
        walls = np.tile([0.0, 1.0], (numbers, 1))
        return CMA(mean=mean, sigma=step, bounds=walls, seed=0, population_size=size)
    return CatCMAwM(
        x_space=[[0.0, 1.0]] * (numbers - whole) or None,
        z_space=[np.linspace(0, 1, places).tolist() for places in known.whole] or None,
        c_space=[len(one.choices) for one in known.choices.values()] or None,
        population_size=size,
        mean=mean if numbers else None,
        sigma=step,
        cov=np.eye(numbers) if numbers else None,
        cat_param=_chances(known, picks) if known.choices else None,
        seed=0,
    )


def _chances(known: Cube, picks: list[list[int]]) -> NDArray[np.float64]:
    """How likely each option is at first: (choices, options) float64; one more than was seen."""
    longest = max(len(one.choices) for one in known.choices.values())
    counts = np.zeros((len(known.choices), longest))
    for row, one in enumerate(known.choices.values()):
        counts[row, : len(one.choices)] = 1
    for picked in picks:
        counts += _rows(known, picked)
    return counts / counts.sum(axis=1, keepdims=True)


def _rows(known: Cube, picks: Sequence[int]) -> NDArray[np.float64]:
    """Places as rows with a single one: (choices, options) float64."""
    if not picks:
        return np.zeros((0, 0))
    longest = max(len(one.choices) for one in known.choices.values())
    return np.eye(longest)[list(picks)]


def forget() -> None:
    """Let go of what this process has learnt, as a new process would begin."""
    _KEPT.clear()
