"""A study in its storage: opened, held, and kept to the conditions under which it was made."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

import optuna
from optuna.storages import BaseStorage

from search.bench import Bench, CheckedStudy, protocol
from search.errors import ProtocolError
from search.record import differences
from search.storage import open_storage


class Stop:
    """Set by the first Ctrl-C: finish the running trial, then stop."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def open_study(checked: CheckedStudy) -> Generator[optuna.Study]:
    """Open or create the Optuna study of a study file; holds its storage meanwhile."""
    with open_storage(checked.storage, checked.folder, checked.config.name) as storage:
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
