"""Optuna's dashboard: shows a study that is being searched, on loopback, and changes nothing."""

import contextlib
import http.client
import itertools
import json
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import yaml
from tiny_study import study_dict

from search import cli
from search.dashboard import Dashboard, open_dashboard
from search.errors import NothingFound, StudyError
from search.storage import JOURNAL, open_storage, read_storage

pytest.importorskip("optuna_dashboard", reason="the extra 'dashboard' is not installed")


@pytest.fixture(params=["folder", "sqlite"])
def study(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A study file; its storage doesn't exist yet."""
    place = "runs/tiny" if request.param == "folder" else f"sqlite:///{tmp_path}/study.db"
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study_dict(storage=place)))
    return path


def location(study: Path) -> str:
    return yaml.safe_load(study.read_text())["storage"]


@contextlib.contextmanager
def searching(study: Path, trials: int = 2) -> Iterator[optuna.Study]:
    """A search that holds the study's storage."""
    with open_storage(location(study), study.parent, "tiny") as storage:
        found = optuna.create_study(storage=storage, study_name="tiny", load_if_exists=True)
        add_trials(found, trials)
        yield found


def add_trials(study: optuna.Study, count: int) -> None:
    for _ in range(count):
        trial = study.ask()
        study.tell(trial, trial.suggest_float("x", 0, 1))


@contextlib.contextmanager
def serving(study: Path) -> Iterator[Dashboard]:
    with open_dashboard(study, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server: Dashboard, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request(method, path, body="{}" if method != "GET" else None, headers=headers)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_a_study_is_shown_while_it_runs_and_goes_on(study: Path):
    with searching(study) as running, serving(study) as server:
        assert ask(server, server.study_path)[0] == 200
        data = server.study_path.replace("dashboard", "api")
        assert len(json.loads(ask(server, data)[1])["trials"]) == 2
        add_trials(running, 3)
        assert len(running.trials) == 5
    with searching(study, trials=0) as again, serving(study) as server:
        assert len(again.trials) == 5
        assert len(json.loads(ask(server, data)[1])["trials"]) == 5


def test_nothing_can_be_changed(study: Path):
    with searching(study) as running, serving(study) as server:
        data = server.study_path.replace("dashboard", "api")
        paths = (data, f"{data}/rename", "/api/studies", f"{data}/note")
        for path, method in itertools.product(paths, ("POST", "PUT", "DELETE", "PATCH")):
            code, body = ask(server, path, method, **{"Content-Type": "application/json"})
            assert (code, b"changes nothing" in body) == (403, True)
        assert [s.study_name for s in optuna.get_all_study_summaries(running._storage)] == ["tiny"]


def test_the_storage_itself_refuses_to_change(study: Path):
    with searching(study) as running:
        storage = read_storage(location(study), study.parent, "tiny")
        number = running._study_id
        before = sorted((p, p.read_bytes()) for p in study.parent.rglob("*.log"))
        for change in (
            lambda: storage.delete_study(number),
            lambda: storage.create_new_trial(number),
            lambda: storage.set_study_user_attr(number, "a", 1),
            lambda: storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "other"),
        ):
            with pytest.raises(StudyError, match="for reading only"):
                change()
        assert sorted((p, p.read_bytes()) for p in study.parent.rglob("*.log")) == before
        assert len(running.trials) == 2


def test_a_line_that_is_being_written_is_not_read(tmp_path: Path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study_dict()))
    with open_storage("runs/tiny", tmp_path, "tiny") as storage:
        add_trials(optuna.create_study(storage=storage, study_name="tiny"), 1)
        journal = tmp_path / "runs/tiny" / JOURNAL
        whole = journal.read_bytes()
        journal.write_bytes(whole + b'{"op_code": 4, "worker_id": "w", "stu')
        reading = read_storage("runs/tiny", tmp_path, "tiny")
        assert len(reading.get_all_trials(0)) == 1
        journal.write_bytes(whole)


def test_it_is_bound_to_loopback_and_answers_to_its_own_name_only(study: Path):
    with searching(study), serving(study) as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"
        assert server.url.startswith(f"http://127.0.0.1:{server.server_port}/dashboard/studies/")
        port = server.server_port
        assert ask(server, "/api/studies", Host=f"localhost:{port}")[0] == 200
        for name in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", ""):
            assert ask(server, "/api/studies", Host=name)[0] == 403


def test_a_study_that_has_not_been_run_makes_nothing(study: Path):
    before = sorted(study.parent.rglob("*"))
    with pytest.raises(NothingFound, match="study 'tiny' has not been run yet; run it first"):
        open_dashboard(study)
    assert sorted(study.parent.rglob("*")) == before


def test_another_study_of_the_storage_is_not_this_one(study: Path):
    with open_storage(location(study), study.parent, "other") as storage:
        optuna.create_study(storage=storage, study_name="other")
    with pytest.raises(NothingFound, match="'tiny' has not been run"):
        open_dashboard(study)


def test_a_port_that_is_taken(study: Path):
    with searching(study), socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StudyError, match=rf"--port: {port} can't be used .*give another, or 0"):
            open_dashboard(study, port)


def test_without_the_extra_one_line_says_what_to_install(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    monkeypatch.setattr(sys, "argv", ["outcross", "dashboard", str(study)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    told = "needs Optuna's dashboard; install it with: pip install 'outcross[dashboard]'"
    assert capsys.readouterr().err == f"outcross: outcross dashboard: {told}\n"


def test_a_mistake_in_the_file(tmp_path: Path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study_dict(device="gpu")))
    with pytest.raises(StudyError, match="device"):
        open_dashboard(path)
