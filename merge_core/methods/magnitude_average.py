"""Average task vectors, each element weighed by how far it moved."""

from dataclasses import dataclass
from typing import Annotated

import torch

from merge_core.combination import Elementwise
from merge_core.geometry import TensorGroup
from merge_core.registry import Base, Bounds, Default, PerParent, Range, merge_method


@dataclass(frozen=True, slots=True)
class MagnitudeAverage(Elementwise):
    """base + scale * sum_i w_i |T_i|^p T_i / sum_i w_i |T_i|^p.

    Attributes:
        weights: Factor of each parent's vote, `(parents,)`; those of weight zero are left out.
        exponent: p.
        scale: Factor of the merged task vector.
    """

    weights: tuple[float, ...]
    exponent: float
    scale: float

    def merge(self, base: torch.Tensor | None, values: torch.Tensor, start: int) -> torch.Tensor:  # noqa: ARG002
        """Merge one piece; see `Elementwise`."""
        assert base is not None  # the method asked for it; planned so
        chosen = [parent for parent, weight in enumerate(self.weights) if weight != 0]
        if not chosen:
            return base
        values = values[chosen]
        votes = values.abs()
        largest = votes.amax(0)
        votes.div_(largest.add_(largest == 0))  # small numbers to a power would vanish
        weights = torch.tensor(
            [self.weights[parent] for parent in chosen], dtype=torch.float32, device=values.device
        )
        votes.pow_(self.exponent).mul_(weights[:, None])
        total = votes.sum(0)
        merged = values.mul_(votes).sum(0).div_(total.add_(total == 0))
        return merged.mul_(self.scale).add_(base)


@merge_method(
    title="Magnitude-weighted average",
    reference="https://arxiv.org/abs/2111.09832",
    base=Base.REQUIRED,
)
def magnitude_average(
    group: TensorGroup,  # noqa: ARG001
    *,
    weight: Annotated[PerParent, Range(0.0, 1.0), Bounds(0.0), Default(1.0)],
    exponent: Annotated[float, Range(0.0, 4.0), Bounds(0.0)] = 1.0,
    lambda_: Annotated[float, Range(0.1, 2.0)] = 1.0,
) -> MagnitudeAverage:
    """Base + lambda * sum_i w_i |T_i|^p T_i / sum_i w_i |T_i|^p, element by element.

    T_i = x_i - base, p = exponent; elements that no parent moved stay. p = 0 is the weighted mean
    of the task vectors; the larger p, the more the parent that moved farthest decides.

    It is not Fisher averaging (the reference), which weighs by mean squared gradients on each
    parent's data: no data is used here. With p = 2 squared task vectors stand in for the diagonal
    of the Fisher matrix, on the guess that training moves far what matters to its task. Not in
    mergekit.

    Args:
        group: The parents' tensors and their base.
        weight: Factor of each parent's vote, `(parents,)`, 0 or more: others could cancel.
        exponent: p, 0 or more.
        lambda_: Factor of the merged task vector.
    """
    return MagnitudeAverage(tuple(weight), exponent, lambda_)
