"""The search itself: one process proposes and tells; a killed study goes on as if never stopped."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState

from evals.answering import Practice
from evals.guards import Range, ranges
from evals.items import Role
from evals.objective import Reading, objective
from evals.scorecard import Scorecard
from evals.symptoms import worst_of
from merge_core.recipe import Recipe
from search.asking import Asked, Proposer, ask_batch
from search.baselines import AVERAGE, baselines
from search.bench import Bench, Reference, races
from search.errors import NothingFound
from search.evaluators import Evaluators, Job
from search.known import known_names
from search.racing import Leaders, Race
from search.record import (
    Record,
    Stopped,
    by_fingerprint,
    card_from_dict,
    card_to_dict,
    ended,
    keep_practice,
    load,
    readings_from_dict,
    readings_to_dict,
    save,
    saved,
    stored_practice,
)
from search.samplers import choose_sampler
from search.study import Stop
from search.trial import Outcome

_ATTEMPTS = 3  # a candidate that killed the process this often is given up
_FAILURES_IN_A_ROW = 10


class Watcher(Protocol):
    """Whoever shows the progress."""

    def baseline(self, name: str, card: Scorecard, value: float) -> None:
        """A parent or a merge that needs no search was scored on the search items."""

    def scored(self, ways: Sequence[str]) -> None:
        """The first candidates were scored; how, and why so."""

    def trial(self, record: Record, done: int) -> None:
        """A trial ended; `done` counts all that did."""


@dataclass(frozen=True, slots=True)
class Budget:
    """When a search ends.

    Attributes:
        trials: Of the whole study, earlier ones included.
        seconds: Of this run; None for no limit. Candidates that run are finished.
    """

    trials: int
    seconds: float | None = None


def run_search(
    study: optuna.Study,
    bench: Bench,
    evaluators: Evaluators,
    watcher: Watcher,
    stop: Stop,
    budget: Budget,
) -> None:
    """Run trials until the budget is spent or a stop is asked for.

    Args:
        study: Where trials are kept.
        bench: The study made ready.
        evaluators: Where candidates are scored.
        watcher: Is told of every result.
        stop: Checked between candidates.
        budget: When to end.

    Raises:
        NothingFound: If many trials in a row can't be scored.
    """
    start = time.monotonic()
    cards = baseline_cards(study, bench, evaluators)
    late = start + budget.seconds if budget.seconds is not None else math.inf
    search = _Search(study, bench, evaluators, stop, late, _proposer(study, bench), cards)
    for name, card in cards.items():
        watcher.baseline(name, card, objective([card], search.readings, signal=True))
    if ways := evaluators.ways():
        watcher.scored(ways)
    failures = 0
    while not search.halted and search.done < budget.trials:
        for record in search.batch(budget.trials):
            failures = failures + 1 if record.value is None else 0
            watcher.trial(record, search.done)
            if failures >= _FAILURES_IN_A_ROW:
                raise NothingFound(
                    f"{failures} trials in a row could not be scored; the last one: "
                    f"{record.failure}"
                )


def _proposer(study: optuna.Study, bench: Bench) -> Proposer:
    """How to propose; `auto` stays with what it first chose, also under another budget.

    The study keeps from which trial on each sampler proposed.
    """
    search = bench.study.config.search
    used: list[list[Any]] = study.user_attrs.get("samplers", [])
    word, _ = choose_sampler(search.sampler, bench.study.space, search.trials)
    if search.sampler == "auto" and used:
        word = used[-1][1]
    if not used or used[-1][1] != word:
        number = len(study.get_trials(deepcopy=False))
        study.set_user_attr("samplers", [*used, [number, word]])
    return Proposer(word, search.seed, search.batch)


@dataclass(slots=True)
class _Search:
    """What a running search keeps in memory; storage holds all of it too."""

    study: optuna.Study
    bench: Bench
    evaluators: Evaluators
    stop: Stop
    late: float
    proposer: Proposer
    baselines: Mapping[str, Scorecard]
    readings: Sequence[Reading] = field(init=False)
    known: dict[str, int] = field(init=False)
    given: dict[str, str] = field(init=False)
    leaders: Leaders = field(init=False)
    done: int = field(init=False)

    def __post_init__(self) -> None:
        self.readings = readings_from_dict(self.study)
        self.known = {key: trial.number for key, trial in by_fingerprint(self.study).items()}
        self.given = known_names(self.bench.study.space)
        self.leaders = Leaders(self.study)
        self.done = ended(self.study)

    @property
    def halted(self) -> bool:
        """Whether no candidate may begin any more."""
        return self.stop.asked or time.monotonic() >= self.late

    def batch(self, trials: int) -> Iterator[Record]:
        """Ask a batch, have it scored, tell it in the order of its numbers.

        Results are kept as they come, so that one that came early isn't lost with its process.
        """
        asked = ask_batch(self.study, self.bench.study.space, self.proposer, trials)
        records: dict[int, Record] = {}
        told = 0
        for record in self._records(asked, self._race(asked)):
            records[record.number] = record
            while told < len(asked) and (number := asked[told].trial.number) in records:
                self._tell(asked[told].trial, records[number])
                told += 1
                yield records[number]

    def _race(self, asked: Sequence[Asked]) -> Race | None:
        """What the candidates of a batch are held against: the best told before it began."""
        if not asked or not races(self.bench.study.config):
            return None
        begun = asked[0].trial.number // self.proposer.batch * self.proposer.batch
        return Race(self.leaders.before(begun), (tuple(self.readings),))

    def _records(self, asked: Sequence[Asked], race: Race | None) -> Iterator[Record]:
        """The record of each trial, each once it is known."""
        history = self.study.get_trials(deepcopy=False)
        first: dict[str, Asked] = {}
        jobs: list[Asked] = []
        for one in asked:
            stored, key = history[one.trial.number], one.key
            if saved(stored):
                yield self._recovered(stored)
            elif stored.user_attrs.get("attempts", 0) >= _ATTEMPTS:
                yield self._kept(one, self._record(one, _given_up(stored)))
            elif key in self.known:
                told = self.study.get_trials(deepcopy=False)  # perhaps since this batch began
                yield self._kept(one, _reused(one, load(told[self.known[key]])))
            elif key in self.given:
                yield self._kept(one, self._baseline(one, self.given[key]))
            elif first.setdefault(key, one) is one:
                jobs.append(one)
        found: dict[str, Record] = {}
        for position, outcome in self.evaluators.score(
            [Job(one.recipe, Role.SEARCH, race=race) for one in jobs],
            lambda at: self._begin(jobs[at].trial),
        ):
            one = jobs[position]
            keep_practice(self.study, outcome.practice)
            record = found[one.key] = self._kept(one, self._record(one, outcome, race))
            yield record
        for one in asked:  # the same recipe twice in a batch
            key = one.key
            if key in found and first[key] is not one:
                yield self._kept(one, _reused(one, found[key]))

    def _begin(self, trial: optuna.Trial) -> bool:
        """Note that a candidate begins, unless none may any more."""
        if self.halted:
            return False
        trial.set_user_attr("attempts", int(trial.user_attrs.get("attempts", 0)) + 1)
        return True

    def _record(self, one: Asked, outcome: Outcome, race: Race | None = None) -> Record:
        card, verdict = outcome.scorecard, outcome.verdict
        value = None if card is None else self._value(card)
        stopped = None
        if card is not None and race is not None and verdict is not None:
            (value,) = race.values(card, verdict)
            stopped = Stopped(verdict.items, verdict.evidence, value)
        return Record(
            number=one.trial.number,
            recipe=one.recipe,
            value=value,
            scorecard=card,
            failure=outcome.failure,
            merge_seconds=outcome.merge_seconds,
            reused=None,
            flags=outcome.flags,
            stopped=stopped,
        )

    def _baseline(self, one: Asked, name: str) -> Record:
        card = self.baselines[name]
        value, number = self._value(card), one.trial.number
        return Record(number, one.recipe, value, card, None, 0.0, reused=name)

    def _recovered(self, stored: FrozenTrial) -> Record:
        record = load(stored)
        card = record.scorecard
        if card is None:
            return record
        known = record.stopped.value if record.stopped else self._value(card)
        return record.with_value(known)

    def _kept(self, one: Asked, record: Record) -> Record:
        save(one.trial, record)
        return record

    def _value(self, card: Scorecard) -> float:
        return objective([card], self.readings, signal=True)

    def _tell(self, trial: optuna.Trial, record: Record) -> None:
        if record.value is None:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, record.value)
            if record.stopped is None and record.scorecard is not None:
                self.known.setdefault(record.key, record.number)
                self.leaders.add(record.number, (record.value,), record.scorecard)
        self.done += 1


def _reused(one: Asked, earlier: Record) -> Record:
    return Record(
        number=one.trial.number,
        recipe=one.recipe,
        value=earlier.value,
        scorecard=earlier.scorecard,
        failure=earlier.failure,
        merge_seconds=0.0,
        reused=earlier.number,
        flags=earlier.flags,
        stopped=earlier.stopped,
    )


def _given_up(stored: FrozenTrial) -> Outcome:
    attempts = stored.user_attrs["attempts"]
    return Outcome(None, f"given up: the process died {attempts} times while it ran", 0.0)


def baseline_cards(
    study: optuna.Study, bench: Bench, evaluators: Evaluators
) -> dict[str, Scorecard]:
    """Score parents and cheap merges on the search items, once per study.

    The evaluators learn from them what is normal: every candidate is held against the parents.
    """
    stored: dict[str, Any] = study.user_attrs.get("baselines", {})
    if not stored:
        cards, norms, practice = _score_baselines(baselines(bench.study.space), evaluators)
        keep_practice(study, practice)
        study.set_user_attr("readings", readings_to_dict(bench.readings))
        study.set_user_attr("norms", {name: [r.low, r.high] for name, r in norms.items()})
        stored = {name: card_to_dict(card) for name, card in cards.items()}
        study.set_user_attr("baselines", stored)
    # What counts is what is stored, to the last digit, now and after a restart.
    cards = {name: card_from_dict(data) for name, data in stored.items()}
    norms = {n: Range(low, high) for n, (low, high) in study.user_attrs["norms"].items()}
    worst = worst_of([card for name, card in cards.items() if name != AVERAGE])
    evaluators.learn(Reference(norms, worst, stored_practice(study)))
    return cards


def _score_baselines(
    recipes: Mapping[str, Recipe], evaluators: Evaluators
) -> tuple[dict[str, Scorecard], dict[str, Range], Practice | None]:
    names = list(recipes)
    found: dict[str, Outcome] = {}
    practice: Practice | None = None
    jobs = [Job(recipes[name], Role.SEARCH, measure=name != AVERAGE) for name in names]
    for position, outcome in evaluators.score(jobs):
        if outcome.scorecard is None:
            raise NothingFound(f"'{names[position]}' itself can't be scored: {outcome.failure}")
        found[names[position]] = outcome
        if outcome.practice is not None:
            practice = outcome.practice if practice is None else practice.joined(outcome.practice)
    cards = {name: card for name in names if (card := found[name].scorecard)}
    norms = ranges([dict(found[name].norms or {}) for name in names if name != AVERAGE])
    return cards, norms, practice
