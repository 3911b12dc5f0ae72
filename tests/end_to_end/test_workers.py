"""A study scored by Ray's workers is the study of one process, whatever happens to them.

Ray runs on this machine, on loopback addresses. A worker takes some ten seconds to import what it
needs, so most of these are marked slow.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import postgres
import pytest
from optuna.trial import TrialState
from rich.console import Console
from stored_trials import history, stored
from tiny_study import study_dict, write_study

from evals.harness import Harness
from evals.items import Role
from search import ray_evaluators
from search.bench import Reference, build_bench, check_study
from search.commands import RunOptions, run_study
from search.config import RayConfig
from search.errors import StudyError
from search.evaluators import Job
from search.ray_evaluators import on_ray

pytest.importorskip("ray")

TRIALS = 14  # TPE's model begins after ten


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The study scored by this process."""
    study = new_study(tmp_path_factory.mktemp("alone"))
    assert run_study(study, Console(file=StringIO())) is not None
    return study


def test_two_workers_give_the_trials_of_one_process(tmp_path, alone):
    assert history(scored(tmp_path, workers=2)) == history(alone)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_any_number_of_workers_gives_the_same_trials(tmp_path, alone, workers):
    assert history(scored(tmp_path, workers=workers)) == history(alone)


@pytest.mark.slow
def test_killed_workers_lose_and_double_nothing(tmp_path, alone):
    study, text, dead = new_study(tmp_path), StringIO(), []
    moments = random.Random(0)

    def kill() -> None:
        for number in (0, 4, 9):
            wait_until(lambda at=number: f"trial {at} " in text.getvalue())
            time.sleep(moments.uniform(0, 0.05))
            dead.append(kill_one(moments))

    with beside(kill):
        run_study(study, Console(file=text), RunOptions(workers=2))
    assert len(set(dead)) == 3
    assert history(study) == history(alone)


@pytest.mark.slow
def test_a_candidate_that_kills_its_worker_three_times_fails_alone(tmp_path, alone, monkeypatch):
    whole = history(alone)
    deadly, tally = whole[7][4], tmp_path / "tally"
    monkeypatch.setattr(ray_evaluators, "_Worker", mortal(deadly, tally))
    study = scored(tmp_path, workers=2, trials=12)
    first = stored(study)[7]
    assert tally.read_text() == "xxx"
    assert first.state is TrialState.FAIL
    assert first.user_attrs["failure"] == "given up: its worker died 3 times while it ran"
    assert [t.state for t in stored(study)].count(TrialState.COMPLETE) == 11
    learnt = (10, 11, 12, 13)  # TPE's, from different trials
    later = [trial for trial in history(study) if trial[0] not in learnt]
    assert later == [trial for trial in whole if trial[0] not in (7, *learnt)]


@pytest.mark.slow
@postgres.needed
def test_a_database_that_restarts_beneath_two_workers(tmp_path, alone):
    text = StringIO()
    with postgres.server() as server:
        study = new_study(tmp_path, storage=server.url)

        def restart() -> None:
            for number in (0, 6):
                wait_until(lambda at=number: f"trial {at} " in text.getvalue())
                server.stop()
                server.start()

        with beside(restart):
            run_study(study, Console(file=text), RunOptions(workers=2))
        assert history(study) == history(alone)


@pytest.mark.slow
def test_an_interrupted_study_finishes_what_runs_and_goes_on_as_if_never_stopped(tmp_path, alone):
    study, text = new_study(tmp_path), StringIO()

    def interrupt() -> None:
        wait_until(lambda: "trial 6 " in text.getvalue())
        os.kill(os.getpid(), signal.SIGINT)

    with beside(interrupt):
        assert run_study(study, Console(file=text), RunOptions(workers=2)) is None
    states = [trial.state for trial in stored(study)]
    assert 6 < states.count(TrialState.COMPLETE) < TRIALS
    assert TrialState.FAIL not in states
    assert run_study(study, Console(file=StringIO()), RunOptions(workers=2)) is not None
    assert history(study) == history(alone)


@pytest.mark.slow
def test_items_split_over_workers_give_the_trials_of_one_process(tmp_path, monkeypatch):
    """Two candidates at a time for four workers; the sampler is one whose candidates don't race."""
    search = {"sampler": "composite", "racing": "always", "batch": 2, "trials": 11, "finalists": 2}
    changes = {
        "search": search,
        "items": {"search": 40, "select": 8, "holdout": 8},
        "objectives": [{"task": "tiny_choice", "metric": "acc"}, {"task": "tiny_generate"}],
    }
    studies = []
    for name in ("alone", "split"):
        (tmp_path / name).mkdir()
        studies.append(write_study(tmp_path / name, study_dict(**changes)))
    whole, split = studies
    assert run_study(whole, Console(file=StringIO())) is not None
    tally = tmp_path / "tally"
    monkeypatch.setattr(ray_evaluators, "_Worker", telling(tally))
    monkeypatch.setattr(ray_evaluators, "_Pool", Complete)
    assert run_study(split, Console(file=StringIO()), RunOptions(workers=4)) is not None
    assert history(split) == history(whole)
    for key in ("flags", "figures"):
        one, other = ([t.user_attrs.get(key) for t in stored(s)] for s in studies)
        assert one == other
    told = tally.read_text().split()
    assert set(told) == {"0-3", "3-4"}
    sent = [trial for trial in stored(split) if "reused" not in trial.user_attrs]
    assert told.count("0-3") == told.count("3-4") >= len(sent) > 4


@pytest.mark.slow
def test_a_worker_that_cannot_open_the_study_says_why(tmp_path):
    study = new_study(tmp_path)
    with on_ray(study, RayConfig(), "cpu", harness_of(study)) as evaluators:
        recipe = check_study(study).space.everyone()
        (tmp_path / "study.yaml").rename(tmp_path / "elsewhere.yaml")
        with pytest.raises(StudyError, match="there is no such file") as caught:
            list(evaluators.score([Job(recipe, Role.SEARCH)]))
    assert "at the same path on every machine" in str(caught.value)


@pytest.mark.slow
def test_workers_that_fit_nowhere_are_refused(tmp_path):
    study = new_study(tmp_path)
    with (
        pytest.raises(StudyError, match="a worker needs 1 CPUs and 64 GPUs"),
        on_ray(study, RayConfig(gpus=64), "cuda", harness_of(study)),
    ):
        pass


def mortal(deadly: str, tally: Path) -> type:
    """Workers that one candidate kills; a class of no module, which Ray sends by its value."""
    usual: Any = ray_evaluators._Worker

    class Mortal(usual):
        def score(self, job: Job, reference: Reference | None) -> Any:
            import os
            import signal

            from search.known import fingerprint

            if fingerprint(job.recipe) == deadly:
                with tally.open("a") as file:
                    file.write("x")
                os.kill(os.getpid(), signal.SIGKILL)
            return usual.score(self, job, reference)

    return Mortal


class Complete(ray_evaluators._Pool):
    """A pool that waits for all its workers, however slowly they come."""

    def learn(self, reference: Reference) -> None:
        self._idle += [self._joined(ready) for ready in list(self._coming)]
        super().learn(reference)


def telling(tally: Path) -> type:
    """Workers that write down which rungs they are asked for."""
    usual: Any = ray_evaluators._Worker

    class Telling(usual):
        def score(self, job: Job, reference: Reference | None) -> Any:
            if job.rungs is not None:
                with tally.open("a") as file:
                    file.write(f"{job.rungs.start}-{job.rungs.stop}\n")
            return usual.score(self, job, reference)

    return Telling


def harness_of(study: Path) -> Harness:
    return build_bench(check_study(study), (Role.SEARCH, Role.SELECT)).harness


def new_study(folder: Path, trials: int = TRIALS, **changes: Any) -> Path:
    search = {"sampler": "tpe", "trials": trials, "finalists": 2}
    items = {"search": 40, "select": 8, "holdout": 8}
    return write_study(folder, study_dict(search=search, items=items, **changes))


def scored(folder: Path, workers: int, trials: int = TRIALS) -> Path:
    study = new_study(folder, trials)
    assert run_study(study, Console(file=StringIO()), RunOptions(workers=workers)) is not None
    return study


class beside:  # noqa: N801
    """Something that goes on in a thread; what went wrong there is raised here."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work, self._error = work, None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error


def wait_until(true: Callable[[], bool], seconds: float = 120.0) -> None:
    late = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < late, "waited in vain"
        time.sleep(0.005)


def kill_one(chance: random.Random) -> int:
    """Kill one of this process's workers, if possible one that scores just now."""
    wait_until(lambda: bool(worker_processes()))
    found = worker_processes()
    busy = [pid for pid, title in found.items() if title.endswith("score")]
    pid = chance.choice(sorted(busy or found))
    os.kill(pid, signal.SIGKILL)
    return pid


def worker_processes() -> dict[int, str]:
    """Ray's actors below this process with what they do, by process."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            titles[int(folder.name)] = (folder / "cmdline").read_text().rstrip("\0 ")
        except OSError:
            continue
        parents[int(folder.name)] = int(stat[stat.rindex(")") + 2 :].split()[1])
    actors = {pid: title for pid, title in titles.items() if title.startswith("ray::_Worker")}
    return {pid: title for pid, title in actors.items() if os.getpid() in lineage(pid, parents)}


def lineage(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid in parents:
        pid = parents[pid]
        yield pid
