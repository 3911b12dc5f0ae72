"""Merges whose coefficients differ between the rows, or the columns, of a tensor.

A line is a vector of the tensor along one axis: a row, or a column where `across`. The Gram matrix
of each line is the same in every trial, so a search reads the parents once.
"""

from dataclasses import dataclass

import numpy as np
import torch

from merge_core.combination import Elementwise
from merge_core.geometry import TensorGroup


@dataclass(frozen=True, slots=True, eq=False)
class Rowwise(Elementwise):
    """base + sum_i coefficients[i, line] * values_i, accumulated in float32.

    Attributes:
        coefficients: float32, `(parents, lines)`.
        width: Elements of a row.
        across: Whether lines are columns.
    """

    coefficients: torch.Tensor
    width: int
    across: bool

    def merge(self, base: torch.Tensor | None, values: torch.Tensor, start: int) -> torch.Tensor:
        """Weigh each element by its line's coefficients."""
        rows = _rows(values, start, self.width)
        first = start // self.width
        coefficients = self.coefficients.to(values.device)
        factors = (
            coefficients[:, None, :]
            if self.across
            else coefficients[:, first : first + rows.shape[1], None]
        )
        skipped = start % self.width
        merged = (rows * factors).sum(0).flatten()[skipped : skipped + values.shape[1]]
        return merged if base is None else merged + base


def rowwise(group: TensorGroup, coefficients: np.ndarray, across: bool = False) -> Rowwise:
    """The combination of lines.

    Args:
        group: The tensors.
        coefficients: `(lines, parents)`.
        across: Whether lines are columns.
    """
    table = torch.tensor(coefficients.T, dtype=torch.float32)
    return Rowwise(table, _width(group, across), across)


def line_grams(group: TensorGroup, across: bool = False) -> np.ndarray:
    """Inner products of the parents' lines (of the task vectors', where there is a base).

    Args:
        group: The tensors. One of fewer than two dimensions is one line.
        across: Columns, that is vectors along dimension 0, instead of vectors along the last one.

    Returns:
        `(lines, parents, parents)`, accumulated in float64; computed once.
    """
    return group.once(("line grams", across), lambda: _line_grams(group, across))


def _line_grams(group: TensorGroup, across: bool) -> np.ndarray:
    width = _width(group, across)
    lines = width if across else group.shape.numel() // width
    total = torch.zeros(lines, group.parents, group.parents, dtype=torch.float64)
    for start, deltas in group.deltas():
        rows = _rows(deltas, start, width).double()
        vectors = rows.permute(2, 0, 1) if across else rows.transpose(0, 1)
        grams = (vectors @ vectors.mT).cpu()
        first = 0 if across else start // width
        total[first : first + len(grams)] += grams
    return total.numpy()


def _width(group: TensorGroup, across: bool) -> int:
    """Elements of a row, such that `across` makes vectors along dimension 0 into columns."""
    shape = group.shape
    if not across:
        return max(1, shape[-1] if len(shape) else 1)
    return max(1, shape.numel() // max(1, shape[0]) if len(shape) else 1)


def _rows(values: torch.Tensor, start: int, width: int) -> torch.Tensor:
    """A piece of flattened tensors as whole rows, `(parents, rows, width)`, zeros at both ends."""
    end = start + values.shape[1]
    return torch.nn.functional.pad(values, (start % width, -end % width)).view(
        len(values), -1, width
    )
