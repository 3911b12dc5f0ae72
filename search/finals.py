"""From trials to a claim: choose among the best on fresh items, compare on the sealed ones."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import optuna

from evals.compare import Comparison, Verdicts, compare
from evals.items import Role
from evals.objective import item_scores, objective
from evals.scorecard import Scorecard
from evals.shrinkage import shrink
from evals.statistics import Gain
from merge_core.recipe import Recipe, from_dict, to_dict
from search.baselines import baselines, parents
from search.bench import Bench
from search.errors import NothingFound
from search.evaluators import Evaluators, Job
from search.record import (
    Record,
    by_fingerprint,
    card_from_dict,
    card_to_dict,
    finished,
    keep_practice,
    load,
    stored_practice,
)
from search.trial import evaluate


@dataclass(frozen=True, slots=True)
class Finalist:
    """A candidate that was scored on the select items too.

    Attributes:
        record: Its trial.
        select: Its scorecard on the select items.
        chosen: The search's objective on the select items.
        pooled: The same over search and select items together, by which finalists rank.
        shrunk: What its search score is worth when all candidates are looked at.
    """

    record: Record
    select: Scorecard
    chosen: float
    pooled: float
    shrunk: float


@dataclass(frozen=True, slots=True)
class Path:
    """The winner's objective from the items that chose it to those that judge it.

    Attributes:
        search: On the search items: the best of all candidates, so it is flattering.
        shrunk: What that is worth by empirical Bayes, without looking at other items.
        select: On the select items, which chose among the finalists.
        holdout: On the holdout.
        rival: The parent that was best on the search items.
        rival_search: Its objective there.
        rival_holdout: Its objective on the holdout.
        candidates: Different recipes that were scored.
    """

    search: float
    shrunk: float
    select: float
    holdout: float
    rival: str
    rival_search: float
    rival_holdout: float
    candidates: int

    @property
    def luck(self) -> float:
        """How much of the winner's lead over its rival the holdout took: the winner's curse.

        The lead and not the score, because one set of items may be harder than another.
        """
        return (self.search - self.rival_search) - (self.holdout - self.rival_holdout)


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
        verdicts: The winner against each reference.
        path: The winner's way from search to holdout: its luck made visible.
        looks: Every reading of the holdout in this study, the first one first.
    """

    trial: int
    recipe: Recipe
    cards: dict[str, Scorecard]
    values: dict[str, float]
    verdicts: Verdicts
    path: Path
    looks: tuple[Look, ...]


WINNER = "winner"


def select_winner(
    study: optuna.Study, bench: Bench, evaluators: Evaluators
) -> tuple[Finalist, ...]:
    """Score the best trials on the select items and rank them; the first is the winner.

    The ranking pools search and select items: every finalist's search score is inflated by about
    the same luck, and twice the items halve the noise of the choice.

    Raises:
        NothingFound: If no trial has a score.
    """
    best = _best(study, bench.study.config.search.finalists)
    cards = _select_cards(study, best, evaluators)
    worth = shrunken(study, bench, signal=True)
    found = [
        _finalist(record, card_from_dict(cards[key]), worth[key], bench)
        for record in best
        if (key := record.key) in cards
    ]
    if not found:
        raise NothingFound("no trial of this study has a score; run it first")
    found.sort(key=lambda finalist: (-finalist.pooled, finalist.record.number))
    study.set_user_attr("winner", found[0].record.number)
    return tuple(found)


def _select_cards(
    study: optuna.Study, best: Sequence[Record], evaluators: Evaluators
) -> dict[str, Any]:
    """Scorecards on the select items by fingerprint; those that are stored aren't made again."""
    cards: dict[str, Any] = study.user_attrs.get("select", {})
    missing = [record for record in best if record.key not in cards]
    jobs = [Job(record.recipe, Role.SELECT) for record in missing]
    for position, outcome in evaluators.score(jobs):
        keep_practice(study, outcome.practice)
        if outcome.scorecard is not None:
            key = missing[position].key
            cards[key] = card_to_dict(outcome.scorecard)
    if missing:
        study.set_user_attr("select", cards)
    return cards


def winner(study: optuna.Study) -> Record:
    """The winner that `select_winner` last chose.

    Raises:
        NothingFound: If none was chosen yet.
    """
    number = study.user_attrs.get("winner")
    if number is None:
        raise NothingFound("this study has no winner yet; run it first")
    return load(study.get_trials(deepcopy=False)[int(number)])


def claim(study: optuna.Study, bench: Bench, margin: float) -> Claim:
    """Compare the winner with every parent and the merges that need no search on the holdout.

    The holdout is read once per winner; asking again judges the stored scores. Every reading is
    written down before it happens, so that one that is broken off is there as well.

    Args:
        study: A study with a winner.
        bench: With search and holdout items.
        margin: Differences below it don't matter.

    Raises:
        NothingFound: If there is no winner, or a model can't be scored.
    """
    best = winner(study)
    recipes = {WINNER: best.recipe, **baselines(bench.study.space)}
    known = stored_claim(study, best.number)
    if known is not None and list(known.cards) == list(recipes):
        cards = known.cards
    else:
        _look(study, best)
        if (practice := stored_practice(study)) is not None:
            bench.harness.answering.adopt(practice)
        # What is compared is what is stored, to the last digit.
        cards = {name: _kept(_holdout(name, recipe, bench)) for name, recipe in recipes.items()}
    benchmarks = bench.harness.benchmarks
    values = {name: objective([card], bench.readings) for name, card in cards.items()}
    verdicts = compare(
        cards,
        [(WINNER, name) for name in cards if name != WINNER],
        benchmarks,
        bench.clusters(Role.HOLDOUT),
        margin,
        parents(bench.study.space),
    )
    path = _path(study, best, values, bench)
    found = Claim(best.number, best.recipe, cards, values, verdicts, path, looks(study))
    study.set_user_attr("claim", _claim_to_dict(found))
    return found


def stored_claim(study: optuna.Study, trial: int) -> Claim | None:
    """What an earlier comparison found for this winner, if there was one."""
    stored: dict[str, Any] | None = study.user_attrs.get("claim")
    if stored is None or stored["trial"] != trial or "verdicts" not in stored:
        return None
    return _claim_from_dict(stored)


def shrunken(study: optuna.Study, bench: Bench, *, signal: bool) -> dict[str, float]:
    """What the search score of every recipe is worth, by fingerprint: see `evals.shrinkage`.

    Args:
        study: With scored trials.
        bench: With the search items.
        signal: Whether of what the search looks at, or of the metrics.
    """
    trials = by_fingerprint(study)
    cards = {key: load(trial).scorecard for key, trial in trials.items()}
    known = {key: card for key, card in cards.items() if card is not None}
    if not known:
        return {}
    scores = (item_scores(card, bench.readings, signal=signal) for card in known.values())
    items = zip(*scores, strict=True)
    weights = [one.weight for one in bench.readings]
    clusters = bench.clusters(Role.SEARCH)
    worth = shrink([np.stack(arrays) for arrays in items], weights, clusters)
    return dict(zip(known, worth.tolist(), strict=True))


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


def _finalist(record: Record, select: Scorecard, shrunk: float, bench: Bench) -> Finalist:
    assert record.scorecard is not None  # only scored trials are finalists
    pooled = objective([record.scorecard, select], bench.readings, signal=True)
    chosen = objective([select], bench.readings, signal=True)
    return Finalist(record, select, chosen, pooled, shrunk)


def _path(study: optuna.Study, best: Record, values: dict[str, float], bench: Bench) -> Path:
    assert best.scorecard is not None
    select = card_from_dict(study.user_attrs["select"][best.key])
    search = objective([best.scorecard], bench.readings)
    searched = {
        alias: objective([card_from_dict(study.user_attrs["baselines"][alias])], bench.readings)
        for alias in parents(bench.study.space)
    }
    rival = max(searched, key=lambda alias: searched[alias])
    return Path(
        search=search,
        shrunk=shrunken(study, bench, signal=False)[best.key],
        select=objective([select], bench.readings),
        holdout=values[WINNER],
        rival=rival,
        rival_search=searched[rival],
        rival_holdout=values[rival],
        candidates=len(by_fingerprint(study)),
    )


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
        "verdicts": asdict(found.verdicts),
        "path": asdict(found.path),
        "looks": [asdict(look) for look in found.looks],
    }


def _claim_from_dict(data: dict[str, Any]) -> Claim:
    return Claim(
        data["trial"],
        from_dict(data["recipe"]),
        {name: card_from_dict(card) for name, card in data["cards"].items()},
        data["values"],
        _verdicts_from_dict(data["verdicts"]),
        Path(**data["path"]),
        tuple(Look(**entry) for entry in data["looks"]),
    )


def _verdicts_from_dict(data: dict[str, Any]) -> Verdicts:
    overall, tasks = (
        tuple(Comparison(**(c | {"gain": Gain(**c["gain"])})) for c in data[kind])
        for kind in ("overall", "tasks")
    )
    return Verdicts(overall, tasks, data["chances"], data["margin"])
