"""What storage holds of a trial and how it is read back: the one place with attribute names."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna import Study, Trial
from optuna.trial import FrozenTrial, TrialState

from evals.scorecard import Score, Scorecard, pack, unpack
from merge_core.recipe import Recipe, from_dict, to_dict


@dataclass(frozen=True, slots=True)
class Record:
    """One finished trial.

    Attributes:
        number: The trial's.
        recipe: What was merged.
        value: The study's objective; None where the trial failed.
        scorecard: Scores and per-item results on the search items.
        failure: Why there is no value.
        merge_seconds: Wall time of the merge.
        reused: The earlier trial with the same recipe, whose scores these are.
    """

    number: int
    recipe: Recipe
    value: float | None
    scorecard: Scorecard | None
    failure: str | None
    merge_seconds: float
    reused: int | None


def save(trial: Trial, record: Record) -> None:
    """Put everything but the value into the trial's attributes."""
    trial.set_user_attr("recipe", to_dict(record.recipe))
    trial.set_user_attr("fingerprint", record.recipe.fingerprint)
    trial.set_user_attr("merge_seconds", round(record.merge_seconds, 4))
    if record.scorecard is not None:
        trial.set_user_attr("scorecard", card_to_dict(record.scorecard))
    if record.failure is not None:
        trial.set_user_attr("failure", record.failure)
    if record.reused is not None:
        trial.set_user_attr("reused", record.reused)


def load(trial: FrozenTrial) -> Record:
    """Read a finished trial."""
    attributes = trial.user_attrs
    card = attributes.get("scorecard")
    return Record(
        trial.number,
        from_dict(attributes["recipe"]),
        trial.value if trial.state is TrialState.COMPLETE else None,
        card_from_dict(card) if card else None,
        attributes.get("failure"),
        float(attributes.get("merge_seconds", 0.0)),
        attributes.get("reused"),
    )


def finished(study: Study) -> list[FrozenTrial]:
    """Trials that have a value, by number."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def by_fingerprint(study: Study) -> dict[str, FrozenTrial]:
    """The first scored trial of each recipe."""
    found: dict[str, FrozenTrial] = {}
    for trial in finished(study):
        found.setdefault(trial.user_attrs["fingerprint"], trial)
    return found


def card_to_dict(card: Scorecard) -> dict[str, Any]:
    """A scorecard as JSON."""
    return {
        "scores": [[s.task, s.metric, s.value, s.stderr, s.n, s.unscored] for s in card.scores],
        "items": {
            task: {metric: pack(values) for metric, values in metrics.items()}
            for task, metrics in card.items.items()
        },
        "seconds": round(card.seconds, 3),
    }


def card_from_dict(data: Mapping[str, Any]) -> Scorecard:
    """The inverse of `card_to_dict`."""
    items = {
        task: {metric: unpack(values) for metric, values in metrics.items()}
        for task, metrics in data["items"].items()
    }
    return Scorecard(tuple(Score(*entry) for entry in data["scores"]), items, data["seconds"])


def differences(stored: Any, stated: Any, where: str = "") -> list[str]:
    """Where two JSON values differ: one line for each place."""
    if isinstance(stored, dict) and isinstance(stated, dict):
        lines: list[str] = []
        for key in sorted({*stored, *stated}):  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
            path = f"{where}.{key}" if where else str(key)  # pyright: ignore[reportUnknownArgumentType]
            lines += differences(stored.get(key), stated.get(key), path)  # pyright: ignore
        return lines
    if json.dumps(stored) == json.dumps(stated):
        return []
    return [f"{where}: was {_short(stored)}, is {_short(stated)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
