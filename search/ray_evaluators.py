"""Candidates scored by Ray actors, on this machine or on a cluster that is there already.

Ray places the actors, restarts those that die and tries their job again; they keep nothing that
could change a result. Each holds the parents and the live model resident, on one accelerator if the
study runs on one. Nothing here speaks a network.
"""

import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from evals.items import Role
from search.bench import Bench, Reference, build_bench, check_study
from search.config import RayConfig
from search.errors import StudyError
from search.evaluators import Begin, Evaluators, Job, score_job
from search.trial import Outcome

_RETRIES = 2  # a job that kills its actor is tried this often again
_ROLES = (Role.SEARCH, Role.SELECT)


@contextmanager
def on_ray(path: Path, config: RayConfig, device: str) -> Generator[Evaluators]:
    """Start the actors of a study, or join the cluster that the study names.

    Args:
        path: The study file, at the same place for every machine.
        config: How many actors and with what.
        device: That the study runs on: `cpu` or `cuda`.

    Raises:
        StudyError: If Ray isn't installed, can't be reached or has no room for the actors.
    """
    if find_spec("ray") is None:  # an optional extra
        raise StudyError(["ray: workers need Ray; install outcross[ray]"], str(path))
    with _cluster(config, path) as ray:
        yield _Pool(ray, path, config, device)


@contextmanager
def _cluster(config: RayConfig, path: Path) -> Generator[Any]:
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


class _Pool:
    """Jobs for actors, one at a time for each."""

    def __init__(self, ray: Any, path: Path, config: RayConfig, device: str) -> None:
        self._ray = ray
        actor = ray.remote(
            num_cpus=config.cpus,
            num_gpus=config.gpus if device.startswith("cuda") else 0,
            max_restarts=-1,
            max_task_retries=_RETRIES,
        )(_Worker)
        study = str(path.resolve())
        self._actors = [actor.remote(study, config.cpus) for _ in range(config.workers)]
        self._reference: Any = None
        self._ways: Sequence[str] = ()

    @property
    def count(self) -> int:
        """One job for each actor."""
        return len(self._actors)

    def learn(self, reference: Reference) -> None:
        """See `Evaluators`; it travels with every job, since an actor may be a new one."""
        self._reference = self._ray.put(reference)

    def ways(self) -> Sequence[str]:
        """See `Evaluators`."""
        return cast("Sequence[str]", self._ray.get(self._actors[0].ways.remote()))

    def score(
        self, jobs: Sequence[Job], begin: Begin | None = None
    ) -> Iterator[tuple[int, Outcome]]:
        """See `Evaluators`."""
        waiting, idle = deque(enumerate(jobs)), deque(self._actors)
        running: dict[Any, tuple[int, Any]] = {}
        while waiting or running:
            while waiting and idle:
                position, job = waiting.popleft()
                if begin is not None and not begin(position):
                    waiting.clear()
                    break
                actor = idle.popleft()
                running[actor.score.remote(job, self._reference)] = position, actor
            if not running:
                return
            (ready,), _ = self._ray.wait(list(running))
            position, actor = running.pop(ready)
            idle.append(actor)
            yield position, self._outcome(ready)

    def _outcome(self, ready: Any) -> Outcome:
        failures = self._ray.exceptions
        try:
            return cast("Outcome", self._ray.get(ready))
        except failures.RayActorError:
            reason = f"given up: its worker died {_RETRIES + 1} times while it ran"
            return Outcome(None, reason, 0.0)
        except failures.RayTaskError as error:
            raise StudyError([str(error.cause)], "a worker") from None


class _Worker:
    """One model, resident in one process.

    Args:
        path: The study file.
        threads: Of torch, so that the last bits don't depend on how many workers there are.
    """

    def __init__(self, path: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._bench: Bench = build_bench(check_study(Path(path)), _ROLES)
        self._known: Reference | None = None

    def score(self, job: Job, reference: Reference | None) -> Outcome:
        if reference is not None and reference != self._known:
            self._bench.learn(reference)
            self._known = reference
        return score_job(job, self._bench)

    def ways(self) -> Sequence[str]:
        return self._bench.harness.answering.ways
