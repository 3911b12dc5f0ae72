"""A study's trials as they are under another question, by what is stored of each item.

No model is loaded. What the models are asked must be the same, prompt by prompt; what is made of
their answers may differ: weights, metrics, signals, directions and limits of the objectives, fewer
of them, and the goal. What isn't stored can't be told: a task, a function or a property of the
model that is new, or a signal that another metric weighs otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from evals.harness import Benchmark, score_of
from evals.items import Role
from evals.objective import Reading, objective, soft_scales
from evals.scorecard import Score, Scorecard
from evals.signals import weighed_alike
from search.baselines import parents
from search.bench import Bench
from search.config import ObjectiveConfig
from search.genes import CONSTRAINTS
from search.goals import Goals, Result
from search.judging import valued
from search.record import (
    STOPPED,
    Stopped,
    card_from_dict,
    load,
    readings_from_dict,
    readings_to_dict,
    resaved,
)

_OF_ANSWERS = ("weight", "metric", "signal", "direction", "floor", "at_most")  # of an objective
_BY_NAME = ("contents", "clusters", "functions")  # of a protocol, by objective
_CARRIED = ("norms", "figures", "practice", "looks", "samplers", "prior", "starts", "before")
_BEGUN = ("recipe", "fingerprint", "attempts")  # what a trial has before it has a result

Card = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Retold:
    """What a study is under another question.

    Attributes:
        trials: All, with the numbers that they had, which are places in the order of proposals and
            which others name; what failed stays failed, what a killed process left is still to do.
        attributes: Of the study.
    """

    trials: tuple[FrozenTrial, ...]
    attributes: Mapping[str, Any]

    @property
    def scored(self) -> int:
        """How many trials have new values."""
        return self._count(TrialState.COMPLETE)

    @property
    def failed(self) -> int:
        """How many trials have none."""
        return self._count(TrialState.FAIL)

    def _count(self, state: TrialState) -> int:
        return sum(trial.state is state for trial in self.trials)


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked now, and what was.

    Attributes:
        goals: Now.
        readings: Of the benchmarks that are left.
        before: How each of all benchmarks was read.
        several: Whether each objective was a value of its own.
        parents: What every parent has on the search items.
    """

    goals: Goals
    readings: Sequence[Reading]
    before: Mapping[str, Reading]
    several: bool
    parents: Sequence[Result]


def only_weights(stored: Mapping[str, Any], stated: Mapping[str, Any]) -> bool:
    """Whether two protocols differ in the weights of their objectives alone."""
    return _unweighted(stored) == _unweighted(stated)


def retold(study: optuna.Study, bench: Bench, stated: Mapping[str, Any]) -> Retold | None:
    """A study's trials under the question that its file asks now.

    Args:
        study: As stored.
        bench: The study as its file says; soft accuracies are then read by the stored margins.
        stated: Its protocol.

    Returns:
        None if what is stored can't answer the question.
    """
    stored, told = study.user_attrs.get("protocol", {}), study.user_attrs
    if not told.get("baselines") or not _asks_the_same(stored, stated):
        return None
    before = {one.name: one for one in readings_from_dict(study)}
    if not all(_readable(one, before[one.name]) for one in bench.readings):
        return None
    if not all(_prompts_kept(one, before[one.name], stored) for one in bench.harness.benchmarks):
        return None
    known = {name: _reread(card, bench) for name, card in told["baselines"].items()}
    trials = study.get_trials(deepcopy=False)
    cards = [_reread(t.user_attrs["scorecard"], bench) if t.values else {} for t in trials]
    baselines = {name: card for name, card in known.items() if card is not None}
    raced = any(STOPPED in trial.user_attrs for trial in trials)
    if len(baselines) < len(known) or None in cards or (raced and bench.goals.raced() is None):
        return None
    figures: dict[str, Any] = told.get("figures", {})
    names = parents(bench.study.space)
    results = [Result((card_from_dict(baselines[n]),), figures.get(n, {})) for n in names]
    bench.scaled(_scales(bench.readings, before, [result.cards[0] for result in results]))
    several = stored.get("goal") == "pareto"
    question = _Question(bench.goals, bench.readings, before, several, results)
    again = [_trial(t, card or {}, question) for t, card in zip(trials, cards, strict=True)]
    select = {key: _reread(card, bench) for key, card in told.get("select", {}).items()}
    attributes = {
        **{name: told[name] for name in _CARRIED if name in told},
        "baselines": baselines,
        "select": {key: card for key, card in select.items() if card is not None},
        "readings": readings_to_dict(bench.readings),
    }
    return Retold(tuple(again), attributes)


def _asks_the_same(stored: Mapping[str, Any], stated: Mapping[str, Any]) -> bool:
    """Whether all that is asked now was asked before, of the same models in the same way.

    Fewer tasks may have other rungs: their items are in other batches anyway.
    """
    before = {_name(entry): _asked(entry) for entry in stored["objectives"]}
    after = {_name(entry): _asked(entry) for entry in stated["objectives"]}
    free = {"objectives", "goal", "prompts", *_BY_NAME}
    if len(stated["prompts"]) < len(stored["prompts"]):
        free.add("rungs")
    return (
        all(before.get(name) == asked for name, asked in after.items())
        and all(_part(stored, key, after) == _part(stated, key, after) for key in _BY_NAME)
        and _without(stored, free) == _without(stated, free)
    )


def _name(entry: Mapping[str, Any]) -> str:
    return ObjectiveConfig.model_construct(**entry).name


def _asked(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: v for key, v in entry.items() if key not in _OF_ANSWERS and v is not None}


def _part(protocol: Mapping[str, Any], key: str, names: Mapping[str, Any]) -> dict[str, Any]:
    return {name: protocol.get(key, {}).get(name) for name in names}


def _without(protocol: Mapping[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in protocol.items() if key not in keys}


def _unweighted(protocol: Mapping[str, Any]) -> dict[str, Any]:
    objectives = [{**entry, "weight": None} for entry in protocol["objectives"]]
    return {**protocol, "objectives": objectives}


def _readable(one: Reading, before: Reading) -> bool:
    """Whether a signal that is stored is the one that the search would look at now."""
    free = (None, "bits_per_byte")  # the latter is the same whatever the metric
    return one.signal in free or weighed_alike(one.metric, before.metric)


def _prompts_kept(one: Benchmark, before: Reading, stored: Mapping[str, Any]) -> bool:
    """Whether the prompts are those of before; their digest has the metric in it."""
    return replace(one, metric=before.metric).digest == stored["prompts"][one.name]


def _reread(data: Card, bench: Bench) -> Card | None:
    """A stored scorecard with the benchmarks and the metrics of now; None if some aren't in it."""
    card = card_from_dict(data)
    before = {score.task: score for score in card.scores}
    scores: list[Score] = []
    for benchmark, one in zip(bench.harness.benchmarks, bench.readings, strict=True):
        score = _score(card, benchmark, one, before[one.name])
        if score is None or score.value is None:
            return None
        scores.append(score)
    names = [score.task for score in scores]
    kept = {**data, "scores": [list(astuple(score)) for score in scores]}
    for part in ("items", "symptoms"):
        if part in data:
            kept[part] = {name: data[part][name] for name in names if name in data[part]}
    return kept


def _score(card: Scorecard, benchmark: Benchmark, one: Reading, before: Score) -> Score | None:
    """A benchmark's figure by the metric of now; None if not all that is read of it is there."""
    results, role = card.items[one.name], card.role or Role.SEARCH
    keys = filter(None, (one.metric, one.signal, one.nats))
    if any(len(results.get(key, ())) < before.n for key in keys):
        return None
    if before.metric == one.metric:
        return before
    known = role in benchmark.items
    return score_of(benchmark, role, results, before.n) if known else None


def _scales(
    readings: Sequence[Reading], before: Mapping[str, Reading], cards: Sequence[Scorecard]
) -> list[float]:
    """By which soft accuracies are read: as they were, or by the parents' margins if they are new.

    Args:
        readings: As they are now.
        before: As they were.
        cards: Of the parents.
    """
    known = {name: old.scale for name, old in before.items() if old.soft}
    found = zip(readings, soft_scales(cards, readings), strict=True)
    return [known.get(one.name, scale) if one.soft else scale for one, scale in found]


def _trial(trial: FrozenTrial, data: Card, question: _Question) -> FrozenTrial:
    if not trial.state.is_finished():
        return _left(trial)
    if not data:
        return trial
    record, card = load(trial), card_from_dict(data)
    stopped = record.stopped
    if stopped is not None:
        assert record.scorecard is not None
        values = _estimates(stopped, record.scorecard, card, question)
        items = sum(score.n for score in card.scores)
        stopped = replace(stopped, values=values, items=items)
    record = replace(record, scorecard=card, stopped=stopped, values=None, missed={})
    record = valued(record, question.goals, question.parents)
    return create_trial(
        state=trial.state,
        values=record.told,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=resaved(trial.user_attrs, record, data),
        system_attrs=_system(trial),
        constraints={f"{at}": missed for at, missed in enumerate(record.missed.values())},
    )


def _left(trial: FrozenTrial) -> FrozenTrial:
    """A trial that a killed process left, without what it may have stored of a result."""
    return create_trial(
        state=trial.state,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={k: v for k, v in trial.user_attrs.items() if k in _BEGUN},
        system_attrs=_system(trial),
    )


def _system(trial: FrozenTrial) -> dict[str, Any]:
    return {k: v for k, v in trial.system_attrs.items() if not k.startswith(CONSTRAINTS)}


def _estimates(
    stopped: Stopped, before: Scorecard, after: Scorecard, question: _Question
) -> tuple[float, ...]:
    """What is estimated of a stopped candidate: each estimate stays as far from what its items say.

    Args:
        stopped: With the values of before, which are made of benchmarks alone.
        before: Its scorecard as it was.
        after: As it is now.
        question: Of now.
    """
    olds, values = question.before, stopped.values
    if question.several:
        known = dict(zip(olds, values, strict=True))
    else:
        ahead = values[0] - objective([before], list(olds.values()), signal=True)
        known = {n: objective([before], [old], signal=True) + ahead for n, old in olds.items()}
    found = [
        known[one.name]
        + objective([after], [one], signal=True)
        - objective([before], [olds[one.name]], signal=True)
        for one in question.readings
    ]
    if question.goals.pareto:
        return tuple(found)
    return (float(np.average(found, weights=[one.weight for one in question.readings])),)
