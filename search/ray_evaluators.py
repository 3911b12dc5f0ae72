"""Candidates scored by Ray actors, on this machine or on a cluster that is there already.

Ray places the actors, restarts those that die and tries their job again; they keep nothing that
could change a result. Each holds the parents and the live model resident, on one accelerator if the
study runs on one. Where enough of them are free, one candidate's items are split over several.
Nothing here speaks a network.
"""

import os
import socket
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from evals.answering import Practice
from evals.harness import Harness
from evals.items import Role
from search.bench import Bench, Reference, build_bench, check_study
from search.config import RayConfig
from search.errors import StudyError, first_line
from search.evaluators import Begin, Evaluators, Job, score_job
from search.splitting import join, split
from search.trial import Outcome

_RETRIES = 2  # a job that kills its actor is tried this often again
_ANSWER = 5.0  # seconds; Ray itself waits for minutes, and Ctrl-C doesn't end that
_ROLES = (Role.SEARCH, Role.SELECT)


@contextmanager
def on_ray(
    path: Path, config: RayConfig, device: str, harness: Harness, trials: int | None = None
) -> Generator[Evaluators]:
    """Start the actors of a study, or join the cluster that the study names.

    Args:
        path: The study file, at the same place for every machine.
        config: How many actors and with what.
        device: That the study runs on: `cpu` or `cuda`.
        harness: This process's own, for the scores of candidates whose items were split.
        trials: Another budget than the file's, which the actors then check the file with.

    Raises:
        StudyError: If Ray isn't installed, can't be reached or has no room for the actors.
    """
    if find_spec("ray") is None:  # an optional extra
        raise StudyError(["ray: workers need Ray; install outcross[ray]"], str(path))
    with _cluster(config, path) as ray:
        yield _Pool(ray, path, config, device, harness, trials)


@contextmanager
def _cluster(config: RayConfig, path: Path) -> Generator[Any]:
    if reason := _unreachable(config.address or ""):
        raise StudyError([reason], str(path))
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # CPU actors may see GPUs
    ray: Any = import_module("ray")  # takes a second, and has no types worth the name
    local = {} if config.address else {"num_cpus": config.workers * config.cpus}
    try:
        ray.init(
            address=config.address,
            include_dashboard=False if local else None,
            _node_ip_address="127.0.0.1" if local else None,
            log_to_driver=False,
            logging_level="ERROR",
            **local,
        )
    except Exception as error:  # Ray raises many types here
        reason = f"ray: {config.address or 'a local Ray'} can't be used: {error}"
        raise StudyError([reason], str(path)) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _unreachable(address: str) -> str | None:
    """Why nobody answers there; None if somebody does, or the address is none of the network's."""
    plain = address.removeprefix("ray://")
    try:
        place = urlsplit(f"//{plain}")
        if place.hostname is None or place.port is None:
            return None
        socket.create_connection((place.hostname, place.port), _ANSWER).close()
    except (OSError, ValueError) as error:
        return (
            f"ray.address: nobody answers at {plain} ({first_line(error)}); start Ray there, or "
            "give the address of a cluster that runs"
        )
    return None


@dataclass(slots=True)
class _Begun:
    """A job that runs, on one actor or on several.

    Attributes:
        position: The job's.
        parts: What the actors were given.
        found: What they gave, by the place of their part.
    """

    position: int
    parts: Sequence[Job]
    found: dict[int, Outcome] = field(default_factory=dict[int, Outcome])


class _Pool:
    """Jobs for actors, one at a time for each; an actor is used from when it is there."""

    def __init__(
        self,
        ray: Any,
        path: Path,
        config: RayConfig,
        device: str,
        harness: Harness,
        trials: int | None = None,
    ) -> None:
        self._ray, self._harness = ray, harness
        gpus = config.gpus if device.startswith("cuda") else 0
        _check_room(ray.cluster_resources(), config.cpus, gpus, path)
        actor = ray.remote(
            num_cpus=config.cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=_RETRIES
        )(_Worker)
        study = str(path.resolve())
        self._actors = [actor.remote(study, config.cpus, trials) for _ in range(config.workers)]
        self._coming = {actor.open.remote(): actor for actor in self._actors}
        self._idle: deque[Any] = deque()
        self._running: dict[Any, tuple[_Begun, int, Any]] = {}
        self._reference: Any = None
        self._learnt = Reference({}, {})
        self._practice: Practice | None = None

    def learn(self, reference: Reference) -> None:
        """See `Evaluators`; it travels with every job, since an actor may be a new one."""
        self._reference = self._ray.put(reference)
        self._learnt = reference

    def ways(self) -> Sequence[str]:
        """See `Evaluators`."""
        if self._practice is None:
            return ()
        return tuple(dict.fromkeys(way for _, way in self._practice.gates.values()))

    def score(
        self, jobs: Iterable[Job], begin: Begin | None = None
    ) -> Generator[tuple[int, Outcome]]:
        """See `Evaluators`."""
        waiting = enumerate(jobs)
        count = len(jobs) if isinstance(jobs, Sequence) else None
        more = True
        try:
            while True:
                while more and self._idle:
                    more = self._begin(next(waiting, None), begin, count)
                if not more and not self._running:
                    return
                (ready,), _ = self._ray.wait([*self._coming, *self._running])
                if ready in self._coming:
                    self._idle.append(self._joined(ready))
                    continue
                begun, place, actor = self._running.pop(ready)
                self._idle.append(actor)
                begun.found[place] = self._outcome(ready)
                if len(begun.found) == len(begun.parts):
                    yield begun.position, self._whole(begun)
        finally:  # nobody waits for the rest
            self._idle += [actor for *_, actor in self._running.values()]
            self._running.clear()

    def _begin(self, job: tuple[int, Job] | None, begin: Begin | None, count: int | None) -> bool:
        """Give a job to idle actors; False if there is none, or none may begin any more.

        Args:
            job: With its position.
            begin: See `Evaluators`.
            count: How many jobs there are in all; None if that isn't known.
        """
        if job is None or (begin is not None and not begin(job[0])):
            return False
        position, whole = job
        begun = _Begun(position, self._parts(whole, None if count is None else count - position))
        for place, part in enumerate(begun.parts):
            actor = self._idle.popleft()
            self._running[actor.score.remote(part, self._reference)] = begun, place, actor
        return True

    def _parts(self, job: Job, left: int | None) -> tuple[Job, ...]:
        """A job in as many pieces as there are idle actors for each job that is left to begin.

        A stream of jobs has no end that is known, so somebody will want the idle actors. Before it
        is known how requests are answered, two actors might not agree on it.
        """
        if left is None or self._learnt.practice is None:
            return (job,)
        return split(job, self._harness.rungs(Role.SEARCH), len(self._idle) // left)

    def _whole(self, begun: _Begun) -> Outcome:
        parts = [begun.found[place] for place in range(len(begun.parts))]
        return parts[0] if len(parts) == 1 else join(parts, self._harness, self._learnt.worst)

    def _joined(self, ready: Any) -> Any:
        failures = self._ray.exceptions
        try:
            reason = self._ray.get(ready)
        except (failures.RayTaskError, failures.RayActorError) as error:
            reason = f"can't be started: {error}"
        if reason is not None:
            raise _failed(reason)
        return self._coming.pop(ready)

    def _outcome(self, ready: Any) -> Outcome:
        failures = self._ray.exceptions
        try:
            outcome = cast("Outcome", self._ray.get(ready))
        except (failures.RayActorError, failures.OutOfMemoryError):
            reason = f"given up: its worker died {_RETRIES + 1} times while it ran"
            return Outcome(None, reason, 0.0)
        except failures.RayTaskError as error:
            raise _failed(error.cause) from None
        self._practice = outcome.practice or self._practice
        return outcome


class _Worker:
    """One model, resident in one process; built when it is first needed, also after a restart.

    Args:
        path: The study file.
        threads: Of torch, so that the last bits don't depend on how many workers there are.
        trials: See `on_ray`.
    """

    def __init__(self, path: str, threads: int, trials: int | None) -> None:
        self._path, self._threads, self._trials = Path(path), threads, trials
        self._known: Reference | None = None
        self._bench: Bench | None = None

    def ready(self) -> Bench:
        """Open what a job needs."""
        import torch

        if self._bench is None:
            torch.set_num_threads(self._threads)
            self._bench = build_bench(check_study(self._path, self._trials), _ROLES)
        return self._bench

    def open(self) -> str | None:
        """Make ready; why that isn't possible, or None."""
        try:
            self.ready()
        except StudyError as error:  # whose text is for people, not for pickle
            return str(error)
        return None

    def score(self, job: Job, reference: Reference | None) -> Outcome:
        """Do a job as a worker that learnt just this."""
        bench = self.ready()
        if reference is not None and reference != self._known:
            bench.learn(reference)
            self._known = reference
        return score_job(job, bench)


def _check_room(room: Mapping[str, float], cpus: float, gpus: float, path: Path) -> None:
    """Refuse a cluster on which no worker would ever start; one that grows has one node at least.

    With room for some of the workers only, those do the work.
    """
    has = room.get("CPU", 0.0), room.get("GPU", 0.0)
    if has[0] < cpus or has[1] < gpus:
        reason = (
            f"ray: a worker needs {cpus:g} CPUs and {gpus:g} GPUs, and the whole cluster has "
            f"{has[0]:g} and {has[1]:g}; change ray.cpus or ray.gpus, or start Ray with more"
        )
        raise StudyError([reason], str(path))


def _failed(reason: object) -> StudyError:
    hint = "study file, models and tasks are needed at the same path on every machine"
    return StudyError([f"{reason}", hint], "a worker")
