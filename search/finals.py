"""From trials to a claim: choose among the best on fresh items, compare on the sealed ones."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import optuna

from evals.compare import Comparison, compare
from evals.items import Role
from evals.objective import objective
from evals.scorecard import Scorecard
from evals.statistics import Gain
from merge_core.recipe import Recipe, from_dict, to_dict
from search.baselines import baselines
from search.bench import Bench
from search.errors import NothingFound
from search.record import Record, card_from_dict, card_to_dict, finished, load
from search.trial import evaluate


@dataclass(frozen=True, slots=True)
class Finalist:
    """A candidate that was scored on the select items too.

    Attributes:
        record: Its trial.
        select: Its scorecard on the select items.
        pooled: The search's objective over search and select items together, by which finalists
            rank.
    """

    record: Record
    select: Scorecard
    pooled: float


@dataclass(frozen=True, slots=True)
class Look:
    """One reading of the holdout.

    Attributes:
        time: When, in UTC, ISO 8601.
        trial: Number of the winner that it was read for.
        recipe: That winner, in mergekit's form.
    """

    time: str
    trial: int
    recipe: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Claim:
    """What `compare` found on the holdout.

    Attributes:
        trial: Number of the winner's trial.
        recipe: The winner.
        cards: Scorecards on the holdout: `winner`, then every reference.
        values: The objective of each of them.
        comparisons: The winner against each reference.
        path: The winner's score, by the metrics, on search, select and holdout items: its luck
            made visible.
        looks: Every reading of the holdout in this study, the first one first.
    """

    trial: int
    recipe: Recipe
    cards: dict[str, Scorecard]
    values: dict[str, float]
    comparisons: tuple[Comparison, ...]
    path: tuple[float, float, float]
    looks: tuple[Look, ...]


WINNER = "winner"


def select_winner(study: optuna.Study, bench: Bench) -> tuple[Finalist, ...]:
    """Score the best trials on the select items and rank them; the first is the winner.

    The ranking pools search and select items: every finalist's search score is inflated by about
    the same luck, and twice the items halve the noise of the choice.

    Raises:
        NothingFound: If no trial has a score.
    """
    cards: dict[str, Any] = study.user_attrs.get("select", {})
    found: list[Finalist] = []
    before = len(cards)
    for record in _best(study, bench.study.config.search.finalists):
        key = record.recipe.fingerprint
        if key not in cards:
            outcome = evaluate(record.recipe, bench, Role.SELECT)
            if outcome.scorecard is None:
                continue
            cards[key] = card_to_dict(outcome.scorecard)
        card = card_from_dict(cards[key])
        found.append(Finalist(record, card, _pooled(record, card, bench)))
    if not found:
        raise NothingFound("no trial of this study has a score; run it first")
    found.sort(key=lambda finalist: (-finalist.pooled, finalist.record.number))
    if len(cards) > before:
        study.set_user_attr("select", cards)
    study.set_user_attr("winner", found[0].record.number)
    return tuple(found)


def winner(study: optuna.Study) -> Record:
    """The winner that `select_winner` last chose.

    Raises:
        NothingFound: If none was chosen yet.
    """
    number = study.user_attrs.get("winner")
    if number is None:
        raise NothingFound("this study has no winner yet; run it first")
    return load(study.get_trials(deepcopy=False)[int(number)])


def claim(study: optuna.Study, bench: Bench) -> Claim:
    """Compare the winner with every parent and the plain average on the holdout.

    The holdout is read once per winner; asking again gives the stored result. Every reading is
    written down before it happens, so that one that is broken off is there as well.

    Raises:
        NothingFound: If there is no winner, or a model can't be scored.
    """
    best = winner(study)
    if (known := stored_claim(study, best.number)) is not None:
        return known
    _look(study, best)
    recipes = {WINNER: best.recipe, **baselines(bench.study.space)}
    # What is compared is what is stored, to the last digit.
    cards = {name: _kept(_holdout(name, recipe, bench)) for name, recipe in recipes.items()}
    benchmarks = bench.harness.benchmarks
    references = {name: card for name, card in cards.items() if name != WINNER}
    found = Claim(
        best.number,
        best.recipe,
        cards,
        {name: objective([card], benchmarks) for name, card in cards.items()},
        compare(cards[WINNER], references, benchmarks),
        _path(study, best, cards[WINNER], bench),
        looks(study),
    )
    study.set_user_attr("claim", _claim_to_dict(found))
    return found


def stored_claim(study: optuna.Study, trial: int) -> Claim | None:
    """What an earlier comparison found for this winner, if there was one."""
    stored: dict[str, Any] | None = study.user_attrs.get("claim")
    return _claim_from_dict(stored) if stored is not None and stored["trial"] == trial else None


def looks(study: optuna.Study) -> tuple[Look, ...]:
    """When and for whom the holdout was read."""
    return tuple(Look(**entry) for entry in study.user_attrs.get("looks", []))


def _look(study: optuna.Study, best: Record) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    known = [asdict(look) for look in looks(study)]
    study.set_user_attr("looks", [*known, asdict(Look(now, best.number, to_dict(best.recipe)))])


def _kept(card: Scorecard) -> Scorecard:
    return card_from_dict(card_to_dict(card))


def _best(study: optuna.Study, count: int) -> list[Record]:
    """The best trials with different recipes, best first."""
    ranked = sorted(finished(study), key=lambda t: (-(t.value or 0.0), t.number))
    chosen: dict[str, Record] = {}
    for trial in ranked:
        if len(chosen) == count:
            break
        chosen.setdefault(trial.user_attrs["fingerprint"], load(trial))
    return list(chosen.values())


def _pooled(record: Record, select: Scorecard, bench: Bench) -> float:
    assert record.scorecard is not None  # only scored trials are finalists
    return objective([record.scorecard, select], bench.harness.benchmarks, signal=True)


def _path(
    study: optuna.Study, best: Record, holdout: Scorecard, bench: Bench
) -> tuple[float, float, float]:
    assert best.scorecard is not None
    select = card_from_dict(study.user_attrs["select"][best.recipe.fingerprint])
    search, chosen, held = (
        objective([card], bench.harness.benchmarks) for card in (best.scorecard, select, holdout)
    )
    return search, chosen, held


def _holdout(name: str, recipe: Recipe, bench: Bench) -> Scorecard:
    outcome = evaluate(recipe, bench, Role.HOLDOUT)
    if outcome.scorecard is None:
        raise NothingFound(f"'{name}' can't be scored on the holdout: {outcome.failure}")
    return outcome.scorecard


def _claim_to_dict(found: Claim) -> dict[str, Any]:
    return {
        "trial": found.trial,
        "recipe": to_dict(found.recipe),
        "cards": {name: card_to_dict(card) for name, card in found.cards.items()},
        "values": found.values,
        "comparisons": [asdict(comparison) for comparison in found.comparisons],
        "path": list(found.path),
        "looks": [asdict(look) for look in found.looks],
    }


def _claim_from_dict(data: dict[str, Any]) -> Claim:
    search, select, holdout = data["path"]
    return Claim(
        data["trial"],
        from_dict(data["recipe"]),
        {name: card_from_dict(card) for name, card in data["cards"].items()},
        data["values"],
        tuple(Comparison(**(c | {"gain": Gain(**c["gain"])})) for c in data["comparisons"]),
        (search, select, holdout),
        tuple(Look(**entry) for entry in data["looks"]),
    )
