"""Take over the most important changes of one model (mergekit 0.1.5 `arcee_fusion`)."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from merge_core.combination import Elementwise
from merge_core.elementwise import order_statistics
from merge_core.geometry import TensorGroup, widen
from merge_core.registry import Base, merge_method

_ROWS = 1 << 20  # elements whose distributions are compared at a time
_LEAST = 1e-8  # added to every probability


@dataclass(frozen=True, slots=True)
class ArceeFusion(Elementwise):
    """base + T where |T| times the divergence of its row reaches the threshold.

    Attributes:
        threshold: Least importance of an element that is taken over.
        columns: Elements of a row.
        divergence: float32, `(rows,)`.
    """

    threshold: float
    columns: int
    divergence: torch.Tensor = field(compare=False, repr=False)

    def merge(self, base: torch.Tensor | None, values: torch.Tensor, start: int) -> torch.Tensor:
        """Merge one piece; see `Elementwise`."""
        assert base is not None  # the method asked for it; planned so
        important = _importance(values[0], start, self.columns, self.divergence) >= self.threshold
        return values[0].mul_(important).add_(base)


@merge_method(
    title="Arcee Fusion",
    reference="https://www.arcee.ai/blog/meet-mergekit-v0-1",
    base=Base.REQUIRED,
    inputs=(1, 1),
)
def arcee_fusion(group: TensorGroup) -> ArceeFusion:
    """Base + T where I >= median(I) + 1.5 (Q3(I) - Q1(I)), with T = x - base.

    The importance I of an element is |T| times the Kullback-Leibler divergence of its row (last
    dimension): sum p log(p / q), p = softmax(x) + 1e-8, q = softmax(base) + 1e-8. A quantile is
    the element int(q (n - 1)) of the sorted importances. No paper.

    mergekit takes the quantiles of tensors above 1e6 elements from 1e6 random draws; here they are
    exact. It also sums the divergence in the models' dtype, where the small ones of ordinary
    fine-tunes are rounding noise of either sign; here that takes float64, or float32 under
    `TensorGroup.compat`. And it writes float32 whatever the models' dtype; here the plan's holds.

    Args:
        group: The other model's tensor and the base.
    """
    precision = torch.float32 if group.compat else torch.float64
    return group.once(("arcee_fusion", precision), lambda: _fusion(group, precision))


def _fusion(group: TensorGroup, precision: torch.dtype) -> ArceeFusion:
    shape = group.shape
    columns = max(1, shape[-1] if len(shape) else 1)
    divergence = _divergence(group, columns, precision)

    def importances() -> Iterator[torch.Tensor]:
        for start, values in group.pieces(0):
            yield _importance(values, start, columns, divergence)

    last = shape.numel() - 1
    if last < 0:
        return ArceeFusion(0.0, columns, divergence)
    ranks = [int(share * last) for share in (0.25, 0.5, 0.75)]
    first, median, third = order_statistics(importances, ranks)
    spread = torch.tensor(third) - torch.tensor(first)  # float32, as the importances
    return ArceeFusion(float(torch.tensor(median) + 1.5 * spread), columns, divergence)


def _importance(
    values: torch.Tensor, start: int, columns: int, divergence: torch.Tensor
) -> torch.Tensor:
    """|T| times the divergence of its row, `(count,)`."""
    places = torch.arange(start, start + values.numel(), device=values.device)
    return divergence[places.div_(columns, rounding_mode="floor")].mul_(values.abs())


def _divergence(group: TensorGroup, columns: int, precision: torch.dtype) -> torch.Tensor:
    """Divergence of each row's softmax from the base's, float32, `(rows,)`."""
    assert group.base is not None  # the method asked for it; planned so
    tensors = [
        group.geometry.tensor(ref).reshape(-1, columns) for ref in (*group.inputs, group.base)
    ]
    found: list[torch.Tensor] = []
    step = max(1, _ROWS // columns)
    for row in range(0, tensors[0].shape[0], step):
        pair = [tensor[row : row + step] for tensor in tensors]
        p, q = (widen(rows, group.dtype).to(precision).softmax(-1) + _LEAST for rows in pair)
        divergence = (p * (p / q).log()).sum(-1)
        if precision is torch.float64:
            divergence.clamp_(min=0)  # it can't be negative; what is, is rounding
        found.append(divergence.float())
    return torch.cat(found)
