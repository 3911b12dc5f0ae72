"""SCE: select, calculate, erase (arXiv:2408.07990; mergekit 0.1.5 `sce`)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch

from merge_core.combination import Elementwise, Nothing, Selection, Window
from merge_core.elementwise import recent
from merge_core.geometry import TensorGroup
from merge_core.magnitudes import find_cut, measure
from merge_core.masks import select
from merge_core.registry import SHARE, Base, Range, merge_method

_FLOOR = 1e-6  # mergekit's, below which it gives up weighing and dividing


@dataclass(frozen=True, slots=True)
class Sce(Elementwise):
    """base + sum_i w_i T_i agree_i / sum_i w_i agree_i, of the selected elements.

    Attributes:
        weights: Weight of each parent, `(parents,)`.
        selection: Which elements are kept, by the variance between the parents.
        floor: Smallest number that is divided by.
    """

    weights: tuple[float, ...]
    selection: Selection
    floor: float

    def merge(self, base: torch.Tensor | None, values: torch.Tensor, start: int) -> torch.Tensor:
        """Merge one piece; see `Elementwise`."""
        assert base is not None  # the method asked for it; planned so
        _keep(self.selection, values, start)
        total = values.sum(0)
        sign = torch.ones_like(total).copysign_(total.add_(0.0))  # -0.0 votes +
        agreeing = values.mul_(sign).clamp_(min=0)  # turned so that agreeing elements are positive
        weights = torch.tensor(self.weights, dtype=torch.float32, device=values.device)
        merged = (weights @ agreeing).mul_(sign)
        share = weights @ agreeing.sign_()
        share = share.clamp_(min=self.floor) if self.floor else share.add_(share == 0)
        return merged.div_(share).add_(base)


@merge_method(title="SCE", reference="https://arxiv.org/abs/2408.07990", base=Base.REQUIRED)
def sce(
    group: TensorGroup,
    *,
    select_topk: Annotated[float, Range(0.1, 1.0), SHARE] = 1.0,
    int8_mask: bool = False,  # noqa: ARG001
) -> Sce:
    """Keep the elements that differ most between parents, weigh by energy, drop minority signs.

    With T_i = x_i - base: (select) below select_topk = 1, keep in all T_i the int(select_topk *
    count of nonzero variances) elements of largest variance over the parents, the first among
    equals; (calculate) w_i = mean(T_i^2) / sum_j mean(T_j^2); (erase) base + sum w_i T_i m_i /
    sum w_i m_i, with m_i = 1 where T_i has the sign of sum_j T_j (0 is +).

    mergekit weighs all parents the same once the means of squares sum to less than 1e-6, which
    ordinary fine-tunes stay below; here only where all task vectors are zero. `TensorGroup.compat`
    restores that.

    Args:
        group: The parents' tensors and their base.
        select_topk: Share of the elements that vary which is kept; 0 keeps none.
        int8_mask: Read for mergekit's sake; it changes mergekit's memory use and no value.
    """
    share = min(select_topk, 1.0)
    selection, squares = recent(group, "sce", share, lambda: _figures(group, share))
    total = sum(squares)
    if total == 0 or (group.compat and total < _FLOOR):
        weights = (1.0 / group.parents,) * group.parents
    else:
        weights = tuple(square / total for square in squares)
    return Sce(weights, selection, _FLOOR if group.compat else 0.0)


@dataclass(frozen=True, slots=True)
class _Variances:
    """The variance over the parents, as `magnitudes` reads a task vector."""

    group: TensorGroup

    @property
    def numel(self) -> int:
        return self.group.shape.numel()

    def pieces(self) -> Iterator[tuple[int, torch.Tensor]]:
        for start, rows in self.group.deltas():
            yield start, _variance(rows)

    @property
    def native(self) -> None:
        return None


def _variance(rows: torch.Tensor) -> torch.Tensor:
    return (rows - rows.mean(0)).square_().mean(0)


def _keep(selection: Selection, values: torch.Tensor, start: int) -> None:
    """Set the elements that are not selected to zero, in place."""
    if selection is not None:
        values.mul_(select(selection, _variance(values), start) != 0)


def _figures(group: TensorGroup, share: float) -> tuple[Selection, tuple[float, ...]]:
    """The selection and every parent's mean of squares after it."""
    selection = None if share >= 1 else _selection(group, share)
    total = torch.zeros(group.parents, dtype=torch.float64)
    for start, rows in group.deltas():
        _keep(selection, rows, start)
        total += rows.double().square_().sum(1).cpu()
    count = max(1, group.shape.numel())
    return selection, tuple(float(square) / count for square in total)


def _selection(group: TensorGroup, share: float) -> Selection:
    variances = _Variances(group)
    varying = group.once(
        "varying", lambda: sum(int(piece.count_nonzero()) for _, piece in variances.pieces())
    )
    kept = int(varying * share)
    if kept <= 0:
        return Nothing()
    magnitudes = group.once("variances", lambda: measure(variances))
    return Window(None, find_cut(variances, magnitudes, kept))
