"""The search itself: one process proposes and tells; a killed study goes on as if never stopped."""

import signal
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from evals.guards import Range, norm, ranges
from evals.items import Role
from evals.objective import objective, reading
from evals.scorecard import Scorecard
from evals.symptoms import worst_of
from search.baselines import AVERAGE, baselines
from search.bench import Bench, CheckedStudy, protocol
from search.errors import NothingFound, ProtocolError
from search.known import fingerprint, known_name
from search.record import (
    Record,
    by_fingerprint,
    card_from_dict,
    card_to_dict,
    differences,
    load,
    readings_to_dict,
    save,
)
from search.samplers import Drawn, sampler_for
from search.space import Choice, Dimension, Real, SearchSpace, Values
from search.storage import open_storage
from search.trial import Outcome, evaluate

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


class Stop:
    """Set by the first Ctrl-C: finish the running trial, then stop."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def open_study(checked: CheckedStudy) -> Generator[optuna.Study]:
    """Open or create the Optuna study of a study file; holds its storage meanwhile."""
    with open_storage(checked.storage, checked.folder) as storage:
        yield _load(storage, checked.config.name)


def keep_protocol(study: optuna.Study, bench: Bench) -> None:
    """Refuse a study whose trials were made under other conditions.

    Raises:
        ProtocolError: With every difference.
    """
    stated = protocol(bench)
    stored = study.user_attrs.get("protocol")
    if stored is None:
        study.set_user_attr("protocol", stated)
        return
    if changed := differences(stored, stated):
        raise ProtocolError(
            [
                *changed,
                "its trials can't be compared with new ones; undo the change, or give the study "
                "another name to begin anew",
            ],
            f"study '{bench.study.config.name}' was made under other conditions",
        )


def run_search(study: optuna.Study, bench: Bench, watcher: Watcher, stop: Stop) -> None:
    """Run trials until the budget is spent or a stop is asked for.

    Raises:
        NothingFound: If many trials in a row can't be scored.
    """
    for name, card in baseline_cards(study, bench).items():
        watcher.baseline(name, card, objective([card], bench.harness.benchmarks, signal=True))
    if ways := bench.harness.answering.ways:
        watcher.scored(ways)
    failures = 0
    while not stop.asked and (done := _ended(study)) < bench.study.config.search.trials:
        record = run_trial(study, bench)
        failures = failures + 1 if record.value is None else 0
        watcher.trial(record, done + 1)
        if failures >= _FAILURES_IN_A_ROW:
            raise NothingFound(
                f"{failures} trials in a row could not be scored; the last one: {record.failure}"
            )


def run_trial(study: optuna.Study, bench: Bench) -> Record:
    """Ask, merge, score, tell."""
    trial = next_trial(study, bench)
    recipe = bench.study.space.decode(suggest(trial, bench.study.space))
    attempts = int(trial.user_attrs.get("attempts", 0)) + 1
    trial.set_user_attr("attempts", attempts)
    record = _try(study, bench, trial.number, recipe, attempts)
    save(trial, record)
    if record.value is None:
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, record.value)
    return record


def next_trial(study: optuna.Study, bench: Bench) -> optuna.Trial:
    """The trial that a killed process left behind, or a new one.

    The sampler is made anew from the trials told so far, so both get the values that an
    uninterrupted study would have given them. What a sampler draws at once is stored at once: its
    model may see the trial's own first values when it is asked for the rest. Failing the orphan
    instead would shift all numbers after it, and CMA-ES would lose the point from its generation.
    """
    history = study.get_trials(deepcopy=False)
    orphan = next((t for t in history if t.state is TrialState.RUNNING), None)
    number = orphan.number if orphan else len(history)
    word, _ = bench.study.sampler
    seed = bench.study.config.search.seed
    study.sampler = sampler_for(word, bench.study.space, history, seed, number)
    if orphan and "drawn" in orphan.user_attrs:
        study.sampler = Drawn(orphan.user_attrs["drawn"], study.sampler)
    trial = optuna.Trial(study, orphan._trial_id) if orphan else study.ask()  # pyright: ignore[reportPrivateUsage]
    if "drawn" not in trial.user_attrs:
        trial.set_user_attr("drawn", trial.relative_params)
    return trial


def suggest(trial: optuna.Trial, space: SearchSpace) -> Values:
    """Draw a coordinate of every dimension that exists under those before it, in order."""

    def ask(dimension: Dimension) -> Any:
        if isinstance(dimension, Choice):
            return trial.suggest_categorical(dimension.name, dimension.options)
        low, high, log = dimension.low, dimension.high, dimension.log
        if isinstance(dimension, Real):
            return trial.suggest_float(dimension.name, low, high, log=log)
        return trial.suggest_int(dimension.name, dimension.low, dimension.high, log=log)

    return space.draw(ask)


def baseline_cards(study: optuna.Study, bench: Bench) -> dict[str, Scorecard]:
    """Score parents and cheap merges on the search items, once per study.

    The bench learns from them what is normal: its guards hold every candidate against the parents.
    """
    stored: dict[str, Any] = study.user_attrs.get("baselines", {})
    cards = {name: card_from_dict(data) for name, data in stored.items()}
    if not stored:
        cards, norms = _score_baselines(bench)
        known = [
            reading(one, cards[AVERAGE if AVERAGE in cards else next(iter(cards))])
            for one in bench.harness.benchmarks
        ]
        study.set_user_attr("readings", readings_to_dict(known))
        study.set_user_attr("norms", {name: [r.low, r.high] for name, r in norms.items()})
        study.set_user_attr("baselines", {n: card_to_dict(card) for n, card in cards.items()})
    bench.norms = {n: Range(low, high) for n, (low, high) in study.user_attrs["norms"].items()}
    bench.worst = worst_of([card for name, card in cards.items() if name != AVERAGE])
    bench.looked.clear()  # what was looked at before was not held against the parents
    return cards


def _score_baselines(bench: Bench) -> tuple[dict[str, Scorecard], dict[str, Range]]:
    cards: dict[str, Scorecard] = {}
    norms: list[dict[str, float]] = []
    for name, recipe in baselines(bench.study.space).items():
        outcome = evaluate(recipe, bench, Role.SEARCH)
        if outcome.scorecard is None:
            raise NothingFound(f"'{name}' itself can't be scored: {outcome.failure}")
        cards[name] = outcome.scorecard
        if name != AVERAGE:
            slots = bench.workbench.slots.items()
            norms.append({at: norm(slot) for at, slot in slots if slot.is_floating_point()})
    return cards, ranges(norms)


@contextmanager
def stop_on_interrupt() -> Generator[Stop]:
    """Ctrl-C (or SIGTERM) once: finish the running trial; twice: drop it, to be retried later."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(_: int, __: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _load(storage: BaseStorage, name: str) -> optuna.Study:
    return optuna.create_study(
        storage=storage, study_name=name, direction="maximize", load_if_exists=True
    )


def _ended(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL)))


def _try(study: optuna.Study, bench: Bench, number: int, recipe: Any, attempts: int) -> Record:
    seen = by_fingerprint(study).get(fingerprint(recipe))
    name = known_name(bench.study.space, recipe)
    if seen is None and name is not None:
        card = card_from_dict(study.user_attrs["baselines"][name])
        value = objective([card], bench.harness.benchmarks, signal=True)
        return Record(number, recipe, value, card, None, 0.0, None)
    if seen is not None:
        earlier = load(seen)
        card, flags = earlier.scorecard, earlier.flags
        return Record(number, recipe, earlier.value, card, None, 0.0, seen.number, flags)
    if attempts > _ATTEMPTS:
        reason = f"given up: the process died {attempts - 1} times while it ran"
        outcome = Outcome(None, reason, 0.0)
    else:
        outcome = evaluate(recipe, bench, Role.SEARCH)
    card = outcome.scorecard
    value = None if card is None else objective([card], bench.harness.benchmarks, signal=True)
    seconds, flags = outcome.merge_seconds, outcome.flags
    return Record(number, recipe, value, card, outcome.failure, seconds, None, flags)
