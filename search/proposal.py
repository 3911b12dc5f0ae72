"""From what was found in the models to a space of 8 to 16 dimensions.

The numbers go where the models' changes differ most: groups of tensors by role where roles were
changed unequally, knots over depth where layers were.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import mean, median

import numpy as np

from merge_core.roles import ROLES
from search.inspection import Inspection

FEWEST, MOST = 8, 16  # dimensions
TRIALS_PER_DIMENSION = 15
_LEAST_PER_DIMENSION = 10  # a smaller budget searches fewer numbers
_MOST_GROUPS, _MOST_KNOTS, _DEEPEST = 4, 4, 8
_WORTH = 0.02  # of all that changed: a role with less gets no number of its own
_FLOOR = 0.1  # of a spread: nothing is known so well that it needs no number
_FAR = 0.3  # of the norm: nearer models are merged equally by lines and by arcs
_USUAL, _NARROWEST, _WIDEST = 1.5, 1.0, 3.0  # upper ends of a weight
_OWN_DENSITIES = 3  # models; more share one


@dataclass(frozen=True, slots=True)
class Change:
    """What a model changed of its base, or of the mean model where there is none.

    Attributes:
        relative: Norm of the change, in norms of what it was changed from.
        shares: Share of each role in the squared change; "other" for tensors without one.
        strengths: Relative change by role.
        thirds: Relative change of the layers' first, middle and last third.
    """

    relative: float
    shares: Mapping[str, float]
    strengths: Mapping[str, float]
    thirds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Space:
    """What to search.

    Attributes:
        methods: One or several to choose from.
        groups: Roles with a number of their own, `"*"` last; empty: one for all tensors.
        knots: Numbers over depth.
        high: Upper end of each expert's weight; empty where weights sum to one.
        densities: How many: none, one for all, or one for each expert.
        dimensions: How many numbers and choices that makes.
        spreads: How unequal the changes are over roles and over depth.
    """

    methods: tuple[str, ...]
    groups: tuple[str, ...]
    knots: int
    high: Mapping[str, float]
    densities: int
    dimensions: int
    spreads: tuple[float, float]


def changes(found: Inspection) -> dict[str, Change]:
    """What each expert changed, by alias, from the sample of its tensors."""
    sketch, experts = found.sketch, found.experts
    origin = found.base or _middle(found)
    lengths = sketch.lengths(origin)
    return {
        alias: _change(sketch.changes(alias, origin), lengths, sketch.roles, sketch.depths)
        for alias in experts
        if alias != origin
    }


def choose_space(found: Inspection, seen: Mapping[str, Change], trials: int | None) -> Space:
    """Choose methods, groups, knots and ranges.

    Args:
        found: The models.
        seen: What they changed.
        trials: The budget, if it is given: a small one searches fewer numbers.
    """
    methods, vectors, densities = _form(found, seen)
    extra = densities + (len(methods) > 1)
    roles = _worth(seen.values())
    spreads = _spreads(seen.values())
    most = MOST if trials is None else min(max(trials // _LEAST_PER_DIMENSION, FEWEST), MOST)
    depth = found.donor.layout.depth
    count, knots = _grid(vectors, extra, (max(len(roles), 1), depth), spreads, most)
    high = {} if found.base is None else _ranges(seen)
    dimensions = vectors * count * knots + extra
    return Space(methods, _groups(roles, count), knots, high, densities, dimensions, spreads)


def default_trials(dimensions: int) -> int:
    """A budget in tens."""
    return math.ceil(TRIALS_PER_DIMENSION * dimensions / 10) * 10


def _middle(found: Inspection) -> str:
    """Where there is no base: the model that is nearest to the others."""
    sketch, experts = found.sketch, found.experts
    return min(experts, key=lambda one: sum(sketch.distance(one, other) for other in experts))


def _change(
    squares: np.ndarray,
    lengths: np.ndarray,
    roles: Sequence[str | None],
    depths: Sequence[float | None],
) -> Change:
    def strength(kept: Sequence[bool]) -> float:
        at = np.array(kept)
        return _root(squares[at].sum(), lengths[at].sum())

    present = [role for role in (*ROLES, None) if role in roles]
    whole = float(squares.sum()) or 1.0
    here = {role: [own == role for own in roles] for role in present}
    shares = {role or "other": float(squares[here[role]].sum()) / whole for role in present}
    strengths = {role or "other": strength(here[role]) for role in present}
    places = [None if depth is None else min(int(3 * depth), 2) for depth in depths]
    thirds = tuple(
        strength([at == third for at in places]) for third in range(3) if third in places
    )
    return Change(_root(squares.sum(), lengths.sum()), shares, strengths, thirds)


def _root(squares: float, lengths: float) -> float:
    return math.sqrt(squares / lengths) if lengths else 0.0


def _form(found: Inspection, seen: Mapping[str, Change]) -> tuple[tuple[str, ...], int, int]:
    """Methods, how many weights a group of tensors has, and how many densities."""
    experts = len(found.experts)
    if found.base is None:
        far = max(change.relative for change in seen.values()) > _FAR
        arc = "nuslerp" if experts == 2 else "multislerp"
        return (("linear", arc) if far else ("linear",)), experts - 1, 0
    if experts == 1:
        return ("task_arithmetic",), 1, 0
    return ("task_arithmetic", "ties"), experts, experts if experts <= _OWN_DENSITIES else 1


def _worth(seen: Iterable[Change]) -> list[str]:
    """Roles that changed enough for a number, those that changed most first."""
    known = list(seen)
    shares = {role: mean(c.shares.get(role, 0.0) for c in known) for role in (*ROLES, "other")}
    kept = [role for role in shares if shares[role] >= _WORTH]
    return sorted(kept, key=lambda role: -shares[role])


def _spreads(seen: Iterable[Change]) -> tuple[float, float]:
    """Standard deviation over mean of the relative changes, over roles and over depth."""
    known = list(seen)
    over_roles = [
        _uneven([c.strengths[role] for role in c.shares if c.shares[role] >= _WORTH]) for c in known
    ]
    return mean(over_roles), mean(_uneven(c.thirds) for c in known)


def _uneven(values: Sequence[float]) -> float:
    return float(np.std(values) / np.mean(values)) if len(values) > 1 and any(values) else 0.0


def _grid(
    vectors: int, extra: int, limits: tuple[int, int], spreads: tuple[float, float], most: int
) -> tuple[int, int]:
    """How many groups and knots: the most useful ones that keep the number of dimensions sane."""
    groups, depth = limits
    over_roles, over_depth = (max(spread, _FLOOR) for spread in spreads)

    def size(option: tuple[int, int]) -> int:
        return vectors * math.prod(option) + extra

    def use(option: tuple[int, int]) -> tuple[float, int]:
        told = over_roles * math.log(option[0]) + over_depth * math.log(option[1])
        return told, -size(option)

    for deepest in (_MOST_KNOTS, _DEEPEST):
        wide, deep = range(1, min(groups, _MOST_GROUPS) + 1), range(1, min(depth, deepest) + 1)
        options = list(product(wide, deep))
        if fitting := [option for option in options if FEWEST <= size(option) <= most]:
            return max(fitting, key=use)
    below = [option for option in options if size(option) < FEWEST]
    return max(below, key=size) if below else min(options, key=size)


def _groups(roles: Sequence[str], count: int) -> tuple[str, ...]:
    """The roles that changed most, in the usual order, and the rest."""
    if count < 2:
        return ()
    own = [role for role in roles if role != "other"][: count - 1]
    return (*(role for role in ROLES if role in own), "*")


def _ranges(seen: Mapping[str, Change]) -> dict[str, float]:
    """Short task vectors may be stretched, long ones need no more than their whole."""
    usual = median(change.relative for change in seen.values())

    def high(change: Change) -> float:
        stretched = _USUAL * usual / change.relative if change.relative else _USUAL
        return round(min(max(stretched, _NARROWEST), _WIDEST), 1)

    return {alias: high(change) for alias, change in seen.items()}
