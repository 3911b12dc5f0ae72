"""Where a study lives: an embedded journal in a folder of its own, or a database.

A journal is four to seven times faster than SQLite here. Its two weaknesses are dealt with at
opening: a line that a power cut or a full disk tore is dropped, and a lock that a killed process
left is not waited for, because the folder itself is held by a lock that dies with its process.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import create_engine, inspect, make_url

from search.databases import Database
from search.errors import NothingFound, StudyError, first_line
from search.holding import HeldStudy, held_file
from search.patience import patient

JOURNAL = "journal.log"
_HARMLESS = ("check_trial_is_updatable", "remove_session")  # beside what begins with get_

_SYNC = 1.0  # seconds


@contextmanager
def open_storage(location: str, folder: Path, study: str) -> Generator[BaseStorage]:
    """Open a study's storage for the one process that proposes and tells.

    Args:
        location: A folder, or a database URL (`sqlite:///…`, `postgresql://…`).
        folder: What a relative folder is relative to.
        study: The study's name; of a database with many studies only this one is held.

    Raises:
        StudyError: If another process holds it, or the database can't be reached.
    """
    if "://" in location:
        with _database(location, study) as storage:
            yield storage
        return
    home = folder / location
    home.mkdir(parents=True, exist_ok=True)
    with held_file(home / "lock", str(home)):
        repair(home / JOURNAL)
        yield patient(JournalStorage(_Journal(home / JOURNAL)), str(home))


def read_storage(location: str, folder: Path, study: str) -> BaseStorage:
    """Open a study's storage to look at it, also while a search holds it; nothing can be written.

    No lock is taken or waited for. What a search adds meanwhile is seen with the next call; of a
    journal, whole lines only.

    Args:
        location: As in `open_storage`.
        folder: What a relative folder is relative to.
        study: The study's name, for errors.

    Raises:
        NothingFound: If no such study has been run yet.
        StudyError: If the database can't be reached.
    """
    inner = (_read_database if "://" in location else _read_folder)(location, folder, study)
    if study not in {found.study_name for found in inner.get_all_studies()}:
        raise _not_run(study)
    return _read_only(inner)


def repair(journal: Path) -> int:
    """Drop what is not a whole record from a journal; the original is kept as `.torn`.

    Returns:
        How many lines were not whole.
    """
    if not journal.exists():
        return 0
    lines = journal.read_bytes().splitlines(keepends=True)
    whole = [_record(line) for line in lines]
    if damaged := sum(record != line for record, line in zip(whole, lines, strict=True)):
        shutil.copyfile(journal, journal.with_suffix(".torn"))
        draft = journal.with_suffix(".draft")
        draft.write_bytes(b"".join(whole))
        os.replace(draft, journal)
    return damaged


def _record(line: bytes) -> bytes:
    """The whole record in a line: itself, or what was glued behind a torn one, or nothing."""
    at = line.rfind(b'{"op_code"')
    for piece in (line, line[at:] if at > 0 else b""):
        if piece.endswith(b"\n"):
            with contextlib.suppress(ValueError):
                json.loads(piece)
                return piece
    return b""


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
            held.enter_context(held_file(lock, f"study '{study}'"))
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
    return JournalStorage(_Journal(journal))


def _read_database(url: str, _: Path, study: str) -> BaseStorage:
    place = url.split("@")[-1]  # the part before may hold a password
    try:
        address = make_url(url)
        file = address.database if address.get_backend_name() == "sqlite" else None
        made = not file or Path(file).is_file()  # opening it would make it
        if made:
            engine = create_engine(url)
            made = inspect(engine).has_table("studies")
            engine.dispose()
        if made:
            return get_storage(Database(url, skip_table_creation=True))
    except Exception as error:  # drivers and servers fail in types of their own
        raise StudyError([f"storage: {place} can't be opened: {first_line(error)}"]) from None
    raise _not_run(study)


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
