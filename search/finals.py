"""From trials to a claim: choose among the best on fresh items, compare on the sealed ones."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from evals.compare import Comparison, Verdicts, compare
from evals.floors import ParentFloor, Room, room_above, room_of
from evals.items import Role
from evals.objective import item_scores, objective
from evals.scorecard import Scorecard
from evals.shrinkage import shrink
from evals.statistics import Gain
from merge_core.recipe import Recipe, from_dict, to_dict
from search.baselines import baselines, parent_recipe, parents
from search.bench import Bench
from search.chain import all_of
from search.errors import NothingFound
from search.evaluators import Evaluators, Job
from search.goals import Goals, Result, front, spread, violation
from search.known import fingerprint
from search.record import (
    Record,
    baseline_results,
    by_fingerprint,
    card_from_dict,
    card_to_dict,
    finished,
    keep_practice,
    load,
    rank_of,
    stored_card,
    stored_practice,
    value_of,
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
        shrunk: What its search score is worth when all candidates are looked at; None where a
            function is part of it, which has no items to shrink by.
        values: Of each objective over all these items, where the goal is a Pareto front.
        missed: By objective with a limit what it is short of that over all these items.
        on_front: Whether no other finalist is better in all objectives.
    """

    record: Record
    select: Scorecard
    chosen: float
    pooled: float
    shrunk: float | None
    values: tuple[float, ...] | None = None
    missed: Mapping[str, float] = field(default_factory=dict[str, float])
    on_front: bool = True

    @property
    def rank(self) -> tuple[bool, float, float, int]:
        """Smaller is better: the front first, what is missed of limits, then the pooled score."""
        return not self.on_front, violation(self.missed), -self.pooled, self.record.number


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
        looks: Every reading of the holdout by the studies of the name, the first one first.
        rooms: For each objective with a limit whether the winner keeps to it.
        figures: Of objectives without items, by objective and model.
    """

    trial: int
    recipe: Recipe
    cards: dict[str, Scorecard]
    values: dict[str, float]
    verdicts: Verdicts
    path: Path
    looks: tuple[Look, ...]
    rooms: tuple[Room, ...] = ()
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # pyright: ignore


WINNER = "winner"


def select_winner(
    study: optuna.Study, bench: Bench, evaluators: Evaluators
) -> tuple[Finalist, ...]:
    """Score the best trials on the select items and rank them; the first is the winner.

    The ranking pools search and select items: every finalist's search score is inflated by about
    the same luck, and twice the items halve the noise of the choice. What misses a limit ranks
    behind what keeps to all. Of a Pareto front the member with the best weighted mean wins.

    Raises:
        NothingFound: If no trial has a score.
    """
    goals = bench.goals
    best = _best(study, bench.study.config.search.finalists, pareto=goals.pareto)
    rivals = parents(bench.study.space) if best and goals.by_parents else ()
    wanted = {record.key: record.recipe for record in best}
    wanted |= {fingerprint(recipe): recipe for recipe in map(parent_recipe, rivals)}
    cards = _select_cards(study, wanted, evaluators)
    worth = {} if goals.functions else shrunken(study, bench, signal=True)
    measures = _pooled_parents(study, bench, cards)
    found = [
        _finalist(record, card_from_dict(cards[key]), worth.get(key), goals, measures)
        for record in best
        if (key := record.key) in cards
    ]
    if not found:
        raise NothingFound("no trial of this study has a score; run it first")
    if goals.pareto:
        values = [finalist.values or () for finalist in found]
        kept = front(values, [violation(finalist.missed) for finalist in found])
        found = [replace(one, on_front=at in kept) for at, one in enumerate(found)]
        members = [[found[at].record.number, list(values[at])] for at in kept]
        study.set_user_attr("front", members)
    found.sort(key=lambda finalist: finalist.rank)
    before: list[int] = study.user_attrs.get("finalists", [])  # one stays a finalist
    numbers = [finalist.record.number for finalist in found]
    study.set_user_attr("finalists", sorted({*before, *numbers}))
    study.set_user_attr("winner", found[0].record.number)
    return tuple(found)


def _pooled_parents(
    study: optuna.Study, bench: Bench, cards: Mapping[str, Any]
) -> tuple[Result, ...]:
    """Every parent on search and select items, if limits need that; else on the search items."""
    known = baseline_results(study)
    found: list[Result] = []
    for name in parents(bench.study.space):
        result = known[name]
        if bench.goals.by_parents:
            data = cards.get(fingerprint(parent_recipe(name)))
            if data is None:
                raise NothingFound(f"'{name}' can't be scored on the select items")
            result = replace(result, cards=(*result.cards, card_from_dict(data)))
        found.append(result)
    return tuple(found)


def _select_cards(
    study: optuna.Study, wanted: Mapping[str, Recipe], evaluators: Evaluators
) -> dict[str, Any]:
    """Scorecards on the select items by fingerprint; those that are stored aren't made again."""
    cards: dict[str, Any] = study.user_attrs.get("select", {})
    missing = [key for key in wanted if key not in cards]
    jobs = [Job(wanted[key], Role.SELECT) for key in missing]
    for position, outcome in evaluators.score(jobs):
        keep_practice(study, outcome.practice)
        if outcome.scorecard is not None:
            cards[missing[position]] = card_to_dict(outcome.scorecard)
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


def front_of(study: optuna.Study) -> tuple[int, ...]:
    """Trials of the finalists' Pareto front, the winner first; empty where no front was wanted."""
    members = [int(number) for number, _ in study.user_attrs.get("front", ())]
    best = study.user_attrs.get("winner")
    return tuple(sorted(members, key=lambda number: number != best))


def chosen(study: optuna.Study, trial: int | None) -> Record:
    """The winner, or the finalist of another number: any member of a front can be wanted.

    Raises:
        NothingFound: If there is no winner yet, or the trial is no finalist.
    """
    best = winner(study)
    if trial is None or trial == best.number:
        return best
    known = _finalists(study)
    if trial not in known:
        numbers = ", ".join(map(str, known))
        raise NothingFound(f"trial {trial} is no finalist of this study; finalists are {numbers}")
    return load(study.get_trials(deepcopy=False)[trial])


def _finalists(study: optuna.Study) -> list[int]:
    """Numbers of the trials among which a winner was chosen; of equal models the first."""
    if "finalists" in study.user_attrs:
        return study.user_attrs["finalists"]
    select: dict[str, Any] = study.user_attrs["select"]  # of a study that did not keep them
    return sorted(trial.number for key, trial in by_fingerprint(study).items() if key in select)


def claim(study: optuna.Study, bench: Bench, margin: float, trial: int | None = None) -> Claim:
    """Compare the winner with every parent and the merges that need no search on the holdout.

    The holdout is read once per winner; asking again judges the stored scores. Every reading is
    written down before it happens, so that one that is broken off is there as well.

    Args:
        study: A study with a winner.
        bench: With search and holdout items.
        margin: Differences below it don't matter.
        trial: A finalist to compare in the winner's place.

    Raises:
        NothingFound: If there is no winner, or a model can't be scored.
    """
    best = chosen(study, trial)
    recipes = {WINNER: best.recipe, **baselines(bench.study.space)}
    known = stored_claim(study, best.number)
    if known is not None and list(known.cards) == list(recipes):
        cards = known.cards
    else:
        _look(study, best)
        if (practice := stored_practice(study)) is not None:
            bench.harness.answering.adopt(practice)
        # What is compared is what is stored, to the last digit.
        cards = {
            name: stored_card(_holdout(name, recipe, bench)) for name, recipe in recipes.items()
        }
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
    rooms, figures = _rooms(study, best, cards, bench), _figures(study, best, bench)
    claimed = (best.number, best.recipe, cards, values, verdicts, path, looks(study))
    found = Claim(*claimed, rooms, figures)
    study.set_user_attr(_claim_key(study, best.number), _claim_to_dict(found))
    return found


def _claim_key(study: optuna.Study, trial: int) -> str:
    """Where a claim is stored: the winner's, or that of another finalist."""
    return "claim" if trial == study.user_attrs.get("winner") else f"claim {trial}"


def _rooms(
    study: optuna.Study, best: Record, cards: Mapping[str, Scorecard], bench: Bench
) -> tuple[Room, ...]:
    """How far the winner is above each limit.

    A parent's is that of the one that was best on the search items: choosing it on the holdout
    would take its luck for skill.
    """
    known = baseline_results(study)
    names = parents(bench.study.space)
    benchmarks = bench.harness.benchmarks
    clusters = dict(zip((b.name for b in benchmarks), bench.clusters(Role.HOLDOUT), strict=True))
    found: list[Room] = []
    for aim in bench.goals.limited:
        # Of equals the first, as everywhere.
        rival = max(names, key=lambda name, aim=aim: aim.sign * aim.figure(known[name]))
        stated, slack = aim.config.limit, aim.slack
        if aim.benchmark is not None:
            floor = stated if slack is None else ParentFloor(rival, cards[rival], slack)
            assert not isinstance(floor, dict)
            assert floor is not None
            found.append(room_above(aim.benchmark, cards[WINNER], floor, clusters[aim.name]))
        else:
            limit = aim.limit([known[name] for name in names])
            assert limit is not None
            against = None if slack is None else rival
            found.append(room_of(aim.name, best.figures[aim.name], limit, against, aim.sign))
    return tuple(found)


def _figures(study: optuna.Study, best: Record, bench: Bench) -> dict[str, dict[str, float]]:
    """By objective without items, then model: figures that don't depend on a role."""
    stored: dict[str, Any] = study.user_attrs.get("figures", {})
    models: dict[str, Mapping[str, float]] = {WINNER: best.figures, **stored}
    return {
        aim.name: {model: figures[aim.name] for model, figures in models.items()}
        for aim in bench.goals.aims
        if aim.benchmark is None
    }


def stored_claim(study: optuna.Study, trial: int) -> Claim | None:
    """What an earlier comparison found for this winner, if there was one."""
    stored: dict[str, Any] | None = study.user_attrs.get(_claim_key(study, trial))
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
    """When and for whom the holdout was read, by any study of the name that has the same one."""
    alike = [one for one in all_of(study) if _holdout_of(one) == _holdout_of(study)]
    entries: list[dict[str, Any]] = []
    for entry in (entry for one in alike for entry in one.user_attrs.get("looks", [])):
        if entry not in entries:  # re-scored studies have those of the study before
            entries.append(entry)
    return tuple(sorted((Look(**entry) for entry in entries), key=lambda look: look.time))


def _holdout_of(study: optuna.Study) -> list[Any]:
    """What decides which items are sealed."""
    stated: dict[str, Any] = study.user_attrs.get("protocol", {})
    return [stated.get(key) for key in ("items", "contents", "clusters")]


def _look(study: optuna.Study, best: Record) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    known: list[dict[str, Any]] = study.user_attrs.get("looks", [])
    study.set_user_attr("looks", [*known, asdict(Look(now, best.number, to_dict(best.recipe)))])


def _best(study: optuna.Study, count: int, *, pareto: bool) -> list[Record]:
    """The best trials with different recipes, best first; of a Pareto front all over it."""
    ranked: dict[str, FrozenTrial] = {}
    for trial in sorted(finished(study), key=rank_of):
        ranked.setdefault(trial.user_attrs["fingerprint"], trial)
    trials = list(ranked.values())
    if not pareto or not trials:
        return [load(trial) for trial in trials[:count]]
    kept = front([t.values for t in trials], [rank_of(t)[0] for t in trials])
    members = [trials[at] for at in kept]
    means = [value_of(t) or 0.0 for t in members]
    return [load(members[at]) for at in spread([t.values for t in members], means, count)]


def _finalist(
    record: Record,
    select: Scorecard,
    shrunk: float | None,
    goals: Goals,
    measures: Sequence[Result],
) -> Finalist:
    assert record.scorecard is not None  # only scored trials are finalists
    both = Result((record.scorecard, select), record.figures)
    alone = Result((select,), record.figures)
    return Finalist(
        record,
        select,
        goals.mean(alone),
        goals.mean(both),
        shrunk,
        goals.values(both) if goals.pareto else None,
        goals.missed(both, measures),
    )


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
        "rooms": [asdict(room) for room in found.rooms],
        "figures": {name: dict(models) for name, models in found.figures.items()},
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
        tuple(Room(**entry) for entry in data.get("rooms", ())),
        data.get("figures", {}),
    )


def _verdicts_from_dict(data: dict[str, Any]) -> Verdicts:
    overall, tasks = (
        tuple(Comparison(**(c | {"gain": Gain(**c["gain"])})) for c in data[kind])
        for kind in ("overall", "tasks")
    )
    return Verdicts(overall, tasks, data["chances"], data["margin"])
