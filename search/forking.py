"""Going on with a study under other conditions, as far as that is honest.

Optuna never changes a trial that is told. So a study whose question has changed is followed by
another one in the same storage, which the first one names; whoever opens it by its name gets the
last of the chain.

    another weight    every trial is there again, with the value that it has under the new weights,
                      computed from its items; no model is loaded
    anything else     (`--fork`) nothing is comparable, so the new study begins at trial 0; the best
                      candidates of the old one are the first that it tries, also where the order of
                      layers is searched now and wasn't before
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from evals.objective import Reading, objective
from search.dimensions import Choice, Dimension
from search.goals import Goals, Result
from search.known import fingerprint
from search.layouts import Layout
from search.record import (
    STOPPED,
    card_from_dict,
    finished,
    rank_of,
    readings_from_dict,
    readings_to_dict,
)
from search.space import SearchSpace, Values, holes

NEXT, PRIOR, STARTS = "next", "prior", "starts"
"""Attributes of a study: what the next one is called; what it tries first, of the one before and
how many in all."""

_TAKEN = 10  # candidates of the study before
_CARRIED = (
    PRIOR,
    STARTS,
    "norms",
    "figures",
    "practice",
    "baselines",
    "select",
    "looks",
    "samplers",
)


def last_of(study: optuna.Study) -> optuna.Study:
    """The study that now goes by a study's name."""
    while NEXT in study.user_attrs:
        study = _open(study, study.user_attrs[NEXT])
    return study


def only_weights(stored: Mapping[str, Any], stated: Mapping[str, Any]) -> bool:
    """Whether two protocols differ in the weights of their objectives alone."""
    return _unweighted(stored) == _unweighted(stated)


def reweighted(
    study: optuna.Study, goals: Goals, readings: Sequence[Reading], protocol: Mapping[str, Any]
) -> optuna.Study:
    """A study with the same trials under other weights.

    A candidate that was stopped keeps the distance of its estimate from what its items say.

    Args:
        study: With baselines.
        goals: With the new weights.
        readings: Of its benchmarks, with the new weights.
        protocol: As it is now.
    """
    before = readings_from_dict(study)
    told = [
        _retold(t, goals, before, readings) for t in study.get_trials(deepcopy=False) if _ended(t)
    ]
    after = _successor(study)
    after.add_trials(told)
    for name in _CARRIED:
        if name in study.user_attrs:
            after.set_user_attr(name, study.user_attrs[name])
    after.set_user_attr("readings", readings_to_dict(readings))
    return _begun(study, after, protocol)


def forked(study: optuna.Study, space: SearchSpace, protocol: Mapping[str, Any]) -> optuna.Study:
    """A new study that begins with the best candidates of an old one.

    Args:
        study: The old one.
        space: Of the new one.
        protocol: Of the new one.
    """
    different: dict[str, Values] = {}
    for trial in sorted(finished(study), key=rank_of):
        point = _point(space, trial.params) or _same_model(space, trial)
        if point is not None:
            different.setdefault(_key(space, point), point)
        if len(different) == _TAKEN:
            break
    after = _successor(study)
    after.set_user_attr(PRIOR, [dict(point) for point in different.values()])
    return _begun(study, after, protocol)


def with_prior(space: SearchSpace, study: optuna.Study) -> SearchSpace:
    """A space whose first points are those that the study took over from the one before.

    Of the others those that are the same models, however they are written, are left out.
    """
    prior: list[Values] = study.user_attrs.get(PRIOR, [])
    keys = {_key(space, point) for point in prior}
    rest = tuple(point for point in space.points if _key(space, point) not in keys)
    return replace(space, points=(*prior, *rest))


def _retold(
    trial: FrozenTrial, goals: Goals, before: Sequence[Reading], after: Sequence[Reading]
) -> FrozenTrial:
    if trial.state is not TrialState.COMPLETE:
        return trial
    attributes = dict(trial.user_attrs)
    card = card_from_dict(attributes["scorecard"])
    if STOPPED in attributes and not goals.pareto:
        (estimate,) = attributes[STOPPED]["values"]
        moved = objective([card], after, signal=True) - objective([card], before, signal=True)
        values = [estimate + moved]
        attributes[STOPPED] = {**attributes[STOPPED], "values": values}
    elif STOPPED in attributes:
        values = trial.values  # of each objective: a weight changes none, only their mean
        attributes["mean"] = goals.estimated(values)
    else:
        result = Result((card,), attributes.get("figures", {}))
        values = list(goals.values(result))
        if goals.pareto:
            attributes["mean"] = goals.mean(result)
    return create_trial(
        state=trial.state,
        values=values,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=attributes,
        system_attrs=trial.system_attrs,
    )


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


def _ended(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.COMPLETE, TrialState.FAIL)


def _unweighted(protocol: Mapping[str, Any]) -> dict[str, Any]:
    objectives = [{**entry, "weight": None} for entry in protocol["objectives"]]
    return {**protocol, "objectives": objectives}


def _successor(study: optuna.Study) -> optuna.Study:
    """An empty study of the next name; one that a killed process left half-made is made anew."""
    name, _, count = study.study_name.partition("#")
    wanted = f"{name}#{int(count or 1) + 1}"
    storage = study._storage  # pyright: ignore[reportPrivateUsage]
    if wanted in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name=wanted, storage=storage)
    return optuna.create_study(storage=storage, study_name=wanted, directions=study.directions)


def _begun(study: optuna.Study, after: optuna.Study, protocol: Mapping[str, Any]) -> optuna.Study:
    after.set_user_attr("protocol", dict(protocol))
    study.set_user_attr(NEXT, after.study_name)  # the last step: from here on it is the study
    return after


def _open(study: optuna.Study, name: str) -> optuna.Study:
    storage = study._storage  # pyright: ignore[reportPrivateUsage]
    return optuna.load_study(study_name=name, storage=storage)
