"""A candidate whose items are split has the outcome of one worker, whatever goes wrong with it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from tiny_study import study_dict

from evals.answering import Practice
from evals.items import Role
from evals.rungs import EIGHTHS
from search import ray_evaluators
from search.baselines import parent_recipe
from search.bench import Bench, Reference, build_bench, check_study
from search.config import RayConfig
from search.evaluators import Job, score_job
from search.racing import Race
from search.splitting import divided, join, split
from search.trial import Outcome

DOUBLING = (1, 1, 2, 4)
JOB = Job(parent_recipe("a"), Role.SEARCH, measure=True)
FUNCTION = "def of(model, tokenizer):\n    return {}\n"


@pytest.fixture
def bench(study_folder: Path) -> Bench:
    """A bench over choices, generations and a function, in four rungs."""
    return bench_of(study_folder, "1.5")


def bench_of(folder: Path, figure: str) -> Bench:
    (folder / "figure.py").write_text(FUNCTION.format(figure))
    objectives = [
        {"task": "tiny_choice"},
        {"task": "tiny_generate"},
        {"function": "figure.py:of", "direction": "maximize"},
    ]
    path = folder / "splitting.yaml"
    search = {"sampler": "gp", "trials": 6, "racing": "always"}
    path.write_text(yaml.safe_dump(study_dict(objectives=objectives, search=search)))
    return build_bench(check_study(path), (Role.SEARCH, Role.SELECT))


def both(bench: Bench, job: Job = JOB, workers: int = 2) -> tuple[Outcome, Outcome]:
    """The outcome of one worker, and of several."""
    parts = split(job, bench.harness.rungs(Role.SEARCH), workers)
    assert len(parts) == workers
    answered = [score_job(part, bench) for part in reversed(parts)]
    joined = join(answered[::-1], bench.harness, bench.worst)
    return untimed(score_job(job, bench)), untimed(joined)


def untimed(outcome: Outcome) -> Outcome:
    card = outcome.scorecard
    timeless = None if card is None else replace(card, seconds=0.0)
    return replace(outcome, merge_seconds=0.0, scorecard=timeless)


@pytest.mark.parametrize(
    ("sizes", "most", "stops"),
    [
        (DOUBLING, 0, [4]),
        (DOUBLING, 1, [4]),
        (DOUBLING, 2, [3, 4]),
        (DOUBLING, 8, [3, 4]),  # the last rung takes as long as all others
        ((1,) * 8, 3, [2, 5, 8]),
        ((1,) * 8, 4, [2, 4, 6, 8]),
        ((1,) * 8, 9, [1, 2, 3, 4, 5, 6, 7, 8]),
        ((3, 3, 3), 2, [1, 3]),
        ((3, 3, 3), 3, [1, 2, 3]),
        ((1, 3), 2, [1, 2]),
        ((5,), 4, [1]),
    ],
)
def test_rungs_are_dealt_as_evenly_as_they_can_be(sizes: Sequence[int], most: int, stops: list):
    parts = divided(sizes, most)
    assert [part.stop for part in parts] == stops
    assert [at for part in parts for at in part] == list(range(len(sizes)))


def test_the_first_piece_alone_measures():
    first, last = split(JOB, ((1,), (2,)), 2)
    assert (first.rungs, last.rungs) == (range(1), range(1, 2))
    assert (first.measure, last.measure) == (True, False)


@pytest.mark.parametrize(
    "job", [replace(JOB, race=Race((), ())), replace(JOB, role=Role.SELECT)], ids=["race", "select"]
)
def test_what_may_end_early_or_has_no_rungs_stays_whole(job: Job):
    assert split(job, ((1,), (2,)), 2) == (job,)


def test_a_sound_candidate(bench: Bench):
    one, two = both(bench)
    assert one.scorecard is not None
    assert set(one.scorecard.symptoms) == {"tiny_generate"}
    assert one.norms
    assert one.figures == {"of": 1.5}
    assert one.flags
    assert one.practice is not None
    assert two == one


@pytest.mark.parametrize("workers", [3, 4, 8])
def test_a_candidate_of_many_workers(bench: Bench, workers: int):
    bench.harness.shares = EIGHTHS
    one, many = both(bench, workers=workers)
    assert one.scorecard is not None
    assert many == one


def test_a_candidate_whose_texts_are_no_answers(bench: Bench):
    bench.worst = {"tiny_generate": {"truncated": 0.0, "empty": -2.0, "looping": 0.0}}
    one, two = both(bench)
    assert (one.failure or "").startswith("tiny_generate: 0% of its texts are empty")
    assert two == one


def test_a_candidate_that_fails_in_a_later_rung(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    answer = bench.harness._answer

    def failing(items: Any, *rest: Any) -> None:
        if len(items) == 16:  # the last rung has half of the 16 items of each benchmark
            raise ValueError("too many")
        answer(items, *rest)

    monkeypatch.setattr(bench.harness, "_answer", failing)
    one, two = both(bench)
    assert one.failure == "ValueError: too many"
    assert two == one


def test_a_candidate_with_a_missing_score(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    """The number is that of all items, not of those of the piece that first lacked one."""
    monkeypatch.setattr("evals.harness._kept", lambda _, results: [1.0] * (len(results) - 1))
    one, two = both(bench)
    assert one.failure == "tiny_choice: 4 of 16 items gave no number for acc,none"
    assert two == one


def test_a_function_that_fails(study_folder: Path):
    one, two = both(bench_of(study_folder, "float('nan')"))
    assert (one.failure or "").startswith("function 'of' gave nan")
    assert two == one


def test_an_unhealthy_candidate(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("search.trial.health", lambda *_: "ill")
    one, two = both(bench)
    assert one.failure == "ill"
    assert two == one


# Who gets which pieces: a Ray that does a job when its result is waited for.


class Actor:
    """Of a worker's class; each method is a task."""

    def __init__(self, made: Any) -> None:
        self.open = SimpleNamespace(remote=lambda: made.open)
        self.score = SimpleNamespace(remote=lambda job, _: Task(made, job))


class Task:
    """A job that is done once its result is asked for."""

    def __init__(self, worker: Any, job: Job) -> None:
        self.worker, self.job = worker, job

    def __call__(self) -> Outcome:
        return self.worker.score(self.job)


class Worker:
    """Does jobs with one bench and notes them; dies of some."""

    bench: Bench
    jobs: list[Job]
    deadly: range | None

    def __init__(self, *_: object) -> None: ...

    def open(self) -> None: ...

    def score(self, job: Job) -> Outcome:
        self.jobs.append(job)
        if self.deadly is not None and job.rungs == self.deadly:
            raise ActorError
        return score_job(job, self.bench)


class ActorError(Exception): ...


class OtherError(Exception): ...


RAY = SimpleNamespace(
    cluster_resources=lambda: {"CPU": 8.0},
    remote=lambda **_: lambda made: SimpleNamespace(remote=lambda *a: Actor(made(*a))),
    wait=lambda tasks: (tasks[:1], tasks[1:]),
    get=lambda task: task(),
    put=lambda thing: thing,
    exceptions=SimpleNamespace(
        RayActorError=ActorError, OutOfMemoryError=ActorError, RayTaskError=OtherError
    ),
)


@pytest.fixture
def pool(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Four workers that are all there."""
    monkeypatch.setattr(ray_evaluators, "_Worker", Worker)
    Worker.bench, Worker.jobs, Worker.deadly = bench, [], None
    made = ray_evaluators._Pool(RAY, tmp_path, RayConfig(workers=4), "cpu", bench.harness)
    made._idle += [made._joined(ready) for ready in list(made._coming)]
    return made


def learnt(pool: Any) -> Any:
    outcome = score_job(JOB, Worker.bench)
    pool.learn(Reference({}, {}, outcome.practice))
    return pool


def jobs(*names: str) -> list[Job]:
    return [Job(parent_recipe(name), Role.SEARCH) for name in names]


@pytest.mark.parametrize(
    ("names", "pieces"), [("a", 2), ("ab", 4), (("a", "b", "base", "a", "b"), 5)]
)
def test_idle_workers_share_the_jobs_there_are(pool: Any, names: Sequence[str], pieces: int):
    begun: list[int] = []
    found = dict(learnt(pool).score(jobs(*names), lambda at: begun.append(at) is None))
    assert begun == list(range(len(names)))
    assert len(Worker.jobs) == pieces
    for at, name in enumerate(names):
        whole = score_job(Job(parent_recipe(name), Role.SEARCH), Worker.bench)
        assert untimed(found[at]) == untimed(whole)
    assert len(pool._idle) == 4


def test_a_stream_is_not_split(pool: Any):
    found = dict(learnt(pool).score(iter(jobs("a", "b"))))
    assert [job.rungs for job in Worker.jobs] == [None, None]
    assert found[0].scorecard is not None


def test_the_first_candidate_of_a_study_is_not_split(pool: Any):
    """It decides how requests are answered."""
    assert len(dict(pool.score(jobs("a")))) == 1
    pool.learn(Reference({}, {}))
    assert len(dict(pool.score(jobs("b")))) == 1
    assert [job.rungs for job in Worker.jobs] == [None, None]
    pool.learn(Reference({}, {}, Practice(16, {})))
    assert len(dict(pool.score(jobs("b")))) == 1
    assert [job.rungs for job in Worker.jobs[2:]] == [range(3), range(3, 4)]


@pytest.mark.parametrize("deadly", [range(3), range(3, 4)])
def test_a_candidate_whose_piece_is_given_up_fails_alone(pool: Any, deadly: range):
    Worker.deadly = deadly
    (found,) = [outcome for _, outcome in learnt(pool).score(jobs("a"))]
    assert found.scorecard is None
    assert found.failure == "given up: its worker died 3 times while it ran"
    assert len(Worker.jobs) == 2
    assert len(pool._idle) == 4


def test_a_worker_checks_the_file_with_the_budget_that_was_typed(study_folder: Path):
    path = study_folder / "budget.yaml"
    path.write_text(yaml.safe_dump(study_dict(search={"sampler": "gp", "trials": 1000})))
    threads = torch.get_num_threads()
    try:
        assert "the budget is 1000" in (
            ray_evaluators._Worker(str(path), threads, None).open() or ""
        )
        assert ray_evaluators._Worker(str(path), threads, 6).open() is None
    finally:
        torch.set_num_threads(threads)
