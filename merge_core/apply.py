"""The hot loop: plan + parents → a live model's parameters, in place, changed tensors only."""

import time
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass, field

import torch

from merge_core.errors import MergeError
from merge_core.geometry import Geometry, TensorGroup
from merge_core.kernel import Job, execute
from merge_core.parents import Parents
from merge_core.plan import MergePlan, MergeStep
from merge_core.registry import find_method


@dataclass(frozen=True, slots=True)
class MergeStats:
    """What one merge did.

    Attributes:
        seconds: Wall time.
        written: Tensors written.
        kept: Tensors that already held what the plan asks for.
    """

    seconds: float
    written: int
    kept: int


@dataclass(slots=True)
class Workbench:
    """Parents, their geometry and a live model's tensors, which `apply` overwrites.

    Attributes:
        parents: Where the inputs are.
        slots: The live tensors by output name; a plan's tensor without a slot is skipped (a head
            that shares its storage with the embeddings).
        geometry: Figures that every trial shares.
        done: The step that made each slot's present content.
    """

    parents: Parents
    slots: MutableMapping[str, torch.Tensor]
    geometry: Geometry = field(init=False)
    done: dict[str, MergeStep] = field(default_factory=dict[str, MergeStep])

    def __post_init__(self) -> None:
        """Tie the geometry to the parents."""
        self.geometry = Geometry(self.parents)


def apply(plan: MergePlan, bench: Workbench) -> MergeStats:
    """Make the live model be what the plan describes.

    Every write starts from the parents, so thousands of trials leave no drift, and a plan applied
    after another gives what it gives alone.

    Raises:
        MergeError: If a method refuses its numbers (weights that sum to zero); the slots then hold
            a mixture, and the next plan rewrites what was touched.
    """
    start = time.perf_counter()
    pending = [step for step in plan.steps if step.out in bench.slots]
    pending = [step for step in pending if bench.done.get(step.out) != step]
    for step in pending:
        bench.done.pop(step.out, None)
    run_steps([(step, bench.slots[step.out]) for step in pending], bench.geometry)
    bench.done.update((step.out, step) for step in pending)
    kept = sum(step.out in bench.slots for step in plan.steps) - len(pending)
    return MergeStats(time.perf_counter() - start, len(pending), kept)


@torch.inference_mode()
def run_steps(steps: Iterable[tuple[MergeStep, torch.Tensor]], geometry: Geometry) -> None:
    """Write output tensors: all methods decide first, then the kernels run.

    Args:
        steps: How each is made, and a contiguous tensor of its shape to write to.
        geometry: Gives the parents' tensors and their figures.

    Raises:
        MergeError: If a method refuses its numbers, or buffers that can't be merged differ between
            the parents.
    """
    jobs: list[Job] = []
    for step, out in steps:
        if step.method is None:
            _copy(step, geometry, out)
        else:
            jobs.append(_job(step, geometry, out))
    execute(jobs)


def _job(step: MergeStep, geometry: Geometry, out: torch.Tensor) -> Job:
    assert step.method is not None
    group = TensorGroup(step.out, step.inputs, step.base, step.rounding, step.seed, geometry)
    keywords = {"lambda_" if name == "lambda" else name: value for name, value in step.params}
    return Job(find_method(step.method).combine(group, **keywords), group, out)


def _copy(step: MergeStep, geometry: Geometry, out: torch.Tensor) -> None:
    first, *others = (geometry.parents.tensor(ref.parent, ref.name) for ref in step.inputs)
    if not all(torch.equal(first, other) for other in others):
        raise MergeError(
            f"tensor '{step.out}' holds no floating-point numbers and differs between "
            f"{', '.join(ref.parent for ref in step.inputs)}; it can't be merged"
        )
    out.copy_(first)
