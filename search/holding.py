"""One process proposes for a study at a time: a second one is told who it is."""

import fcntl
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from search.errors import StudyError

# Locks that a session holds: they die with its process, not with a table that nobody cleans up.
_TRY = {
    "postgresql": "SELECT pg_try_advisory_lock(hashtext(:name))",
    "mysql": "SELECT GET_LOCK(:name, 0)",
    "mariadb": "SELECT GET_LOCK(:name, 0)",
}
_HOLDER = {
    "postgresql": (
        "SELECT application_name FROM pg_stat_activity a JOIN pg_locks l ON l.pid = a.pid "
        "WHERE l.locktype = 'advisory' AND l.granted AND l.objid::bigint = "
        "(hashtext(:name)::bigint & 4294967295) AND l.database = "
        "(SELECT oid FROM pg_database WHERE datname = current_database())"
    ),
    "mysql": "SELECT IS_USED_LOCK(:name)",
    "mariadb": "SELECT IS_USED_LOCK(:name)",
}


def holder() -> str:
    """How this process is called in another one's message."""
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def held_file(path: Path, what: str) -> Generator[None]:
    """Hold a lock on a file, which is made if it isn't there.

    Raises:
        StudyError: If another process holds it.
    """
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise _refused(what, lock.read().strip()) from None
        lock.truncate(0)
        lock.write(holder())
        lock.flush()
        yield


class HeldStudy:
    """A lock on a study in a database server, kept by a connection of its own.

    Args:
        engine: Of the database.
        study: Its name.

    Raises:
        StudyError: If another process holds it.
    """

    def __init__(self, engine: Engine, study: str) -> None:
        self._engine, self._study = engine, study
        self._connection: Connection | None = None
        self.hold()

    def hold(self) -> None:
        """Take the lock, or make sure that it is still ours: a restarted server forgets it.

        Raises:
            StudyError: If another process holds it.
        """
        kind = self._engine.dialect.name
        if kind not in _TRY or self._alive():
            return
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        if kind == "postgresql":
            _run(connection, "SELECT set_config('application_name', :name, false)", holder())
        if not _run(connection, _TRY[kind], _key(self._study)):
            whose = _run(connection, _HOLDER[kind], _key(self._study))
            connection.close()
            raise _refused(f"study '{self._study}'", str(whose or ""))
        self._connection = connection

    def release(self) -> None:
        """Give the lock back."""
        if self._connection is not None:
            try:
                self._connection.invalidate()  # a pooled connection would keep the lock
                self._connection.close()
            except SQLAlchemyError:
                pass  # the server is gone, and the lock with it
            self._connection = None

    def _alive(self) -> bool:
        if self._connection is None:
            return False
        try:
            _run(self._connection, "SELECT 1", "")
        except SQLAlchemyError:
            self.release()
            return False
        return True


def _key(study: str) -> str:
    return f"outcross:{study}"[:64]


def _run(connection: Connection, statement: str, name: str) -> Any:
    values = {"name": name} if ":name" in statement else {}
    return connection.execute(text(statement), values).scalar()


def _refused(what: str, whose: str) -> StudyError:
    return StudyError(
        [f"{what} is in use by {whose or 'another process'}; wait for it, or stop it"]
    )
