"""Where a study lives: an embedded journal in a folder of its own, or a database.

A journal is four to seven times faster than SQLite here. Its two weaknesses are dealt with at
opening: a line that a power cut or a full disk tore is dropped, and a lock that a killed process
left is not waited for, because the folder itself is held by a lock that dies with its process.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from optuna import Study, load_study
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from search.errors import StudyError, first_line

JOURNAL = "journal.log"


@contextmanager
def open_storage(location: str, folder: Path) -> Generator[BaseStorage]:
    """Open a study's storage for the one process that proposes and tells.

    Args:
        location: A folder, or a database URL (`sqlite:///…`, `postgresql://…`).
        folder: What a relative folder is relative to.

    Raises:
        StudyError: If another process holds the folder, or the database can't be reached.
    """
    if "://" in location:
        yield _database(location)
        return
    home = folder / location
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("a+") as lock:
        _hold(lock, home)
        repair(home / JOURNAL)
        backend = JournalFileBackend(str(home / JOURNAL), _HeldAlready(str(home / JOURNAL)))
        yield JournalStorage(backend)


def peek(location: str, folder: Path, name: str) -> Study | None:
    """A study that is there already, to be read only; another process may be searching in it.

    None if there is none, or if it is in a database, where opening would make tables.
    """
    journal = folder / location / JOURNAL
    if "://" in location or not journal.is_file():
        return None
    try:
        return load_study(study_name=name, storage=JournalStorage(JournalFileBackend(str(journal))))
    except (KeyError, ValueError):  # no such study in it, or a torn line that `run` will repair
        return None


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


class _HeldAlready(JournalFileOpenLock):
    """The folder's own lock keeps every other process out."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


def _hold(lock: IO[str], home: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        holder = lock.read().strip() or "?"
        raise StudyError(
            [f"{home} is in use by process {holder}; wait for it, or stop it"]
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()


def _database(url: str) -> BaseStorage:
    try:
        return RDBStorage(url)
    except Exception as error:  # drivers and servers fail in types of their own
        place = url.split("@")[-1]  # the part before may hold a password
        raise StudyError([f"storage: {place} can't be opened: {first_line(error)}"]) from None
