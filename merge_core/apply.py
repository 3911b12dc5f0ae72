"""The hot loop: plan + parents → a live model's parameters, in place, changed tensors only."""

import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field

import torch

from merge_core.errors import MergeError
from merge_core.geometry import Geometry, TensorGroup
from merge_core.kernel import execute
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
    written = kept = 0
    for step in plan.steps:
        if step.out not in bench.slots:
            continue
        if bench.done.get(step.out) == step:
            kept += 1
            continue
        bench.done.pop(step.out, None)
        run_step(step, bench.geometry, bench.slots[step.out])
        bench.done[step.out] = step
        written += 1
    return MergeStats(time.perf_counter() - start, written, kept)


@torch.inference_mode()
def run_step(step: MergeStep, geometry: Geometry, out: torch.Tensor) -> None:
    """Write one output tensor.

    Args:
        step: How it is made.
        geometry: Gives the parents' tensors and their figures.
        out: Contiguous tensor of the step's shape.

    Raises:
        MergeError: If buffers that can't be merged differ between the parents.
    """
    if step.method is None:
        _copy(step, geometry, out)
        return
    group = TensorGroup(step.out, step.inputs, step.base, step.rounding, step.seed, geometry)
    keywords = {"lambda_" if name == "lambda" else name: value for name, value in step.params}
    execute(find_method(step.method).combine(group, **keywords), group, out)


def _copy(step: MergeStep, geometry: Geometry, out: torch.Tensor) -> None:
    first, *others = (geometry.parents.tensor(ref.parent, ref.name) for ref in step.inputs)
    if not all(torch.equal(first, other) for other in others):
        raise MergeError(
            f"tensor '{step.out}' holds no floating-point numbers and differs between "
            f"{', '.join(ref.parent for ref in step.inputs)}; it can't be merged"
        )
    out.copy_(first)
