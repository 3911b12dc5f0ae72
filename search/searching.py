"""The search itself: one process proposes and tells; a killed study goes on as if never stopped."""

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState

from evals.answering import Practice
from evals.guards import Range, ranges
from evals.items import Role
from evals.objective import soft_scales
from evals.scorecard import Scorecard
from evals.symptoms import worst_of
from merge_core.recipe import Recipe
from search.asking import Asked, Proposer, ask, ask_batch
from search.baselines import AVERAGE, baselines, parents
from search.bench import Bench, Reference
from search.errors import NothingFound
from search.evaluators import Evaluators, Job
from search.evidence import reader_of
from search.forking import with_starts
from search.goals import Result, violation
from search.judging import valued
from search.known import known_names
from search.racing import Leaders, Race
from search.record import (
    Record,
    Stopped,
    baseline_results,
    by_fingerprint,
    card_from_dict,
    card_to_dict,
    ended,
    keep_practice,
    load,
    readings_to_dict,
    samplers_of,
    save,
    saved,
    stored_card,
    stored_practice,
)
from search.samplers import UNRACED
from search.space import SearchSpace
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
    known = baseline_results(study)
    space = with_starts(study, bench.study.space, budget.trials)
    proposer = _proposer(study, bench)
    search = _Search(study, bench, evaluators, stop, late, space, proposer, known)
    for name, card in cards.items():
        watcher.baseline(name, card, bench.goals.mean(known[name]))
    if ways := evaluators.ways():
        watcher.scored(ways)
    failures = 0
    while not search.halted and search.done < budget.trials:
        waits = not bench.study.config.search.asynchronous
        for record in (search.batch if waits else search.stream)(budget.trials):
            failures = failures + 1 if record.value is None else 0
            watcher.trial(record, search.done)
            if failures >= _FAILURES_IN_A_ROW:
                raise NothingFound(
                    f"{failures} trials in a row could not be scored; the last one: "
                    f"{record.failure}"
                )


def _proposer(study: optuna.Study, bench: Bench) -> Proposer:
    """How to propose; the study keeps from which trial on each sampler did, and who chose it."""
    search = bench.study.config.search
    used = samplers_of(study)
    word, _ = bench.study.sampler(used)
    if not used or used[-1][1:] != [word, search.sampler]:
        number = len(study.get_trials(deepcopy=False))
        study.set_user_attr("samplers", [*used, [number, word, search.sampler]])
    batch = 1 if search.asynchronous else search.batch
    return Proposer(word, search.seed, batch, reader_of(bench.goals))


@dataclass(slots=True)
class _Search:
    """What a running search keeps in memory; storage holds all of it too."""

    study: optuna.Study
    bench: Bench
    evaluators: Evaluators
    stop: Stop
    late: float
    space: SearchSpace
    proposer: Proposer
    baselines: Mapping[str, Result]
    parents: Sequence[Result] = field(init=False)
    known: dict[str, int] = field(init=False)
    given: dict[str, str] = field(init=False)
    leaders: Leaders = field(init=False)
    done: int = field(init=False)

    def __post_init__(self) -> None:
        self.parents = [self.baselines[name] for name in parents(self.bench.study.space)]
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
        asked = ask_batch(self.study, self.space, self.proposer, trials)
        records: dict[int, Record] = {}
        told = 0
        for record in self._records(asked, self._race(asked)):
            records[record.number] = record
            while told < len(asked) and (number := asked[told].number) in records:
                self._tell(asked[told], records[number])
                told += 1
                yield records[number]

    def stream(self, trials: int) -> Iterator[Record]:
        """Ask whenever somebody is free, from what is told by then; tell results as they come.

        Nobody waits for the slowest of a batch, but what is asked depends on who ended first.
        """
        begun: list[tuple[Asked, Race | None]] = []
        settled: deque[Record] = deque()
        jobs = self._jobs(trials, begun, settled)
        for position, outcome in self.evaluators.score(jobs):
            one, race = begun[position]
            keep_practice(self.study, outcome.practice)
            record = self._kept(one, self._record(one, outcome, race))
            self._tell(one, record)
            settled.append(record)
            while settled:
                yield settled.popleft()
        yield from settled

    def _jobs(
        self, trials: int, begun: list[tuple[Asked, Race | None]], settled: deque[Record]
    ) -> Iterator[Job]:
        """Ask one by one what needs scoring; what needs none is told at once."""
        history = self.study.get_trials(deepcopy=False)
        numbers = [trial.number for trial in history if trial.state is TrialState.RUNNING]
        for number in (*numbers, *range(len(history), trials)):
            if self.halted:
                return
            history = list(self.study.get_trials(deepcopy=False))
            one = ask(self.study, self.space, self.proposer, number, history)
            if (record := self._settled(one)) is not None:
                self._tell(one, record)
                settled.append(record)
                continue
            self._begin(one)
            begun.append((one, self._race([one])))
            yield Job(one.recipe, Role.SEARCH, race=begun[-1][1])

    def _race(self, asked: Sequence[Asked]) -> Race | None:
        """What the candidates of a batch are held against: the best told before it began.

        Not with samplers that take an estimate for as exact as a score (docs/racing.md).
        """
        if not asked or len(self.bench.harness.shares) == 1 or self.proposer.word in UNRACED:
            return None
        begun = asked[0].number // self.proposer.batch * self.proposer.batch
        rows = self.bench.goals.raced()
        return None if rows is None else Race(self.leaders.before(begun), rows)

    def _records(self, asked: Sequence[Asked], race: Race | None) -> Iterator[Record]:
        """The record of each trial, each once it is known."""
        first: dict[str, Asked] = {}
        jobs: list[Asked] = []
        for one in asked:
            if (record := self._settled(one)) is not None:
                yield record
            elif first.setdefault(one.key, one) is one:
                jobs.append(one)
        found: dict[str, Record] = {}
        for position, outcome in self.evaluators.score(
            [Job(one.recipe, Role.SEARCH, race=race) for one in jobs],
            lambda at: self._begin(jobs[at]),
        ):
            one = jobs[position]
            keep_practice(self.study, outcome.practice)
            record = found[one.key] = self._kept(one, self._record(one, outcome, race))
            yield record
        for one in asked:  # the same recipe twice in a batch
            key = one.key
            if key in found and first[key] is not one:
                yield self._kept(one, _reused(one, found[key]))

    def _settled(self, one: Asked) -> Record | None:
        """The record of a trial that needs no scoring; None if it does."""
        stored = one.stored
        if saved(stored):
            return self._recovered(stored)
        if stored.user_attrs.get("attempts", 0) >= _ATTEMPTS:
            return self._kept(one, self._record(one, _given_up(stored)))
        if one.key in self.known:
            told = self.study.get_trials(deepcopy=False)  # perhaps since this batch began
            return self._kept(one, _reused(one, load(told[self.known[one.key]])))
        if one.key in self.given:
            return self._kept(one, self._baseline(one, self.given[one.key]))
        return None

    def _begin(self, one: Asked) -> bool:
        """Note that a candidate begins, unless none may any more."""
        if self.halted:
            return False
        one.set_user_attr("attempts", int(one.stored.user_attrs.get("attempts", 0)) + 1)
        return True

    def _record(self, one: Asked, outcome: Outcome, race: Race | None = None) -> Record:
        record = Record(
            number=one.number,
            recipe=one.recipe,
            value=None,
            scorecard=None if outcome.scorecard is None else stored_card(outcome.scorecard),
            failure=outcome.failure,
            merge_seconds=outcome.merge_seconds,
            reused=None,
            flags=outcome.flags,
            figures=outcome.figures,
            fingerprint=one.key,
        )
        if race is not None and outcome.scorecard is not None and outcome.verdict is not None:
            values = race.values(outcome.scorecard, outcome.verdict)
            verdict = outcome.verdict
            record = replace(record, stopped=Stopped(verdict.items, verdict.evidence, values))
        return self._judged(record)

    def _baseline(self, one: Asked, name: str) -> Record:
        result, number = self.baselines[name], one.number
        (card,) = result.cards
        record = Record(number, one.recipe, None, card, None, 0.0, name, figures=result.figures)
        return self._judged(record)

    def _recovered(self, stored: FrozenTrial) -> Record:
        return self._judged(load(stored))

    def _judged(self, record: Record) -> Record:
        return valued(record, self.bench.goals, self.parents)

    def _kept(self, one: Asked, record: Record) -> Record:
        save(one, record)
        return record

    def _tell(self, one: Asked, record: Record) -> None:
        one.tell(record.told, list(record.missed.values()))
        if record.told and record.stopped is None and record.scorecard is not None:
            self.known.setdefault(one.key, record.number)
            if not violation(record.missed):
                self.leaders.add(record.number, record.told, record.scorecard)
        self.done += 1


def _reused(one: Asked, earlier: Record) -> Record:
    return replace(
        earlier,
        number=one.number,
        recipe=one.recipe,
        merge_seconds=0.0,
        reused=earlier.number,
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
        cards, norms, practice, figures = _score_baselines(baselines(bench.study.space), evaluators)
        keep_practice(study, practice)
        study.set_user_attr("figures", figures)
        parents = [card for name, card in cards.items() if name != AVERAGE]
        bench.scaled(soft_scales(parents, bench.readings))
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
) -> tuple[dict[str, Scorecard], dict[str, Range], Practice | None, dict[str, Any]]:
    names = list(recipes)
    found: dict[str, Outcome] = {}
    practice: Practice | None = None
    jobs = [Job(recipes[name], Role.SEARCH, measure=name != AVERAGE) for name in names]
    # The first one decides alone how requests are answered: two at a time might not agree.
    for begun, part in ((0, jobs[:1]), (1, jobs[1:])):
        for position, outcome in evaluators.score(part):
            name = names[begun + position]
            if outcome.scorecard is None:
                raise NothingFound(f"'{name}' itself can't be scored: {outcome.failure}")
            found[name] = outcome
            if (way := outcome.practice) is not None:
                practice = way if practice is None else practice.joined(way)
        evaluators.learn(Reference({}, {}, practice))
    cards = {name: card for name in names if (card := found[name].scorecard)}
    norms = ranges([dict(found[name].norms or {}) for name in names if name != AVERAGE])
    return cards, norms, practice, {name: dict(found[name].figures) for name in names}
