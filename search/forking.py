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

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from search.bench import Bench
from search.chain import go_on_with, successor
from search.dimensions import Choice, Dimension
from search.known import fingerprint
from search.layouts import Layout
from search.record import finished, rank_of
from search.retelling import Retold
from search.space import SearchSpace, Values, holes
from search.starts import affordable

_TAKEN = 10  # candidates of the study before

_PRIOR, _STARTS = "prior", "starts"
"""Attributes of a study: what it took over and tries first, and how many it tries first in all."""


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
    different: dict[str, Values] = {}
    for trial in sorted(finished(study), key=rank_of):
        point = _point(space, trial.params) or _same_model(space, trial)
        if point is not None:
            different.setdefault(_key(space, point), point)
        if len(different) == _TAKEN:
            break
    after = successor(study, values)
    after.set_user_attr(_PRIOR, [dict(point) for point in different.values()])
    return _begun(after, protocol)


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
        kept = affordable(space, trials, len(prior(study)))
        study.set_user_attr(_STARTS, kept)
    return replace(space, points=space.points[:kept])


def _with_prior(study: optuna.Study, space: SearchSpace) -> SearchSpace:
    """Points that are models already taken over, however they are written, are left out."""
    first = prior(study)
    keys = {_key(space, point) for point in first}
    rest = tuple(point for point in space.points if _key(space, point) not in keys)
    return replace(space, points=(*first, *rest))


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


def _same_model(space: SearchSpace, trial: FrozenTrial) -> Values | None:
    """Values of the same model in a space that searches more of the order of its layers.

    What is new is filled in as it is tried first; where that isn't the same, all of it is.
    """
    layouts = [node for node in holes(space.template) if isinstance(node, Layout)]
    for start in (start for node in layouts for start in node.starts()):
        for params in ({**start, **trial.params}, {**trial.params, **start}):
            point = _point(space, params)
            if point is not None and _key(space, point) == trial.user_attrs["fingerprint"]:
                return point
    return None


def _key(space: SearchSpace, point: Values) -> str:
    return fingerprint(space.decode(point), space.depths)


def _begun(after: optuna.Study, protocol: Mapping[str, Any]) -> optuna.Study:
    after.set_user_attr("protocol", dict(protocol))
    go_on_with(after)  # the last step: from here on it is the study
    return after
