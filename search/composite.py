"""Bayesian optimisation of what items add up to: few candidates, each of which teaches much.

A Gaussian process guesses the result of every item for any recipe; the next candidate is the one
whose guessed results add up to the most that can be expected beyond the best one known (Astudillo
and Frazier 2019, arXiv:1906.01537). Several objectives are weighed anew for each candidate (ParEGO,
Knowles 2006, doi:10.1109/TEVC.2005.851274).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from search.dimensions import Dimension, exists, lone
from search.genes import Cube, cube
from search.outputs import Outputs, Reader, plain
from search.surrogate import Surrogate, fit

Array = NDArray[np.float64]
Utility = Callable[[NDArray[Any]], Array]
Key = Callable[[Mapping[str, Any]], str]

DESIGN = 8  # candidates near the best of the usual recipes before anything is guessed
_NEAR, _NEARER, _AROUND = 0.2, 0.07, 0.1  # of a range
_BEST, _LATEST = 80, 120  # trials that guesses are made from
_FITTED = 100  # of them, those that the kernel is found from
_DRAWS = 32
_WIDE, _LOCAL = 200, 100  # points at which the gain is tried first
_ROUNDS, _PARENTS, _CHILDREN, _SHRINK = 5, 4, 64, 0.6
_MOVED, _MOVED_LEAST = 6, 0.3  # dimensions that move at a time, at least this share of them
_CELLS = 2_000_000  # numbers held at a time
_GREED = 1e-6  # where nothing can be gained the point that is guessed to be the better one
_LOOKED = 400  # points that are looked at, from the best on, for those whose models are new
_DIGITS = 9  # to which two points are the same
_SUM = 0.05  # ParEGO's: what the sum of all objectives counts beside the worst of them
_fits: dict[bytes, Surrogate] = {}  # the last ones of this process; they can be lost at any time
_MOST_FITS = 4


class Composite(BaseSampler):
    """A candidate as a function of the trials told so far.

    Args:
        dimensions: Of the space, all of them.
        known: Those that can vary, as distributions.
        told: Trials with values, in order of number.
        lost: Failed trials, guessed to be like the worst.
        running: Trials of lower numbers without values yet; guessed to be what they seem.
        seed: The trial's own seed.
        first: Whether it is too early to guess.
        reader: What trials reported of their items; None knows their values only.
        key: What stands for the model of any values, where many values mean the same model; trials
            have theirs in the user attribute `fingerprint`. None: points are told apart only.
    """

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        known: Mapping[str, BaseDistribution],
        told: Sequence[FrozenTrial],
        lost: Sequence[FrozenTrial],
        running: Sequence[FrozenTrial],
        seed: int,
        *,
        first: bool = False,
        reader: Reader | None = None,
        key: Key | None = None,
    ) -> None:
        self._known, self._told, self._lost, self._running = dict(known), told, lost, running
        self._chance, self._first = np.random.default_rng(seed), first
        self._reader, self._grid = reader, _Grid(dimensions, cube(known))
        self._fresh = _Fresh(self._grid, key, {_model(t) for t in (*told, *lost, *running)})

    def infer_relative_search_space(self, *_: object, **__: object) -> dict[str, BaseDistribution]:
        """The whole space; a method's own parameters are drawn for all methods."""
        return self._known

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The candidate of the largest expected gain; at first one near the best known."""
        del trial
        if not search_space:
            return {}
        grid, chance = self._grid, self._chance
        signs = [1.0 if d is StudyDirection.MAXIMIZE else -1.0 for d in study.directions]
        trials, outputs = self._reported()
        utility = _utility(outputs, np.array(signs), chance)
        merits = utility(outputs.table)
        points, coming, lost = map(grid.points, (trials, self._running, self._lost))
        ranked = np.argsort(-merits, kind="stable")
        best, seen = points[ranked[:_PARENTS]], np.vstack([points, coming, lost])
        if self._first:
            near = _unseen(grid.near(best, _CHILDREN, _NEAR, chance), seen, grid)
            return grid.params(near[self._fresh.best(near, np.zeros(len(near)), 1)[0]])
        kept = np.union1d(ranked[:_BEST], np.arange(len(points))[-_LATEST:])
        as_bad = outputs.table[np.repeat(ranked[-1], len(lost))]
        table = np.vstack([outputs.table[kept], as_bad])
        surrogate = _fitted(np.vstack([points[kept], lost]), table, grid.chosen)
        if len(coming):
            surrogate = surrogate.believing(coming)
        off, most = surrogate.directions(_DRAWS, chance), float(merits.max())

        def gain(candidates: Array) -> Array:
            return _expected_gain(candidates, surrogate, off, utility, most)

        centres = np.vstack([best, coming])
        return grid.params(_best_point(gain, centres, seen, grid, self._fresh, chance))

    def _reported(self) -> tuple[list[FrozenTrial], Outputs]:
        """What trials reported of their items, or at least of their values."""
        found = self._reader(self._told) if self._reader else None
        return plain(self._told) if found is None else found

    def sample_independent(self, *_: object, **__: object) -> Any:
        """All that can vary is drawn at once."""
        raise NotImplementedError


def _utility(outputs: Outputs, signs: Array, chance: np.random.Generator) -> Utility:
    """What a search wants of outputs `(..., outputs)`: `(...,)`, higher being better.

    Whatever keeps to all limits is better than whatever misses some.
    """
    known = outputs.values(outputs.table) * signs
    low, high = known.min(axis=0), known.max(axis=0)
    extent = np.where(high > low, high - low, 1.0)
    weights = chance.dirichlet(np.ones(len(signs)))

    def score(values: Array) -> Array:
        if len(signs) == 1:
            return values[..., 0]
        lacking = weights * (high - values) / extent
        return -(lacking.max(axis=-1) + _SUM * lacking.sum(axis=-1))

    scores = score(known)
    worst = 2 * scores.min() - scores.max() - 1.0

    def utility(table: Array) -> Array:
        found = score(outputs.values(table) * signs)
        missed = np.maximum(outputs.missed(table), 0.0).sum(axis=-1)
        return np.where(missed > 0, worst - missed, np.maximum(found, worst))

    return utility


def _expected_gain(
    points: Array, surrogate: Surrogate, off: Array, utility: Utility, most: float
) -> Array:
    """What points are expected to be better than `most`, over draws of their outputs, `(m,)`."""
    rows = max(1, _CELLS // off.size)
    thin = off.astype(np.float32)  # four times as fast; gains are nowhere near so exact
    gains = np.empty(len(points))
    for at in range(0, len(points), rows):
        means, unsure = (a.astype(np.float32) for a in surrogate.guess(points[at : at + rows]))
        drawn = utility(means[:, None] + unsure[:, None, None] * thin)
        gains[at : at + rows] = np.maximum(drawn - most, 0).mean(1) + _GREED * drawn.mean(1)
    return gains


def _best_point(
    gain: Callable[[Array], Array],
    centres: Array,
    seen: Array,
    grid: _Grid,
    fresh: _Fresh,
    chance: np.random.Generator,
) -> Array:
    """The unseen point of the largest gain that a search from wide to near finds, `(d,)`."""
    tried = [
        grid.wide(_WIDE, chance),
        grid.near(centres, _LOCAL, _NEAR, chance),
        grid.near(centres, _LOCAL, _NEARER, chance),
    ]
    points = _unseen(np.vstack(tried), seen, grid)
    gains, reach = gain(points), _AROUND
    for _ in range(_ROUNDS):
        parents = fresh.best(points, gains, _PARENTS)
        children = _unseen(grid.near(points[parents], _CHILDREN, reach, chance), seen, grid)
        points = np.vstack([points[parents], children])
        gains = np.append(gains[parents], gain(children))
        reach *= _SHRINK
    return points[fresh.best(points, gains, 1)[0]]


def _unseen(points: Array, seen: Array, grid: _Grid) -> Array:
    """The points that nobody tried yet; all of them where everything was."""
    if len(points) and not grid.finite:
        return points
    known = {row.tobytes() for row in seen.round(_DIGITS)}
    new = np.array([row.tobytes() not in known for row in points.round(_DIGITS)], dtype=bool)
    return points[new] if new.any() else points


def _fitted(points: Array, table: Array, chosen: Sequence[bool]) -> Surrogate:
    """Candidates of one batch are drawn from the same trials: the kernel is found once."""
    key = hashlib.blake2b(points.tobytes() + table.tobytes()).digest()
    if key not in _fits:
        while len(_fits) >= _MOST_FITS:
            del _fits[next(iter(_fits))]
        _fits[key] = fit(points, table, chosen, _FITTED)
    return _fits[key]


@dataclass(frozen=True, slots=True)
class _Grid:
    """Recipes as points `(d,)`: numbers in the unit cube, then choices as places in their lists.

    Attributes:
        dimensions: Of the space.
        cube: Of those that can vary.
    """

    dimensions: Sequence[Dimension]
    cube: Cube

    @property
    def chosen(self) -> list[bool]:
        """Which coordinates are choices."""
        return [False] * len(self.cube.numbers) + [True] * len(self.cube.choices)

    @property
    def finite(self) -> bool:
        """Whether a search may come to the same point again."""
        return len(self.cube.whole) == len(self.cube.numbers)

    def points(self, trials: Sequence[FrozenTrial]) -> Array:
        """The trials', `(trials, d)`."""
        rows = [[*self.cube.point(t.params), *self.cube.picks(t.params)] for t in trials]
        return np.array(rows, np.float64).reshape(len(rows), len(self.chosen))

    def params(self, point: Array) -> dict[str, Any]:
        """The values of a point."""
        numbers = len(self.cube.numbers)
        return self.cube.params(point[:numbers].tolist(), point[numbers:].astype(int).tolist())

    def wide(self, count: int, chance: np.random.Generator) -> Array:
        """Points anywhere, `(count, d)`."""
        points = chance.random((count, len(self.chosen)))
        options = [len(one.choices) for one in self.cube.choices.values()]
        points[:, self.chosen] = np.floor(points[:, self.chosen] * options)
        return self._settled(points)

    def near(self, centres: Array, count: int, reach: float, chance: np.random.Generator) -> Array:
        """Points some of whose coordinates differ from a centre's, `(count, d)`."""
        chosen = np.array(self.chosen)
        share = max(_MOVED_LEAST, min(1.0, _MOVED / len(chosen)))
        moved = chance.random((count, len(chosen))) < share
        moved[np.arange(count), chance.integers(len(chosen), size=count)] = True
        centre = centres[chance.integers(len(centres), size=count)]
        steps = centre + reach * chance.standard_normal(centre.shape)
        other = np.where(chosen, self.wide(count, chance), steps.clip(0, 1))
        return self._settled(np.where(moved, other, centre))

    def _settled(self, points: Array) -> Array:
        """Whole numbers at their places, and what doesn't exist at a point where it is not.

        That is in the middle, or in the first place, as `Cube.point` has it.
        """
        numbers, whole = len(self.cube.numbers), self.cube.whole
        for at, places in enumerate(whole, numbers - len(whole)):
            points[:, at] = np.round(points[:, at] * (places - 1)) / (places - 1)
        deciding = self._deciding
        if not deciding.any():
            return points
        usual = np.where(self.chosen, 0.0, 0.5)
        _, first, which = np.unique(
            points[:, deciding], axis=0, return_index=True, return_inverse=True
        )
        exist = np.array([self._existing(row) for row in points[first]])
        return np.where(exist[which.ravel()], points, usual)

    @property
    def _deciding(self) -> NDArray[np.bool_]:
        """Which coordinates decide whether others exist."""
        named = {name for dimension in self.dimensions for name, _ in dimension.under}
        return np.array([name in named for name in (*self.cube.numbers, *self.cube.choices)])

    def _existing(self, point: Array) -> list[bool]:
        """Which coordinates exist at a point."""
        drawn, values = self.params(point), dict[str, Any]()
        for d in self.dimensions:
            if exists(d, values):  # what can take one value only isn't drawn
                values[d.name] = drawn.get(d.name, lone(d))
        return [name in values for name in (*self.cube.numbers, *self.cube.choices)]


@dataclass(slots=True)
class _Fresh:
    """Tells points whose model nobody tried from those that only look new.

    Attributes:
        grid: Of the points.
        key: Of a model, if it has one.
        known: Keys of the models that were tried.
        found: Keys of the points that were looked at.
    """

    grid: _Grid
    key: Key | None
    known: set[str | None]
    found: dict[bytes, str] = field(default_factory=dict[bytes, str])

    def best(self, points: Array, gains: Array, count: int) -> list[int]:
        """Which points have the largest gains: of new models, or of all where none is new."""
        order: list[int] = np.argsort(-gains, kind="stable").tolist()
        key = self.key
        if key is None:
            return order[:count]
        new = list(islice((at for at in order if self._new(points[at], key)), count))
        return new or order[:count]

    def _new(self, point: Array, key: Key) -> bool:
        place = point.tobytes()
        if place not in self.found:
            if len(self.found) >= _LOOKED:
                return False
            self.found[place] = key(self.grid.params(point))
        return self.found[place] not in self.known


def _model(trial: FrozenTrial) -> str | None:
    return trial.user_attrs.get("fingerprint")
