"""Where a study lives: an embedded journal in a folder of its own, or a database.

A journal is four to seven times faster than SQLite here. Its two weaknesses are dealt with at
opening: a line that a power cut or a full disk tore is mended, and a lock that a killed process
left is not waited for, because the folder itself is held by a lock that dies with its process.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import URL, create_engine, inspect, make_url

from search.databases import Database
from search.errors import NothingFound, StudyError, first_line
from search.holding import HeldStudy, held_file
from search.mending import mend, torn_lines
from search.obstacles import obstacle
from search.patience import insist, patient

JOURNAL, LOCK = "journal.log", "lock"
_HARMLESS = ("check_trial_is_updatable", "remove_session")  # beside what begins with get_

_SYNC = 1.0  # seconds
_ANSWER = "10"  # seconds for a database that is only looked at
_DRIVERS = ("psycopg", "psycopg2", "pymysql", "mysqldb")  # that can be told so


@contextmanager
def open_storage(location: str, folder: Path, study: str) -> Generator[BaseStorage]:
    """Open a study's storage for the one process that proposes and tells.

    Args:
        location: A folder, or a database URL (`sqlite:///…`, `postgresql://…`).
        folder: What a relative folder is relative to.
        study: The study's name; of a database with many studies only this one is held.

    Raises:
        StudyError: If another process holds it, it can't be there, its journal is damaged, or the
            database can't be reached.
    """
    opened = _database(location, study) if "://" in location else _folder(folder / location)
    with opened as storage:
        yield storage


def refuse_place(location: str, folder: Path) -> None:
    """Refuse a folder that can't be a study's, as far as that shows without making anything.

    Args:
        location: As in `open_storage`; of a database nothing is foreseen.
        folder: What a relative folder is relative to.

    Raises:
        StudyError: If opening it would be refused.
    """
    if "://" not in location and (reason := _in_the_way(home := folder / location)):
        raise _unusable(str(home), reason)


def read_storage(location: str, folder: Path, study: str) -> BaseStorage:
    """Open a study's storage to look at it, also while a search holds it; nothing can be written.

    No lock is taken or waited for. What a search adds meanwhile is seen with the next call; of a
    journal, whole lines only.

    Args:
        location: As in `open_storage`.
        folder: What a relative folder is relative to.
        study: The study's name, for errors.

    Raises:
        NothingFound: If no such study has been run yet, or a crash left what a run mends first.
        StudyError: If the database can't be reached, or the journal is damaged.
    """
    inner = (_read_database if "://" in location else _read_folder)(location, folder, study)
    if study not in {found.study_name for found in inner.get_all_studies()}:
        raise _not_run(study)
    return _read_only(inner)


class _Journal(JournalFileBackend):
    """A journal file of which no torn record stays when the disk is full.

    Every record is the system's at once, so a killed process loses none. The disk is waited for
    once a second: a trial has a dozen records, and ten milliseconds for each, as Optuna waits, are
    more than proposing takes. After a power cut the last second's trials are run again, and are the
    same ones again.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path, self._synced = path, time.monotonic()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        size = self._path.stat().st_size
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        try:
            with self._path.open("ab") as file:
                file.write(text.encode())
                file.flush()
                if time.monotonic() - self._synced >= _SYNC:
                    os.fsync(file.fileno())
                    self._synced = time.monotonic()
        except OSError:
            os.truncate(self._path, size)
            raise


@contextmanager
def _folder(home: Path) -> Generator[BaseStorage]:
    place, journal = str(home), home / JOURNAL

    def opened() -> BaseStorage:
        if told := mend(journal):
            print(f"Warning: {told}", file=sys.stderr, flush=True)
        return JournalStorage(_Journal(journal))

    def insisting(call: Callable[[], Any]) -> Any:
        return _insist(place, call, lambda: _in_the_way(home))

    with contextlib.ExitStack() as held:
        insisting(lambda: home.mkdir(parents=True, exist_ok=True))
        insisting(lambda: held.enter_context(held_file(home / LOCK, place)))
        yield patient(insisting(opened), place)


def _insist(
    place: str, call: Callable[[], Any], why: Callable[[], str | None] = lambda: None
) -> Any:
    """Wait for a disk that is full; what doesn't pass is a mistake in the study."""
    try:
        return insist(call, place)
    except OSError as error:
        raise _unusable(place, why() or first_line(error)) from None


def _in_the_way(home: Path) -> str | None:
    return obstacle(home, (JOURNAL, LOCK))


def _unusable(place: str, reason: str) -> StudyError:
    text = f"storage: {place} can't be used: {reason}; give another place, or put this one right"
    return StudyError([text])


@contextmanager
def _database(url: str, study: str) -> Generator[BaseStorage]:
    place = url.split("@")[-1]  # the part before may hold a password
    try:
        address = make_url(url)
        inner = Database(url)
    except Exception as error:  # drivers and servers fail in types of their own
        raise StudyError([f"storage: {place} can't be opened: {first_line(error)}"]) from None
    with contextlib.ExitStack() as held:
        recover: Callable[[], None] = lambda: None  # noqa: E731
        if address.get_backend_name() == "sqlite" and address.database:
            lock = Path(f"{address.database}.{study}.lock")
            what = f"study '{study}'"
            _insist(place, lambda: held.enter_context(held_file(lock, what)))
        else:
            lock = HeldStudy(inner.engine, study)
            held.callback(lock.release)
            recover = lock.hold
        yield patient(get_storage(inner), place, recover)
        inner.engine.dispose()


def _read_folder(location: str, folder: Path, study: str) -> BaseStorage:
    journal = folder / location / JOURNAL
    if not journal.is_file():
        raise _not_run(study)
    try:
        torn_lines(journal)  # refuses what no crash leaves; a torn end alone is just not read
        return JournalStorage(_Journal(journal))
    except json.JSONDecodeError:
        raise NothingFound(f"{journal} was torn by a crash; outcross run mends it first") from None
    except OSError as error:
        raise _unusable(str(journal.parent), first_line(error)) from None


def _read_database(url: str, _: Path, study: str) -> BaseStorage:
    place = url.split("@")[-1]  # the part before may hold a password
    try:
        address = _impatient(make_url(url))
        file = address.database if address.get_backend_name() == "sqlite" else None
        engine = create_engine(address)
        made = not file or Path(file).is_file()  # opening it would make it
        if made:
            made = inspect(engine).has_table("studies")
            engine.dispose()
        if made:
            text = address.render_as_string(hide_password=False)
            return get_storage(Database(text, skip_table_creation=True))
    except Exception as error:  # drivers and servers fail in types of their own
        raise StudyError([f"storage: {place} can't be opened: {first_line(error)}"]) from None
    if file and not file.startswith("file:") and not Path(file).parent.is_dir():
        raise _unusable(place, f"{Path(file).parent} is no folder")
    raise _not_run(study)


def _impatient(address: URL) -> URL:
    """The same database, for whose answer nobody waits for minutes."""
    if address.get_driver_name() not in _DRIVERS or "connect_timeout" in address.query:
        return address
    return address.update_query_dict({"connect_timeout": _ANSWER})


def _not_run(study: str) -> NothingFound:
    return NothingFound(f"study '{study}' has not been run yet; run it first")


def _read_only(storage: BaseStorage) -> BaseStorage:
    """The same storage without the methods that change something."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise StudyError(["storage: is open for reading only"])

    def forwarding(name: str) -> Callable[..., Any]:
        method = getattr(storage, name)

        def call(_: BaseStorage, *args: Any, **kwargs: Any) -> Any:
            return method(*args, **kwargs)

        return call

    names = [name for name in dir(BaseStorage) if not name.startswith("_")]
    called = [name for name in names if callable(getattr(BaseStorage, name))]
    reading = [name for name in called if name.startswith("get_") or name in _HARMLESS]
    methods = dict.fromkeys(called, refuse) | {name: forwarding(name) for name in reading}
    return type("ReadOnlyStorage", (BaseStorage,), methods)()
