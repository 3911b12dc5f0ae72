"""Populations of recipes: NSGA-II, and crossover of blocks of layers with its lineage recorded.

Parents are the best of all told trials, whoever proposed them (a known recipe, a usual start,
another sampler), and not only those that this sampler counted into a generation.
"""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import is_
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import NSGAIISampler
from optuna.samplers.nsgaii import PolynomialMutation, SBXCrossover
from optuna.trial import FrozenTrial

from search.genes import Cube, cube, filled, view

LINEAGE = "lineage"  # user attribute: the numbers of the two trials whose child a trial is
PARENTS = 20
_TRIES = 20  # at a child that is not a copy of a recipe known already
_STEPS = (0.02, 0.3)  # of a range; each child draws how far its mutations go

Blocks = tuple[tuple[str, ...], ...]
_chosen: dict[Any, tuple[list[FrozenTrial], list[FrozenTrial]]] = {}

_KNOT = re.compile(r"@(\d+)$")
_ORDER = re.compile(r"(?:^|\.)(origin|layer|piece|cut|overlap)(\d+)$")  # orders of layers
_SLICE = re.compile(r"(?:^|\.)slice(\d+)\.")
_GROUP = re.compile(r"\[([^\]]*)\](?:@\d+)?$")


class Population(NSGAIISampler):
    """NSGA-II (Deb et al. 2002) whose parents are the best of all told trials.

    Where a parent's method lacks a parameter, it has the middle of its range.

    Args:
        known: The space, whole.
        seed: The trial's own seed.
        size: How many parents.
    """

    def __init__(
        self, known: Mapping[str, BaseDistribution], seed: int, size: int = PARENTS
    ) -> None:
        super().__init__(
            population_size=size,
            seed=seed,
            crossover=_Inside(),
            mutation=PolynomialMutation(),
        )
        self._known, self._cube, self._size = dict(known), cube(known), size
        self._parents: list[FrozenTrial] = []

    def get_trial_generation(self, *_: object, **__: object) -> int:
        """All trials are children of the ones told before them."""
        return 1

    def get_population(self, study: Study, *_: object, **__: object) -> list[FrozenTrial]:
        """Whatever the sampler sees: told trials."""
        return study.get_trials(deepcopy=False)

    def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        """The best by domination and then by distance to each other; infeasible ones last."""
        if generation and not self._parents:
            trials = study.get_trials(deepcopy=False)
            self._parents = filled(elite(study, trials, self._size), self._cube)
        return self._parents if generation else []

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A child that is no copy of a told trial."""
        seen = [t.params for t in self.get_population(study)]
        child: dict[str, Any] = {}
        for _ in range(_TRIES):
            child = self._child(study, trial, search_space)
            if not any(all(child.get(k) == v for k, v in params.items()) for params in seen):
                break
        return child

    def _child(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return super().sample_relative(study, trial, search_space)


class _Inside(SBXCrossover):
    """Simulated binary crossover whose children stay in the space.

    Where both parents stand at a wall, Optuna's puts the child 1e-10 beyond it and is then asked
    again until no dimension is outside: with many at a wall, for ever.
    """

    def crossover(
        self,
        parents_params: NDArray[np.float64],
        rng: np.random.RandomState,
        study: Study,
        search_space_bounds: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        child = super().crossover(parents_params, rng, study, search_space_bounds)
        low, high = search_space_bounds.T
        return np.clip(child, low, high)


class Evolution(Population):
    """Children of two recipes: a run of blocks of one in the other, and small mutations.

    Blocks are neighbouring depths (slices, knots), groups of tensors, or models, whichever the
    space has; all dimensions of a block move together. A child's user attribute `lineage` has its
    parents' trial numbers, the one that gave more first.
    """

    def __init__(self, known: Mapping[str, BaseDistribution], seed: int) -> None:
        super().__init__(known, seed)
        self._partitions = partitions(tuple(known))
        self._chance = np.random.default_rng(seed)

    def _child(self, study: Study, trial: FrozenTrial, *_: object, **__: object) -> dict[str, Any]:
        parents = self.get_parent_population(study, 1)
        first, second = (_tournament(len(parents), self._chance) for _ in range(2))
        mother, father = parents[first], parents[second]
        blocks = self._partitions[self._chance.integers(len(self._partitions))]
        child = crossed(mother.params, father.params, blocks, self._chance)
        lineage = [mother.number, father.number]
        study._storage.set_trial_user_attr(trial._trial_id, LINEAGE, lineage)  # pyright: ignore[reportPrivateUsage]
        return mutated(child, self._cube, self._chance)


def elite(study: Study, trials: Sequence[FrozenTrial], count: int) -> list[FrozenTrial]:
    """The best of some trials, by feasibility, domination and distance to each other.

    The trials of a batch ask for the best of the same ones, so the last answer is kept.
    """
    key = count, tuple(study.directions)
    known, best = _chosen.get(key, ([], []))
    if len(known) != len(trials) or not all(map(is_, known, trials)):
        best = Population({}, 0, count).select_parent(view(study, trials), 1)
        _chosen.clear()
        _chosen[key] = list(trials), best
    return best


def partitions(names: Sequence[str]) -> tuple[Blocks, ...]:
    """The ways in which a space falls into blocks, by depth, by group of tensors and by model.

    Args:
        names: Of all dimensions, such as `a.weight[mlp]@0` or `slice1.a.weight`.

    Returns:
        Each way as two blocks or more, in the order in which they are neighbours. A space of one
        block has each dimension for itself.
    """
    ways = [_blocks(names, key) for key in (_depths(names), _groups(names), _owners(names))]
    several = tuple(way for way in dict.fromkeys(ways) if len(way) > 1)
    return several or (tuple((name,) for name in names),)


def crossed(
    mother: Mapping[str, Any],
    father: Mapping[str, Any],
    blocks: Blocks,
    chance: np.random.Generator,
) -> dict[str, Any]:
    """The mother's values, with the father's in a run of at most half of the blocks."""
    count = int(chance.integers(1, max(1, len(blocks) // 2) + 1))
    start = int(chance.integers(len(blocks)))
    run = {name for i in range(count) for name in blocks[(start + i) % len(blocks)]}
    return {name: (father if name in run else mother)[name] for block in blocks for name in block}


def mutated(child: Mapping[str, Any], known: Cube, chance: np.random.Generator) -> dict[str, Any]:
    """One dimension, and with its own chance any other, drawn again near its value.

    Steps are normal, of a size that each child draws for itself; a choice takes any option.
    """
    names = list(child)
    hit = chance.random(len(names)) < 1 / len(names)
    hit[chance.integers(len(names))] = True
    changed = {name for name, one in zip(names, hit, strict=True) if one}
    step = math.exp(chance.uniform(math.log(_STEPS[0]), math.log(_STEPS[1])))
    point, picks = known.point(child), known.picks(child)
    for i, name in enumerate(known.numbers):
        if name in changed:
            point[i] += step * chance.standard_normal()
    for i, (name, one) in enumerate(known.choices.items()):
        if name in changed:
            picks[i] = int(chance.integers(len(one.choices)))
    moved = known.params(point.tolist(), picks)
    return {name: moved[name] if name in changed else child[name] for name in names}


def _tournament(count: int, chance: np.random.Generator) -> int:
    """The better of two; parents come best first."""
    return int(min(chance.integers(count, size=2)))


def _blocks(names: Sequence[str], keys: Mapping[str, Any]) -> Blocks:
    ordered = sorted(names, key=lambda name: keys[name])
    return tuple(tuple(block) for _, block in groupby(ordered, key=lambda name: keys[name]))


def _depths(names: Sequence[str]) -> dict[str, tuple[float, str]]:
    """How deep each dimension acts, 0 to 1; what acts everywhere is a block per model before."""
    slices = 1 + max((int(m[1]) for name in names if (m := _SLICE.search(name))), default=0)
    knots: dict[str, int] = {}
    places: dict[str, int] = {}
    for name in names:
        if order := _ORDER.search(name):
            places[order[1]] = max(places.get(order[1], 0), 1 + int(order[2]))
        if knot := _KNOT.search(name):
            knots[_KNOT.sub("", name)] = 1 + int(knot[1])  # they come in order

    def depth(name: str) -> tuple[float, str]:
        part, knot = _SLICE.search(name), _KNOT.search(name)
        if order := _ORDER.search(name):
            return round((int(order[2]) + 0.5) / places[order[1]], 9), ""
        if not part and not knot:
            return -1.0, _owner(name)
        inner = (int(knot[1]) + 0.5) / knots[_KNOT.sub("", name)] if knot else 0.5
        return round(((int(part[1]) if part else 0) + inner) / slices, 9), ""

    return {name: depth(name) for name in names}


def _groups(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The group of tensors that each dimension acts on; the rest are a block per model."""
    found = {name: _GROUP.search(name) for name in names}
    return {name: (m[1], "") if m else ("", _owner(name)) for name, m in found.items()}


def _owners(names: Sequence[str]) -> dict[str, str]:
    return {name: _owner(name) for name in names}


def _owner(name: str) -> str:
    """The model that a dimension belongs to, or the dimension itself."""
    plain = _SLICE.sub("", name)
    return plain.rpartition(".")[0] or plain
