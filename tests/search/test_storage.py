"""A study's storage after everything that can happen to a file."""

import errno
import os
import socket
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
from search.errors import NothingFound, StudyError
from search.storage import JOURNAL, open_storage, read_storage, refuse_place


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


def test_a_torn_last_line_costs_no_finished_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    add_trials("run", tmp_path, 2)
    journal = tmp_path / "run" / JOURNAL
    with journal.open("ab") as handle:
        handle.write(b'{"op_code": 4, "worker_id": "w", "stu')
    torn = journal.read_bytes()
    assert add_trials("run", tmp_path, 1) == [0, 1, 2]
    assert journal.with_suffix(".torn").read_bytes() == torn
    line = torn.count(b"\n") + 1
    told = f"{journal}: line {line} was torn by a crash and mended; as it was it is journal.torn"
    assert capsys.readouterr().err == f"Warning: storage: {told}\n"
    assert add_trials("run", tmp_path, 0) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def without_a_trial(journal: Path, line: bytes) -> bytes:
    """Put a line in the place of the one that begins the second trial."""
    lines = journal.read_bytes().splitlines(keepends=True)
    second = [at for at, text in enumerate(lines) if b'"op_code":4' in text][1]
    lines[second] = line
    journal.write_bytes(b"".join(lines))
    return journal.read_bytes()


@pytest.mark.parametrize("line", [b"garbage\n", b'{"garbage": 1}\n'])
def test_a_journal_that_was_damaged_is_refused_and_left_as_it_is(tmp_path: Path, line: bytes):
    add_trials("run", tmp_path, 3)
    damaged = without_a_trial(tmp_path / "run" / JOURNAL, line)
    for opening in (add_trials, lambda *_: read_storage("run", tmp_path, "s")):
        with pytest.raises(StudyError, match="restore the file from a copy"):
            opening("run", tmp_path, 1)
    assert (tmp_path / "run" / JOURNAL).read_bytes() == damaged
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [JOURNAL, "lock"]


def test_a_glued_line_is_left_to_a_run_by_who_only_reads(tmp_path: Path):
    add_trials("run", tmp_path, 2)
    journal = tmp_path / "run" / JOURNAL
    whole = journal.read_bytes()
    at = whole.rindex(b'{"op_code"', 0, whole.rindex(b'{"op_code"'))
    journal.write_bytes(whole[:at] + b'{"op_code":9,"wor' + whole[at:])
    with pytest.raises(NothingFound, match="was torn by a crash; outcross run mends it first"):
        read_storage("run", tmp_path, "s")
    assert add_trials("run", tmp_path, 0) == [0, 1]
    assert len(read_storage("run", tmp_path, "s").get_all_trials(0)) == 2


def impossible(folder: Path) -> dict[str, str]:
    """Places where no study's folder can be, and what is said of each."""
    (folder / "file").touch()
    (folder / "folders" / JOURNAL).mkdir(parents=True)
    (folder / "lonely").symlink_to(folder / "nowhere")
    return {
        "file": f"{folder}/file is no folder",
        "file/below": f"{folder}/file is no folder",
        "lonely/below": f"{folder}/lonely is no folder",
        "folders": f"{folder}/folders/{JOURNAL} is a folder where a file belongs",
        "/proc/x": "the kernel keeps no files of others there",
    }


def test_a_folder_that_cannot_be_is_refused_and_that_is_foreseen(tmp_path: Path):
    for place, reason in impossible(tmp_path).items():
        expected = f"storage: {tmp_path / place} can't be used: {reason}; give another place, or "
        for opening in (
            lambda at: refuse_place(at, tmp_path),
            lambda at: add_trials(at, tmp_path, 1),
        ):
            with pytest.raises(StudyError) as error:
                opening(place)
            assert str(error.value) == expected + "put this one right"


def test_a_folder_that_may_be_made_is_not_made_to_find_out(tmp_path: Path):
    refuse_place("runs/x", tmp_path)
    assert list(tmp_path.iterdir()) == []
    add_trials("runs/x", tmp_path, 1)
    refuse_place("runs/x", tmp_path)


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK or path != tmp_path)
    with pytest.raises(StudyError, match=f"{tmp_path} can't be written to; give another place"):
        refuse_place("runs/x", tmp_path)


def full(times: int, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let a step of opening fail as on a full disk, this often."""
    import search.storage

    usual, failures = getattr(search.storage, name), []

    def failing(*args: Any) -> Any:
        if len(failures) < times:
            failures.append(args)
            raise OSError(errno.ENOSPC, "No space left on device")
        return usual(*args)

    monkeypatch.setattr(search.storage, name, failing)


@pytest.mark.parametrize("step", ["held_file", "mend", "_Journal"])
def test_a_disk_that_is_full_at_opening_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: str
):
    full(1, monkeypatch, step)
    assert add_trials("run", tmp_path, 1) == [0]
    told = f"storage: {tmp_path}/run: [Errno 28] No space left on device; trying again for up to"
    assert capsys.readouterr().err.startswith(told)


def test_a_disk_that_stays_full_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("search.patience._PATIENCE", 0.1)
    full(100, monkeypatch, "mend")
    with pytest.raises(StudyError, match=r"^storage: .*No space left on device; everything that"):
        add_trials("run", tmp_path, 1)


def test_a_lock_beside_a_sqlite_file_is_waited_for_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    full(1, monkeypatch, "held_file")
    assert add_trials(f"sqlite:///{tmp_path}/s.db", tmp_path, 1) == [0]
    assert "No space left on device; trying again" in capsys.readouterr().err


def test_a_sqlite_file_whose_folder_is_not_there_is_refused_by_who_only_reads(tmp_path: Path):
    with pytest.raises(StudyError, match=f"storage: .* can't be used: {tmp_path}/no is no folder"):
        read_storage(f"sqlite:///{tmp_path}/no/s.db", tmp_path, "s")
    with pytest.raises(NothingFound):
        read_storage(f"sqlite:///{tmp_path}/s.db", tmp_path, "s")


def test_who_only_reads_waits_seconds_for_a_server(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes calls and never answers
        port = silent.getsockname()[1]
        url = f"postgresql+psycopg://me:secret@127.0.0.1:{port}/db?connect_timeout=2"
        start = time.monotonic()
        with pytest.raises(StudyError, match=f"storage: 127.0.0.1:{port}/db.* can't be opened: "):
            read_storage(url, tmp_path, "s")
        assert time.monotonic() - start < 30


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
