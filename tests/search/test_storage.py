"""A study's storage after everything that can happen to a file."""

import errno
import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import JournalStorage
from optuna.trial import TrialState, create_trial

from search.databases import Database
from search.errors import StudyError
from search.storage import JOURNAL, open_storage, repair

RECORD = json.dumps({"op_code": 0, "worker_id": "w", "study_name": "s"}).encode() + b"\n"
OTHER = json.dumps({"op_code": 4, "worker_id": "w", "study_id": 0}).encode() + b"\n"


def add_trials(location: str, folder: Path, count: int) -> list[float]:
    """Open the storage, add trials, and return all values in it."""
    with open_storage(location, folder, "s") as storage:
        study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True)
        for _ in range(count):
            trial = study.ask()
            study.tell(trial, trial.suggest_float("x", 0, 1) * 0 + trial.number)
        return [trial.value for trial in study.get_trials(deepcopy=False)]


def test_a_folder_keeps_its_trials(tmp_path: Path):
    assert add_trials("runs/x", tmp_path, 2) == [0, 1]
    assert add_trials("runs/x", tmp_path, 1) == [0, 1, 2]
    assert (tmp_path / "runs/x" / JOURNAL).is_file()


def test_an_absolute_folder_is_taken_as_it_is(tmp_path: Path):
    add_trials(str(tmp_path / "there"), tmp_path / "here", 1)
    assert (tmp_path / "there" / JOURNAL).is_file()


def test_sqlite_keeps_its_trials(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/study.db"
    assert add_trials(url, tmp_path, 2) == [0, 1]
    assert add_trials(url, tmp_path, 1) == [0, 1, 2]


def test_a_torn_last_line_costs_no_finished_trial(tmp_path: Path):
    add_trials("run", tmp_path, 2)
    journal = tmp_path / "run" / JOURNAL
    with journal.open("ab") as handle:
        handle.write(b'{"op_code": 4, "worker_id": "w", "stu')
    torn = journal.read_bytes()
    assert add_trials("run", tmp_path, 1) == [0, 1, 2]
    assert journal.with_suffix(".torn").read_bytes() == torn


@pytest.mark.parametrize(
    ("damaged", "whole"),
    [
        (RECORD + OTHER, RECORD + OTHER),
        (RECORD + OTHER[:-20], RECORD),
        (RECORD + OTHER[:-20] + OTHER, RECORD + OTHER),
        (RECORD + OTHER[:5] + RECORD + OTHER, RECORD + RECORD + OTHER),
        (RECORD + b"\0" * 100 + b"\n" + OTHER, RECORD + OTHER),
        (RECORD + b"\xff\xfe\n" + OTHER, RECORD + OTHER),
        (OTHER[:-20], b""),
        (b"", b""),
    ],
    ids=["whole", "torn", "glued", "glued in the middle", "zeros", "bytes", "only torn", "empty"],
)
def test_repair_keeps_every_whole_record(tmp_path: Path, damaged: bytes, whole: bytes):
    journal = tmp_path / JOURNAL
    journal.write_bytes(damaged)
    repair(journal)
    assert journal.read_bytes() == whole
    assert journal.with_suffix(".torn").exists() == (damaged != whole)
    assert repair(journal) == 0


def test_repair_counts_what_it_dropped(tmp_path: Path):
    journal = tmp_path / JOURNAL
    assert repair(journal) == 0
    journal.write_bytes(RECORD + b"xx\n" + OTHER[:9])
    assert repair(journal) == 2


def test_repair_counts_a_glued_piece(tmp_path: Path):
    journal = tmp_path / JOURNAL
    journal.write_bytes(OTHER[:9] + RECORD)
    assert repair(journal) == 1


def test_stale_lock_files_are_not_waited_for(tmp_path: Path):
    add_trials("run", tmp_path, 1)
    home = tmp_path / "run"
    (home / "lock").write_text("99999999")
    for name in (f"{JOURNAL}.lock", f"{JOURNAL}.lock.rename"):
        (home / name).write_text("")
    start = time.monotonic()
    assert add_trials("run", tmp_path, 1) == [0, 1]
    assert time.monotonic() - start < 10  # optuna waits 30 s for a lock


def test_a_second_process_is_refused_until_the_first_one_ends(tmp_path: Path):
    hold = (
        "import fcntl, os, sys\n"
        f"lock = open({str(tmp_path / 'run/lock')!r}, 'a+')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "lock.write(f'process {os.getpid()}'); lock.flush()\n"
        "print('held', flush=True); sys.stdin.read()\n"
    )
    add_trials("run", tmp_path, 1)
    (tmp_path / "run/lock").write_text("")
    other = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(StudyError, match=f"is in use by process {other.pid}; wait for it"):
            add_trials("run", tmp_path, 1)
    finally:
        other.kill()
        other.communicate()
    assert add_trials("run", tmp_path, 1) == [0, 1]


def test_a_process_cannot_open_a_folder_twice(tmp_path: Path):
    with (
        open_storage("run", tmp_path, "s"),
        pytest.raises(StudyError, match="is in use by process"),
    ):
        add_trials("run", tmp_path, 1)


@pytest.mark.parametrize(
    "url", ["nosql://x/y", "sqlite:////nowhere/at/all/study.db", "sqlite://nonsense:port/x"]
)
def test_a_database_that_cannot_be_opened_is_one_line(url: str, tmp_path: Path):
    with pytest.raises(StudyError) as error:
        add_trials(url, tmp_path, 0)
    assert str(error.value).startswith("storage: ")
    assert "can't be opened: " in str(error.value)
    assert "\n" not in str(error.value)


def test_a_password_is_not_shown(tmp_path: Path):
    with pytest.raises(StudyError) as error:
        add_trials("nosql://me:secret@host/db", tmp_path, 0)
    assert "secret" not in str(error.value)
    assert "host/db" in str(error.value)


@pytest.mark.parametrize("location", ["runs/x", "sqlite:///{}/s.db"])
def test_a_trial_whose_answer_was_lost_is_not_begun_twice(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    kind = Database if "://" in location else JournalStorage
    name = "_create_new_trial" if "://" in location else "create_new_trial"
    usual, lost = getattr(kind, name), []

    def forgetful(*args: Any, **kwargs: Any) -> Any:
        found = usual(*args, **kwargs)
        if not lost:
            lost.append(found)
            raise OSError(errno.ESTALE, "Stale file handle")
        return found

    monkeypatch.setattr(kind, name, forgetful)
    with open_storage(location.format(tmp_path), tmp_path, "s") as storage:
        study = optuna.create_study(storage=storage, study_name="s")
        for x in (0.25, 0.5):
            known = {"x": FloatDistribution(0, 1)}
            draft = create_trial(state=TrialState.RUNNING, params={"x": x}, distributions=known)
            draft.number = len(study.trials)
            key = storage.create_new_trial(study._study_id, draft)
            assert storage.get_trial(key).params == {"x": x}
        assert [trial.params["x"] for trial in study.trials] == [0.25, 0.5]
    assert lost
    assert "Stale file handle; trying again" in capsys.readouterr().err


def test_sqlite_does_not_wait_for_the_disk_at_each_attribute(tmp_path: Path):
    with open_storage(f"sqlite:///{tmp_path}/s.db", tmp_path, "s") as storage:
        study = optuna.create_study(storage=storage, study_name="s")
        study.ask().set_user_attr("x", 1)
        assert (tmp_path / "s.db-wal").exists()
    assert not (tmp_path / "s.db-wal").exists()  # one file, once it is closed
    with sqlite3.connect(tmp_path / "s.db") as connection:
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    assert mode == "wal"
