"""What storage holds of a trial and how it is read back: the one place with attribute names."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import Any, Protocol

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from evals.answering import Practice
from evals.compact import pack, unpack
from evals.items import Role
from evals.objective import Reading
from evals.scorecard import Score, Scorecard
from merge_core.recipe import Recipe, from_dict, to_dict
from search.config import ObjectiveConfig
from search.genes import CONSTRAINTS
from search.genes import violation as violation_of
from search.goals import Aim, Goals, Result, violation
from search.known import fingerprint

_JUDGED = (CONSTRAINTS, "limits", "mean")  # are there where the goals want them
_LAST = "merge_seconds"  # is written after everything else


STOPPED = "stopped"
"""The attribute of a trial that lost its race: it is complete, but its value is an estimate."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """A candidate that had lost before all items were scored.

    Attributes:
        items: Scored, of all benchmarks.
        evidence: The e-value that it is worse than the best by more than the margin.
        values: What each objective is estimated to be.
    """

    items: int
    evidence: float
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """One finished trial.

    Attributes:
        number: The trial's.
        recipe: What was merged.
        value: The weighted mean of the objectives; None where the trial failed.
        scorecard: Scores and per-item results on the search items.
        failure: Why there is no value.
        merge_seconds: Wall time of the merge.
        reused: The earlier trial or the baseline with the same model, whose scores these are.
        flags: What to know before believing its scores.
        stopped: Why not all items were scored; the value is then an estimate.
        values: Of each objective, all to be maximised, where the goal is a Pareto front; else None.
        figures: Of objectives that need no items, by name.
        missed: By objective with a limit what it is short of that: kept at 0 and below.
        fingerprint: As the study stored it, which knows how deep its models are.
    """

    number: int
    recipe: Recipe
    value: float | None
    scorecard: Scorecard | None
    failure: str | None
    merge_seconds: float
    reused: int | str | None
    flags: tuple[str, ...] = ()
    stopped: "Stopped | None" = None
    values: tuple[float, ...] | None = None
    figures: Mapping[str, float] = field(default_factory=dict[str, float])
    missed: Mapping[str, float] = field(default_factory=dict[str, float])
    fingerprint: str | None = field(default=None, compare=False)

    @property
    def key(self) -> str:
        """The same for all recipes that make the same model."""
        return self.fingerprint or fingerprint(self.recipe)

    @property
    def rank(self) -> tuple[float, float, int]:
        """Smaller is better: what is missed of limits, then the value; of equals the earlier."""
        return violation(self.missed), -(self.value or 0.0), self.number

    @property
    def told(self) -> tuple[float, ...] | None:
        """What Optuna is told; None where the trial failed."""
        return None if self.value is None else self.values or (self.value,)


class Notes(Protocol):
    """A trial about which something can be stored."""

    def set_user_attr(self, name: str, value: Any) -> None:
        """Store something about it."""


def described(recipe: Recipe, key: str) -> dict[str, Any]:
    """The attributes that a trial has from its beginning.

    Args:
        recipe: Of the trial.
        key: Its fingerprint.
    """
    return {"recipe": to_dict(recipe), "fingerprint": key}


def save(trial: Notes, record: Record) -> None:
    """Put everything that is known by now but the value into the trial's attributes."""
    if record.scorecard is not None:
        trial.set_user_attr("scorecard", card_to_dict(record.scorecard))
    if record.failure is not None:
        trial.set_user_attr("failure", record.failure)
    if record.reused is not None:
        trial.set_user_attr("reused", record.reused)
    if record.flags:
        trial.set_user_attr("flags", list(record.flags))
    if record.stopped is not None:
        trial.set_user_attr(STOPPED, asdict(record.stopped))
    if record.figures:
        trial.set_user_attr("figures", dict(record.figures))
    if record.missed:
        trial.set_user_attr(CONSTRAINTS, list(record.missed.values()))
        trial.set_user_attr("limits", list(record.missed))
    if record.values is not None:
        trial.set_user_attr("mean", record.value)
    trial.set_user_attr(_LAST, round(record.merge_seconds, 4))


def resaved(
    attributes: Mapping[str, Any], record: Record, card: Mapping[str, Any]
) -> dict[str, Any]:
    """A trial's attributes with another result.

    Args:
        attributes: As they were.
        record: The result.
        card: Its scorecard as JSON, which isn't rounded a second time.
    """
    notes = _Attributes({k: v for k, v in attributes.items() if k not in _JUDGED})
    save(notes, record)
    return {**notes, "scorecard": dict(card)}


class _Attributes(dict[str, Any]):
    def set_user_attr(self, name: str, value: Any) -> None:
        self[name] = value


def saved(trial: FrozenTrial) -> bool:
    """Whether all of a trial's result is there, though it may not be told yet."""
    return _LAST in trial.user_attrs


def load(trial: FrozenTrial) -> Record:
    """Read a finished trial."""
    attributes = trial.user_attrs
    card = attributes.get("scorecard")
    value = value_of(trial)
    several = value is not None and "mean" in attributes
    limits: list[str] = attributes.get("limits", [])
    return Record(
        trial.number,
        from_dict(attributes["recipe"]),
        value,
        card_from_dict(card) if card else None,
        attributes.get("failure"),
        float(attributes.get("merge_seconds", 0.0)),
        attributes.get("reused"),
        tuple(attributes.get("flags", ())),
        _stopped(attributes.get(STOPPED)),
        tuple(trial.values) if several else None,
        attributes.get("figures", {}),
        dict(zip(limits, attributes.get(CONSTRAINTS, ()), strict=True)),
        attributes.get("fingerprint"),
    )


def _stopped(data: dict[str, Any] | None) -> Stopped | None:
    if data is None:
        return None
    return Stopped(data["items"], data["evidence"], tuple(data["values"]))


def value_of(trial: FrozenTrial) -> float | None:
    """A trial's weighted mean of the objectives; None where it has no value."""
    if trial.state is not TrialState.COMPLETE or not trial.values:
        return None
    return float(trial.user_attrs.get("mean", trial.values[0]))


def rank_of(trial: FrozenTrial) -> tuple[float, float, int]:
    """As `Record.rank`, without reading the record."""
    return violation_of(trial), -(value_of(trial) or 0.0), trial.number


def baseline_results(study: Study) -> dict[str, Result]:
    """What is known of each baseline on the search items, as it is stored.

    Not as it was first computed: a resumed study has to have the same limits to the last digit.
    """
    stored: dict[str, Any] = study.user_attrs["baselines"]
    figures: dict[str, Any] = study.user_attrs.get("figures", {})
    return {
        name: Result((card_from_dict(data),), figures.get(name, {}))
        for name, data in stored.items()
    }


def finished(study: Study) -> list[FrozenTrial]:
    """Trials that were scored on all search items, by number."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [trial for trial in complete if STOPPED not in trial.user_attrs]


def best_of(study: Study) -> Record | None:
    """The best trial so far; None if none was scored on all items."""
    best = min(finished(study), key=rank_of, default=None)
    return None if best is None else load(best)


def ended(study: Study) -> int:
    """How many trials have a result, of whatever kind."""
    states = (TrialState.COMPLETE, TrialState.FAIL)
    return len(study.get_trials(deepcopy=False, states=states))


def by_fingerprint(study: Study) -> dict[str, FrozenTrial]:
    """The first scored trial of each recipe."""
    found: dict[str, FrozenTrial] = {}
    for trial in finished(study):
        found.setdefault(trial.user_attrs["fingerprint"], trial)
    return found


def recompute(
    study: Study,
    weights: Mapping[str, float] | None = None,
    *,
    metrics: Mapping[str, str] | None = None,
    items: Mapping[str, Sequence[int]] | None = None,
    signal: bool = True,
) -> dict[int, Record]:
    """Every trial as it would have been under another question; no model is loaded.

    What has no items stays as it was measured, a user's function for one. So do limits, which are
    about the study's own metrics over all search items: `Record.rank` still ranks who misses some
    behind who keeps all.

    Args:
        study: One whose baselines are scored.
        weights: What each benchmark and function counts; default the study's. One that isn't named
            counts 0.
        metrics: Other metrics (or signals) to judge by, as scorecards call them, by benchmark.
        items: Of each benchmark the positions of the items to judge by; default all.
        signal: Whether to judge by the search's signals where no other metric is given.

    Returns:
        Records by trial number, of the trials that were scored on all items, with their values
        under the question.

    Raises:
        KeyError: If an objective, a metric or the readings themselves aren't there.
    """
    readings = [_asked(one, metrics, signal=signal) for one in readings_from_dict(study)]
    if items is not None:
        readings = [replace(one, members=_some(one, items)) for one in readings]
    whole, each = _goals(study, readings, weights), _goals(study, readings)
    found: dict[int, Record] = {}
    for trial in finished(study):
        record = load(trial)
        assert record.scorecard is not None
        result = Result((_cut(record.scorecard, items),), record.figures)
        values = each.values(result) if each.pareto else None
        found[trial.number] = replace(record, value=whole.mean(result), values=values)
    return found


def _goals(
    study: Study, readings: Sequence[Reading], weights: Mapping[str, float] | None = None
) -> Goals:
    """What a study wants, as far as scores and stored figures tell, with these weights."""
    stated: dict[str, Any] = study.user_attrs["protocol"]
    known = {one.name: one for one in readings}
    aims: list[Aim] = []
    for entry in stated["objectives"]:
        config = ObjectiveConfig.model_construct(**entry)
        reading = known.get(config.name)
        if weights is not None:
            weight = weights.get(config.name, 0.0)
            config = config.model_copy(update={"weight": weight})
            reading = None if reading is None else replace(reading, weight=weight)
        aims.append(Aim(config, reading=reading))
    if missing := set(weights or ()) - {aim.name for aim in aims}:
        names = ", ".join(aim.name for aim in aims)
        raise KeyError(f"the study has no objective '{min(missing)}'; it has {names}")
    return Goals(tuple(aims), stated.get("goal") == "pareto")


def samplers_of(study: Study) -> list[list[Any]]:
    """What proposed in a study so far, as `search.samplers.Used` says."""
    return study.user_attrs.get("samplers", [])


def readings_to_dict(readings: Sequence[Reading]) -> list[dict[str, Any]]:
    """How to read results, as JSON."""
    return [asdict(one) for one in readings]


def readings_from_dict(study: Study) -> list[Reading]:
    """How to read a study's results, as its search stored it."""
    return [Reading(**entry) for entry in study.user_attrs["readings"]]


def card_to_dict(card: Scorecard) -> dict[str, Any]:
    """A scorecard as JSON; its per-item results are rounded as `evals.compact` says."""
    data: dict[str, Any] = {
        "scores": [list(astuple(score)) for score in card.scores],
        "items": {
            task: {metric: pack(values) for metric, values in metrics.items()}
            for task, metrics in card.items.items()
        },
        "seconds": round(card.seconds, 3),
    }
    if card.role is not None:
        data["role"] = card.role.value
    if card.symptoms:
        data["symptoms"] = {task: dict(rates) for task, rates in card.symptoms.items()}
    return data


def stored_card(card: Scorecard) -> Scorecard:
    """A card as it is read back: what is judged is what is kept, to the last digit."""
    return card_from_dict(card_to_dict(card))


def card_from_dict(data: Mapping[str, Any]) -> Scorecard:
    """The inverse of `card_to_dict`."""
    items = {
        task: {metric: unpack(values) for metric, values in metrics.items()}
        for task, metrics in data["items"].items()
    }
    scores = tuple(Score(*entry) for entry in data["scores"])
    role = Role(data["role"]) if "role" in data else None
    return Scorecard(scores, items, data["seconds"], role, data.get("symptoms", {}))


def keep_practice(study: Study, found: Practice | None) -> None:
    """Write down how requests are answered, where that isn't known of the study yet.

    Before the results are written that were made so: none must be without it.
    """
    known = stored_practice(study)
    joined = found if known is None or found is None else known.joined(found)
    if joined is not None and joined != known:
        study.set_user_attr("practice", asdict(joined))


def stored_practice(study: Study) -> Practice | None:
    """How this study's requests are answered."""
    data = study.user_attrs.get("practice")
    if data is None:
        return None
    return Practice(data["sequences"], {k: (s, way) for k, (s, way) in data["gates"].items()})


def _asked(one: Reading, metrics: Mapping[str, str] | None, *, signal: bool) -> Reading:
    if metrics is not None and one.name in metrics:
        return replace(one, metric=metrics[one.name], signal=None)
    return one if signal else replace(one, signal=None)


def _cut(card: Scorecard, items: Mapping[str, Sequence[int]] | None) -> Scorecard:
    if items is None:
        return card
    kept = {
        task: {
            metric: [values[at] for at in items.get(task, range(len(values)))]
            for metric, values in metrics.items()
        }
        for task, metrics in card.items.items()
    }
    return replace(card, items=kept)


def _some(one: Reading, items: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """The members of the search items that are kept."""
    if one.name not in items:
        return dict(one.members)
    members = one.members.get(Role.SEARCH, ())
    return {Role.SEARCH.value: tuple(members[at] for at in items[one.name])} if members else {}
