"""A vocabulary tensor in the order of another vocabulary: rows taken, averaged or left at zero."""

from dataclasses import dataclass
from pathlib import Path

import torch

from merge_core.checkpoint import Checkpoint, Reader


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """Rows that one model gives.

    Attributes:
        of: The model, in its own vocabulary.
        out: Rows of the output, `(n,)` int64.
        rows: The model's rows that go there, `(n,)` int64.
        tensor: Which of its tensors gives them; a tied head is its embeddings.
    """

    of: Checkpoint
    out: torch.Tensor
    rows: torch.Tensor
    tensor: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class AlignedRows:
    """One vocabulary tensor of one model, aligned to the output's vocabulary.

    A row that several shares give is their mean; one that none gives is zero.

    Attributes:
        name: The tensor.
        shape: Its shape after alignment.
        dtype: Its dtype, the model's own.
        shares: Who gives which rows.
        mean_rows: Rows of padding, filled with the mean of the others; `(n,)` int64.
        files: The tokenizers and adapters that decide it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    shares: tuple[Share, ...]
    mean_rows: torch.Tensor
    files: tuple[Path, ...]

    def build(self, reader: Reader) -> torch.Tensor:
        """The aligned tensor.

        Rows with one giver are copied bit for bit; means are in float32, in float64 of float64.
        """
        wide = torch.promote_types(self.dtype, torch.float32)
        givers = torch.zeros(self.shape[0], dtype=torch.int64)
        for share in self.shares:
            givers[share.out] += 1
        out = torch.zeros(self.shape, dtype=self.dtype)
        sums = torch.zeros((int((givers > 1).sum()), *self.shape[1:]), dtype=wide)
        place = (givers > 1).cumsum(0) - 1  # of a shared row in `sums`
        for share in self.shares:
            source = reader.of(share.of, share.tensor)
            alone = givers[share.out] == 1
            out[share.out[alone]] = source[share.rows[alone]].to(self.dtype)
            many = ~alone
            sums[place[share.out[many]]] += source[share.rows[many]].to(wide)
        shared = givers > 1
        out[shared] = (sums.T / givers[shared]).T.to(self.dtype)
        return self._padded(out)

    def _padded(self, out: torch.Tensor) -> torch.Tensor:
        if self.mean_rows.numel():
            real = self.shape[0] - self.mean_rows.numel()  # padding is zero until now
            total = out.sum(0, dtype=torch.promote_types(self.dtype, torch.float32))
            out[self.mean_rows] = (total / max(real, 1)).to(self.dtype)
        return out
