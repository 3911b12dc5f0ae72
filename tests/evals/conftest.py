"""What several tests of evals share: a study's models and tasks, and a live model of it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from tiny_study import write_study

from evals.harness import Harness
from evals.items import Counts, Role
from evals.loading import TaskRequest
from evals.resident import Resident, build_resident
from evals.settings import Settings
from evals.tasks import OpenTask, open_tasks
from merge_core.apply import Workbench, apply
from merge_core.checkpoint import Checkpoint, open_checkpoint
from merge_core.parents import Parents
from merge_core.plan import compile_plan
from merge_core.recipe import Recipe, Slice, Source

CPU = torch.device("cpu")
COUNTS = Counts(12, 4, 8)


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models `base`, `a`, `b` and the local tasks of tiny_study; nothing in it is to be changed."""
    import datasets

    folder = tmp_path_factory.mktemp("study")
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    yield write_study(folder, spread=0.1).parent
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="session")
def pour() -> Callable[[Path, Path], Resident]:
    """Build a resident for the first folder's model and fill it with the second's weights."""

    def build(donor: Path, filling: Path) -> Resident:
        parents = {"donor": open_checkpoint(donor, "donor"), "x": open_checkpoint(filling, "x")}
        plan = compile_plan(_copy_of("x"), parents)
        names = [step.out for step in plan.steps]
        resident = build_resident(parents["donor"].config, donor, names, torch.float32, CPU)
        apply(plan, Workbench(Parents(parents, CPU), resident.slots))
        return resident

    return build


@pytest.fixture
def resident(study_folder: Path, pour: Callable[[Path, Path], Resident]) -> Resident:
    """Parent `a`, alive."""
    return pour(study_folder / "models/base", study_folder / "models/a")


@pytest.fixture
def bench(study_folder: Path) -> Workbench:
    """An empty resident among its parents."""
    parents: dict[str, Checkpoint] = {
        name: open_checkpoint(study_folder / "models" / name, name) for name in ("base", "a", "b")
    }
    base = parents["base"]
    live = build_resident(base.config, base.folder, base.tensors, torch.float32, CPU)
    return Workbench(Parents(parents, CPU), live.slots)


@pytest.fixture(scope="session")
def open_local(study_folder: Path) -> Callable[..., tuple[OpenTask, ...]]:
    """Open local tasks; a mistake fails the test unless it is collected."""

    def open_them(
        *requests: TaskRequest | str, counts: Counts = COUNTS, mistakes: list[str] | None = None
    ) -> tuple[OpenTask, ...]:
        found: list[str] = []
        asked = [TaskRequest(r) if isinstance(r, str) else r for r in requests]
        tasks = open_tasks(
            asked,
            counts,
            0,
            [study_folder / "tasks"],
            lambda at, text: found.append(f"{at}: {text}"),
        )
        if mistakes is None:
            assert not found
        else:
            mistakes += found
        return tasks

    return open_them


@pytest.fixture
def harness_of(resident: Resident) -> Callable[..., Harness]:
    """A harness over parent `a`."""

    def build(
        tasks: Sequence[OpenTask], roles: Sequence[Role] = (Role.SEARCH,), **settings: object
    ) -> Harness:
        return Harness(resident, tasks, roles, Settings(**{"batch_size": 8} | settings))

    return build


def _copy_of(model: str) -> Recipe:
    return Recipe("passthrough", (Slice((Source(model),)),))
