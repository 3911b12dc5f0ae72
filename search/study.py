"""A study in its storage: opened, held, and kept to the conditions under which it was made."""

import signal
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import FrameType

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from search.bench import Bench, CheckedStudy, foreseen_protocol, protocol
from search.config import StudyConfig
from search.errors import NothingFound, ProtocolError
from search.forking import forked, last_of, only_weights, reweighted
from search.record import differences, readings_from_dict
from search.storage import foresee, open_storage, read_storage


class Stop:
    """Set by the first Ctrl-C: finish the running trial, then stop."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def open_study(checked: CheckedStudy) -> Generator[optuna.Study]:
    """Open or create the Optuna study of a study file; holds its storage meanwhile."""
    with open_storage(checked.storage, checked.folder, checked.config.name) as storage:
        yield last_of(_load(storage, checked.config))


def read_study(checked: CheckedStudy) -> optuna.Study | None:
    """A study as far as it has been run; nothing is written, held or waited for.

    Returns:
        To be read only; None if it has not been run yet.

    Raises:
        StudyError: If opening it would be refused.
    """
    foresee(checked.storage, checked.folder)
    name = checked.config.name
    try:
        storage = read_storage(checked.storage, checked.folder, name)
    except NothingFound:
        return None
    study = optuna.load_study(study_name=name, storage=storage)
    _refuse_other_values(study, checked.config)
    return last_of(study)


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
    if stored is None:
        return
    unseen = {key: stored[key] for key in ("prompts", "rungs") if key in stored}
    stated = {**unseen, **foreseen_protocol(checked)}
    if only_weights(stored, stated) and "baselines" in study.user_attrs:
        return
    if changed := differences(stored, stated):
        raise _other_conditions(changed, checked.config.name)


def keep_protocol(study: optuna.Study, bench: Bench, *, fork: bool = False) -> optuna.Study:
    """Go on with a study under the conditions under which its trials were made.

    Args:
        study: As stored.
        bench: The study as its file now says.
        fork: Whether to begin a new one where the conditions have changed.

    Returns:
        The study to go on with: another one if its question has changed, see `search.forking`.

    Raises:
        ProtocolError: With every difference.
    """
    stated = protocol(bench)
    stored = study.user_attrs.get("protocol")
    known = readings_from_dict(study) if "readings" in study.user_attrs else []
    if len(known) == len(bench.readings):
        bench.scaled([one.scale for one in known])
    if stored is None:
        study.set_user_attr("protocol", stated)
        return study
    changed = differences(stored, stated)
    if not changed:
        return study
    if only_weights(stored, stated) and "baselines" in study.user_attrs:
        return reweighted(study, bench.goals, bench.readings, stated)
    if fork:
        return forked(study, bench.study.space, stated)
    raise _other_conditions(changed, bench.study.config.name)


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
    study = optuna.create_study(
        storage=storage,
        study_name=config.name,
        directions=[StudyDirection.MAXIMIZE] * config.values,
        load_if_exists=True,
    )
    _refuse_other_values(study, config)
    return study


def _refuse_other_values(study: optuna.Study, config: StudyConfig) -> None:
    if len(study.directions) != config.values:
        counts = _values(len(study.directions)), _values(config.values)
        raise ProtocolError(
            [
                f"search.goal: its trials have {counts[0]}, and {config.search.goal} with these "
                f"objectives has {counts[1]}; undo the change, or give the study another name to "
                "begin anew"
            ],
            f"study '{config.name}' was made under other conditions",
        )


def _other_conditions(changed: Sequence[str], name: str) -> ProtocolError:
    advice = (
        "its trials can't be compared with new ones; undo the change, give the study another name "
        "to begin anew, or run it with --fork: a new study that tries the best candidates of this "
        "one first"
    )
    where = f"study '{name}' was made under other conditions"
    return ProtocolError([*changed, advice], where)


def _values(count: int) -> str:
    return "one value each" if count == 1 else f"{count} values each"
