"""A study in a database server: held by one process, alive through a restart of the server."""

import threading
import time
from io import StringIO
from pathlib import Path

import optuna
import postgres
import pytest
from rich.console import Console
from tiny_study import study_dict, write_study

from search.commands import run_study
from search.errors import StudyError
from search.holding import holder
from search.storage import open_storage

pytestmark = postgres.needed


@pytest.fixture(scope="module")
def server():
    with postgres.server() as running:
        yield running


def test_a_second_proposer_is_told_who_holds_the_study(server, tmp_path: Path):
    with open_storage(server.url, tmp_path, "mine"):
        expected = f"study 'mine' is in use by {holder()}; wait for it"
        with (
            pytest.raises(StudyError, match=expected),
            open_storage(server.url, tmp_path, "mine"),
        ):
            pass
        with open_storage(server.url, tmp_path, "other"):
            pass  # another study in the same database
    with open_storage(server.url, tmp_path, "mine"):
        pass


def test_a_restarted_server_is_waited_for_and_the_lock_is_taken_again(server, tmp_path: Path):
    with open_storage(server.url, tmp_path, "restart") as storage:
        study = optuna.create_study(storage=storage, study_name="restart", direction="maximize")
        study.tell(study.ask(), 1.0)
        server.stop()
        away = threading.Timer(1.5, server.start)
        away.start()
        study.tell(study.ask(), 2.0)  # asked and told while the server is down
        away.join()
        assert [trial.value for trial in study.get_trials()] == [1.0, 2.0]
        with (
            pytest.raises(StudyError, match="is in use by"),
            open_storage(server.url, tmp_path, "restart"),
        ):
            pass


def test_a_server_that_stays_away_ends_in_one_line(server, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("search.patience.patient.__defaults__", (lambda: None, 0.5))
    with open_storage(server.url, tmp_path, "away") as storage:
        study = optuna.create_study(storage=storage, study_name="away", direction="maximize")
        server.stop()
        try:
            with pytest.raises(StudyError, match="everything that was finished before is kept"):
                study.ask()
        finally:
            server.start()


def test_a_whole_study_survives_restarts_and_equals_one_in_a_folder(server, tmp_path: Path):
    search = {"sampler": "tpe", "trials": 14, "finalists": 2}
    plain = write_study(tmp_path / "plain", study_dict(search=search))
    run_study(plain, Console(file=StringIO()))
    there = tmp_path / "there"
    there.mkdir()
    remote = write_study(there, study_dict(search=search, storage=server.url))

    text = StringIO()

    def restart() -> None:
        for number in (0, 3, 7):
            while f"trial {number} " not in text.getvalue():
                time.sleep(0.05)
            server.stop()
            server.start()

    restarting = threading.Thread(target=restart)
    restarting.start()
    run_study(remote, Console(file=text))
    restarting.join()
    assert values(f"{there}/..", server.url) == values(str(plain.parent), "runs/tiny")


def values(folder: str, location: str) -> list:
    with open_storage(location, Path(folder), "tiny") as storage:
        study = optuna.load_study(storage=storage, study_name="tiny")
        return [(t.number, t.params, t.value, t.user_attrs["fingerprint"]) for t in study.trials]
