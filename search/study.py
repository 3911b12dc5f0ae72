"""A study in its storage: opened, held, and kept to the conditions under which it was made."""

import signal
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from search.bench import Bench, CheckedStudy, foreseen_protocol, protocol
from search.chain import go_on_with, last_of, made_under
from search.config import StudyConfig
from search.differences import differences
from search.errors import ProtocolError
from search.forking import asked_anew, forked, prior, rescored, untried
from search.record import ended, finished, readings_from_dict
from search.retelling import Retold, only_weights, retold
from search.sizes import counted
from search.storage import open_storage

_UNSEEN = ("prompts", "rungs")  # what a protocol may have that only the model tells


class Stop:
    """Set by the first Ctrl-C: finish the running trial, then stop."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def open_study(checked: CheckedStudy) -> Generator[optuna.Study]:
    """Open or create the Optuna study of a study file; holds its storage meanwhile."""
    with open_storage(checked.storage, checked.folder, checked.config.name) as storage:
        yield last_of(_load(storage, checked.config))


def foresee_protocol(study: optuna.Study, checked: CheckedStudy) -> None:
    """Refuse what `keep_protocol` would, as far as it shows without a model.

    Prompts are made with the model: whether they changed alone is not seen here.

    Args:
        study: As stored; is only read.
        checked: As its file now says.

    Raises:
        ProtocolError: With every difference that shows.
    """
    stored = study.user_attrs.get("protocol")
    if stored is None or untried(study):
        return
    foreseen = foreseen_protocol(checked)
    unseen = {key: stored[key] for key in _UNSEEN if key in stored and key not in foreseen}
    stated = {**unseen, **foreseen}
    changed = differences(stored, stated)
    again = only_weights(stored, stated) and "baselines" in study.user_attrs
    if not changed or again or made_under(study, stated, unseen) is not None:
        return
    raise _other_conditions(changed, study, _ANEW)


def keep_protocol(
    study: optuna.Study,
    bench: Bench,
    *,
    fork: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> optuna.Study:
    """Go on with a study under the conditions under which its trials were made.

    Args:
        study: As stored.
        bench: The study as its file now says.
        fork: Whether to begin a new one where the conditions have changed.
        tell: Is told if it isn't the same study that is gone on with, and why.

    Returns:
        The study to go on with: another one if its question has changed, see `search.forking`, or
        an earlier one of the name that was made under these conditions.

    Raises:
        ProtocolError: With every difference.
    """
    kept = _kept(study, bench, fork, tell)
    if kept.user_attrs.get("readings"):
        bench.scaled([one.scale for one in readings_from_dict(kept)])
    return kept


def _kept(
    study: optuna.Study, bench: Bench, fork: bool, tell: Callable[[str], None]
) -> optuna.Study:
    stated = protocol(bench)
    stored = study.user_attrs.get("protocol")
    if stored is None:
        return _unasked(study, bench, stated)
    changed = differences(stored, stated)
    if not changed:
        return study
    weights = only_weights(stored, stated)
    if not weights and (earlier := made_under(study, stated)) is not None:
        go_on_with(earlier)
        tell(_gone_back(earlier))
        return earlier
    found = retold(study, bench, stated)
    if found is not None and (weights or fork or untried(study)):
        after = rescored(study, found, bench, stated)
        tell(_told_again(study, after, found))
        return after
    if untried(study):
        after = _unasked(study, bench, stated)
        tell(_asked_anew(after))
        return after
    if fork:
        after = forked(study, bench.study.space, bench.study.config.values, stated)
        tell(_begun_anew(study, after))
        return after
    raise _other_conditions(changed, study, _advice(found))


def _unasked(study: optuna.Study, bench: Bench, stated: Mapping[str, Any]) -> optuna.Study:
    """Go on with a study without trials; another number of values needs a study of its own."""
    space, values = bench.study.space, bench.study.config.values
    if len(study.directions) != values:
        return forked(study, space, values, stated)
    asked_anew(study, space, stated)
    return study


def _other_conditions(changed: list[str], study: optuna.Study, advice: str) -> ProtocolError:
    where = f"study '{study.study_name}' was made under other conditions"
    return ProtocolError(changed, where, advice)


_WAYS = "undo the change, give the study another name to begin anew, or run it with --fork:"
_ANEW = (
    f"its trials can't be compared with new ones; {_WAYS} a new study with the same trials where "
    "their stored results answer it, else one that tries the best candidates of this one first"
)


def _advice(found: Retold | None) -> str:
    """What to do about other conditions."""
    if found is None:
        return (
            f"its trials can't be compared with new ones; {_WAYS} a new study that tries the best "
            "candidates of this one first"
        )
    return (
        f"its trials have to be judged anew; {_WAYS} a new study with the same trials, of which "
        f"{found.scored:,} are re-scored by their stored results, without a model"
    )


def _gone_back(study: optuna.Study) -> str:
    return (
        f"Goes on with study '{study.study_name}' of the storage, which was made under just these "
        f"conditions and has {ended(study):,} trials"
    )


def _told_again(study: optuna.Study, after: optuna.Study, found: Retold) -> str:
    return (
        f"Goes on with study '{after.study_name}': {found.scored:,} trials of "
        f"'{study.study_name}', re-scored without a model"
        + (f"; {found.failed:,} that failed stay so" if found.failed else "")
    )


def _begun_anew(study: optuna.Study, after: optuna.Study) -> str:
    first, begins = prior(after), f"Begins study '{after.study_name}'"
    if not first:
        had = finished(study) or prior(study)
        why = "is in the new space" if had else "was scored on all items"
        return (
            f"Warning: {begins} with nothing of '{study.study_name}': none of its candidates {why}"
        )
    return (
        f"{begins}, which first tries the best {counted(len(first), 'candidate')} of "
        f"'{study.study_name}'; none was re-scored without a model"
    )


def _asked_anew(study: optuna.Study) -> str:
    taken = len(prior(study))
    return (
        f"Goes on with study '{study.study_name}' under the changed conditions, as it has no trials"
        + (f"; it first tries {counted(taken, 'candidate')} of the study before it" * (taken > 0))
    )


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


def _load(storage: BaseStorage, config: StudyConfig) -> optuna.Study:
    return optuna.create_study(
        storage=storage,
        study_name=config.name,
        directions=[StudyDirection.MAXIMIZE] * config.values,
        load_if_exists=True,
    )
