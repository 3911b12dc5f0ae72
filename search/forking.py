"""Going on with a study under other conditions, as far as that is honest.

Optuna never changes a trial that is told. So a study whose question has changed is followed by
another one in the same storage; see `search.chain`.

    another weight      every trial is there again, with the value that it has under the new
                        weights, computed from its items; no model is loaded
    another question    (`--fork`) the same, where the stored items answer it: `search.retelling`
    anything else       (`--fork`) nothing is comparable, so the new study begins at trial 0; the
                        best candidates of the old one are the first that it tries, also where the
                        order of layers is searched now and wasn't before
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import optuna

from search.bench import Bench
from search.chain import go_on_with, named, successor
from search.dimensions import Choice, Dimension
from search.known import fingerprint
from search.layouts import Layout
from search.record import finished, rank_of
from search.retelling import Retold
from search.space import SearchSpace, Values, holes
from search.starts import starts_within

_TAKEN = 10  # candidates of the study before

_PRIOR, _STARTS, _BEFORE = "prior", "starts", "before"
"""Attributes of a study: what it took over and tries first, how many it tries first in all, and of
which study it took them over."""

_ABSENT: Mapping[str, Any] = {
    "baselines": {},  # the first: without them nothing else is read
    "select": {},
    "readings": [],
    "norms": {},
    "figures": {},
    "practice": None,
    "samplers": [],
    _STARTS: 0,
}
"""What a study stores before its first trial, as whoever reads it takes for missing."""


def rescored(
    study: optuna.Study, found: Retold, bench: Bench, protocol: Mapping[str, Any]
) -> optuna.Study:
    """A new study with the same trials under another question.

    Args:
        study: The old one.
        found: Its trials as they are now.
        bench: The study as its file now says.
        protocol: Of the new one.
    """
    after = successor(study, bench.study.config.values)
    after.add_trials(found.trials)
    for name, value in found.attributes.items():
        after.set_user_attr(name, value)
    return _begun(after, protocol)


def forked(
    study: optuna.Study, space: SearchSpace, values: int, protocol: Mapping[str, Any]
) -> optuna.Study:
    """A new study that begins with the best candidates of an old one.

    Args:
        study: The old one.
        space: Of the new one.
        values: How many values its trials have.
        protocol: Of the new one.
    """
    taken = _taken(study, space)
    after = successor(study, values)
    after.set_user_attr(_PRIOR, taken)
    after.set_user_attr(_BEFORE, study.study_name)
    return _begun(after, protocol)


def untried(study: optuna.Study) -> bool:
    """Whether a study has no trials: then it may be asked anything."""
    return not study.get_trials(deepcopy=False)


def asked_anew(study: optuna.Study, space: SearchSpace, protocol: Mapping[str, Any]) -> None:
    """Ask an untried study another question; of what it has only candidates taken over are left.

    Args:
        study: Without trials, each of which will have as many values as before.
        space: As its file now says.
        protocol: As its file now says.
    """
    taken = _taken(study, space)
    for name, absent in _ABSENT.items():
        if name in study.user_attrs:
            study.set_user_attr(name, absent)
    if _PRIOR in study.user_attrs:
        study.set_user_attr(_PRIOR, taken)
    study.set_user_attr("protocol", dict(protocol))


def prior(study: optuna.Study) -> list[Values]:
    """What a study took over from the one before, to try it first."""
    return study.user_attrs.get(_PRIOR, [])


def with_starts(study: optuna.Study, space: SearchSpace, trials: int) -> SearchSpace:
    """A space with as many points to try first as the budget affords, those taken over before all.

    The study keeps their number, and once all of them are tried another budget doesn't change it:
    numbers of trials are places in the order of what samplers propose.
    """
    space = _with_prior(study, space)
    made = len(study.get_trials(deepcopy=False))
    kept: int = study.user_attrs.get(_STARTS, len(space.points) if made else 0)
    if made <= kept:
        kept = starts_within(space, trials, len(prior(study)))
        study.set_user_attr(_STARTS, kept)
    return replace(space, points=space.points[:kept])


def _with_prior(study: optuna.Study, space: SearchSpace) -> SearchSpace:
    """Points that are models already taken over, however they are written, are left out.

    So are points of another space: a process may die while a study is asked anew.
    """
    first = [point for point in prior(study) if _point(space, point) is not None]
    keys = {_key(space, point) for point in first}
    rest = tuple(point for point in space.points if _key(space, point) not in keys)
    return replace(space, points=(*first, *rest))


def _taken(study: optuna.Study, space: SearchSpace) -> list[Values]:
    """The best candidates of a study, as points of a space: different models."""
    different: dict[str, Values] = {}
    for params, key in _candidates(study):
        point = _point(space, params) or _same_model(space, params, key)
        if point is not None:
            different.setdefault(_key(space, point), point)
        if len(different) == _TAKEN:
            break
    return [dict(point) for point in different.values()]


def _candidates(study: optuna.Study) -> Iterator[tuple[Mapping[str, Any], str | None]]:
    """Parameters and models, if known: the best first, then those of the study before.

    Of all of these, not of what was taken over: what didn't fit in between may fit now.
    """
    for trial in sorted(finished(study), key=rank_of):
        yield trial.params, trial.user_attrs["fingerprint"]
    before = study.user_attrs.get(_BEFORE)
    if before is not None:
        yield from _candidates(named(study, before))
    else:
        yield from ((point, None) for point in prior(study))


def _point(space: SearchSpace, params: Mapping[str, Any]) -> Values | None:
    """The values that a candidate has in another space, or None if some aren't there."""

    def ask(dimension: Dimension) -> Any:
        value = params[dimension.name]
        if isinstance(dimension, Choice):
            inside = value in dimension.options
        else:
            inside = dimension.low <= value <= dimension.high
        if not inside:
            raise KeyError(dimension.name)
        return value

    try:
        return space.draw(ask)
    except (KeyError, TypeError):
        return None


def _same_model(space: SearchSpace, own: Mapping[str, Any], key: str | None) -> Values | None:
    """Values of the same model in a space that searches more of the order of its layers.

    What is new is filled in as it is tried first; where that isn't the same, all of it is.
    """
    layouts = [node for node in holes(space.template) if isinstance(node, Layout)]
    for start in (start for node in layouts for start in node.starts()):
        for params in ({**start, **own}, {**own, **start}):
            point = _point(space, params)
            if point is not None and _key(space, point) == key:
                return point
    return None


def _key(space: SearchSpace, point: Values) -> str:
    return fingerprint(space.decode(point), space.depths)


def _begun(after: optuna.Study, protocol: Mapping[str, Any]) -> optuna.Study:
    after.set_user_attr("protocol", dict(protocol))
    go_on_with(after)  # the last step: from here on it is the study
    return after
