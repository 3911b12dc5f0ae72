"""A PostgreSQL server of its own for a test, on loopback, from the programs that are installed."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

_PLACES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def program(name: str) -> str | None:
    """Where one of PostgreSQL's programs is; None if it isn't installed."""
    return shutil.which(name, path=os.pathsep.join((*map(str, _PLACES), os.environ["PATH"])))


needed = pytest.mark.skipif(program("initdb") is None, reason="PostgreSQL is not installed")


class Server:
    """A server that can be stopped and started while a test runs."""

    def __init__(self, folder: Path) -> None:
        self.data, self.port = folder / "data", _free_port()
        self._run("initdb", "--auth=trust", "--username=tester", "--no-sync", str(self.data))

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://tester@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self.data.parent} -F"
        log = str(self.data.parent / "server.log")
        self._run("pg_ctl", "-D", str(self.data), "-w", "-l", log, "-o", options, "start")

    def stop(self, how: str = "immediate") -> None:
        self._run("pg_ctl", "-D", str(self.data), "-w", "-m", how, "stop")

    def _run(self, name: str, *arguments: str) -> None:
        command = [str(program(name)), *arguments]
        done = subprocess.run(
            command, user=_user(), cwd=self.data.parent, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def server() -> Generator[Server]:
    """A running server whose files are in a folder that it may enter, whoever runs the test."""
    with tempfile.TemporaryDirectory() as folder:
        if (user := _user()) is not None:  # the server refuses to be root
            shutil.chown(folder, user)
        made = Server(Path(folder))
        made.start()
        try:
            yield made
        finally:
            made.stop("fast")


def _user() -> str | None:
    if os.getuid():
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
