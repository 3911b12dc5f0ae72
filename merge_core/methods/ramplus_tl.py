"""RAM+ by tensor: RAM that rescales what one parent moved alone (mergekit 0.1.5 `ramplus_tl`)."""

from typing import Annotated

import torch

from merge_core.elementwise import UniqueAndShared, recent
from merge_core.geometry import TensorGroup
from merge_core.registry import Base, Bounds, Range, merge_method


@merge_method(
    title="RAM+ (tensor level)", reference="https://arxiv.org/abs/2601.13572", base=Base.REQUIRED
)
def ramplus_tl(
    group: TensorGroup,
    *,
    epsilon: Annotated[float, Range(1e-6, 1e-3, log=True), Bounds(0.0)] = 1e-5,
    r: Annotated[float, Range(0.0, 1.0)] = 0.1,
    alpha: Annotated[float, Range(0.0, 1.0)] = 0.2,
) -> UniqueAndShared:
    """As `ram`, with the part that parent i alone moved times 1 + r clamp(shared_i / unique_i).

    The ratio is clamped to [0, alpha]; unique_i and shared_i count the tensor's elements that
    parent i moved alone and with others. It makes up for what averaging takes from parents that
    share much. mergekit writes float32 whatever the models' dtype; here the plan's dtype holds.

    Args:
        group: The parents' tensors and their base.
        epsilon: What counts as moved, in the unit of the weights.
        r: Strength of the rescaling.
        alpha: Largest ratio that counts.
    """
    counts = recent(group, "ram", epsilon, lambda: _counts(group, epsilon))
    gains = tuple(
        1.0 + r * min(max(shared / max(unique, epsilon, 1), 0.0), alpha)
        for unique, shared in counts
    )
    return UniqueAndShared(epsilon, gains)


def _counts(group: TensorGroup, epsilon: float) -> tuple[tuple[int, int], ...]:
    """Elements that each parent moved alone and with others, `(parents, 2)`."""
    total = torch.zeros(group.parents, 2, dtype=torch.int64)
    for _, rows in group.deltas():
        moved = rows.abs_() > epsilon
        alone = moved & (moved.sum(0) == 1)
        unique = alone.sum(1)
        total += torch.stack([unique, moved.sum(1) - unique], 1).cpu()
    return tuple((int(unique), int(shared)) for unique, shared in total)
