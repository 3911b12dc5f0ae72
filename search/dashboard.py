"""Optuna's dashboard on a study: on loopback, and for reading only.

Optuna's dashboard can delete and rename studies, tell trials and write notes, and it asks nobody
who they are. So it gets a storage that can't be written to, answers reading requests only, and is
bound to 127.0.0.1. A request that was made for another name than this machine's own is refused: a
page on the web could otherwise read the study through the reader's browser (DNS rebinding).
"""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from search.config import StudyConfig, parse, read_yaml
from search.errors import StudyError, first_line
from search.genome import is_genome, read_genome
from search.storage import read_storage

HOST = "127.0.0.1"
PORT = 8080
_NAMES = (HOST, "localhost")
_READING = ("GET", "HEAD")

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Dashboard(ThreadingMixIn, WSGIServer):
    """A server on loopback; `serve_forever` serves, `server_close` ends it.

    Attributes:
        study_path: The page of the study.
    """

    daemon_threads = True
    study_path = "/dashboard"

    @property
    def url(self) -> str:
        """Where the study's page is."""
        return f"http://{HOST}:{self.server_port}{self.study_path}"


def show_dashboard(path: Path, port: int, tell: Callable[[str], None]) -> None:
    """Serve Optuna's dashboard on a study until Ctrl-C.

    Args:
        path: The study file.
        port: On 127.0.0.1; 0 takes a free one.
        tell: Called with the address once it answers.
    """
    with open_dashboard(path, port) as server:
        tell(server.url)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def open_dashboard(path: Path, port: int = PORT) -> Dashboard:
    """A dashboard on a study, ready to serve; safe while a search runs.

    Args:
        path: The study file; models and tasks that it names aren't opened.
        port: On 127.0.0.1; 0 takes any that is free.

    Raises:
        StudyError: If optuna-dashboard isn't installed, the file has a mistake, the storage can't
            be reached or the port is taken.
        NothingFound: If the study has not been run yet.
    """
    make = _optuna_dashboard()
    config = _config(path)
    storage = read_storage(config.location, path.resolve().parent, config.name)
    guarded = _guarded(make(storage))
    try:
        server = make_server(HOST, port, guarded, Dashboard, _Silent)
    except (OSError, OverflowError) as error:
        reason = first_line(error)
        raise StudyError([f"--port: {port} can't be used ({reason}); give another, or 0"]) from None
    server.study_path = f"/dashboard/studies/{storage.get_study_id_from_name(config.name)}"
    return server


class _Silent(WSGIRequestHandler):
    """No line for each request."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _optuna_dashboard() -> Callable[..., Application]:
    try:
        from optuna_dashboard import wsgi  # pyright: ignore
    except ImportError:
        raise StudyError(
            ["needs Optuna's dashboard; install it with: pip install 'outcross[dashboard]'"],
            "outcross dashboard",
        ) from None
    return wsgi  # pyright: ignore


def _config(path: Path) -> StudyConfig:
    mistakes: list[str] = []
    data = read_yaml(path)
    if is_genome(data):
        data = read_genome(data, path, mistakes).study
    config = parse(data, mistakes)
    if config is None:
        raise StudyError(mistakes, str(path))
    return config


def _guarded(application: Application) -> Application:
    """The application, which is only asked what it may be asked."""

    def answer(request: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        reason = _refusal(request)
        if reason is None:
            return application(request, start)
        body = json.dumps({"reason": reason}).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start("403 Forbidden", headers)
        return [body]

    return answer


def _refusal(request: Mapping[str, Any]) -> str | None:
    name = str(request.get("HTTP_HOST", HOST)).rpartition(":")[0] or request.get("HTTP_HOST", HOST)
    if name not in _NAMES:
        return f"this dashboard answers as {' or '.join(_NAMES)} only"
    if request.get("REQUEST_METHOD") not in _READING:
        return "this dashboard only shows a study; it changes nothing"
    return None
