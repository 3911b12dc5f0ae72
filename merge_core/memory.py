"""What memory a merge will take, from its plan alone."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from merge_core.checkpoint import Checkpoint
from merge_core.geometry import TensorRef
from merge_core.plan import MergePlan, MergeStep

_PIECE_BYTES = 4 * (1 << 18)  # geometry works on pieces of this size on a CPU, in float32


@dataclass(frozen=True, slots=True)
class Memory:
    """An estimate for a streamed merge.

    Attributes:
        anonymous: The most that it holds of its own at one time, in bytes.
        mapped: Size of the files that it maps; the page cache holds what fits.
    """

    anonymous: int
    mapped: int


def memory(plan: MergePlan, checkpoints: Mapping[str, Checkpoint], device: torch.device) -> Memory:
    """How much a streamed merge will take.

    Args:
        plan: What will be merged.
        checkpoints: The parents.
        device: Where; an accelerator holds copies of a tensor's inputs too.
    """
    steps = (_step(step, checkpoints, device) for step in plan.steps)
    used = {ref.parent for step in plan.steps for ref in _refs(step)}
    return Memory(max(steps, default=0), sum(checkpoints[name].bytes for name in used))


def _step(step: MergeStep, checkpoints: Mapping[str, Checkpoint], device: torch.device) -> int:
    specs = [checkpoints[ref.parent].tensors[ref.name] for ref in _refs(step)]
    derived = [
        spec.numel * (2 * 4 + spec.dtype.itemsize)  # a change and its sum, in float32
        for ref, spec in zip(_refs(step), specs, strict=True)
        if ref.name in checkpoints[ref.parent].derived
    ]
    copies = sum(spec.numel * spec.dtype.itemsize for spec in specs)
    out = torch.Size(step.shape).numel() * step.dtype.itemsize
    working = (len(specs) + 2) * _PIECE_BYTES if device.type == "cpu" else copies
    return out + working + max(derived, default=0)


def _refs(step: MergeStep) -> tuple[TensorRef, ...]:
    return (*step.inputs, *((step.base,) if step.base else ()))
