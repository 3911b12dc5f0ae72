"""Move the base towards another model where they are near (mergekit 0.1.5 `nearswap`)."""

from dataclasses import dataclass
from typing import Annotated

import torch

from merge_core.combination import Elementwise
from merge_core.geometry import TensorGroup
from merge_core.registry import Base, Bounds, Range, merge_method

_NEAREST = 1e-6


@dataclass(frozen=True, slots=True)
class Nearswap(Elementwise):
    """base + w T with w = clamp(t / max(|T|, 1e-6), 0, 1).

    Attributes:
        t: The distance up to which elements are swapped.
    """

    t: float

    def merge(self, base: torch.Tensor | None, values: torch.Tensor, start: int) -> torch.Tensor:  # noqa: ARG002
        """Merge one piece; see `Elementwise`."""
        assert base is not None  # the method asked for it; planned so
        share = values[0].abs().clamp_(min=_NEAREST).reciprocal_().mul_(self.t).clamp_(0, 1)
        return share.mul_(values[0]).add_(base)


@merge_method(
    title="Nearswap",
    reference="https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    base=Base.REQUIRED,
    inputs=(1, 1),
)
def nearswap(
    group: TensorGroup,  # noqa: ARG001
    *,
    t: Annotated[float, Range(1e-5, 3e-3, log=True), Bounds(0.0)],
) -> Nearswap:
    """Base + w (x - base), with w = clamp(t / max(|x - base|, 1e-6), 0, 1).

    Elements nearer than t become those of the other model, the others move by t towards it (for t
    of 1e-6 and more, it is the task vector clipped to [-t, t]). No paper; the formula is
    mergekit's, in float32 whatever the models' dtype.

    Args:
        group: The other model's tensor and the base.
        t: The distance, in the unit of the weights; 0 gives the base.
    """
    return Nearswap(t)
