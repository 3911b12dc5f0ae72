"""How much one forward pass may hold, found by trying: halved when memory runs out."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from evals.errors import NoMemoryError

T = TypeVar("T")

SEQUENCES = 32  # what `auto` begins with


@dataclass(slots=True)
class BatchSize:
    """Sequences per forward pass, for every candidate the same until memory runs out.

    Attributes:
        sequences: The present size.
        automatic: Whether it may be lowered.
    """

    sequences: int
    automatic: bool

    def attempt(self, work: Callable[[int], T]) -> T:
        """Do something with the present size; on out-of-memory halve it, remember that, try again.

        Raises:
            NoMemoryError: If one sequence doesn't fit, or a stated size doesn't.
        """
        while True:
            try:
                return work(self.sequences)
            except (RuntimeError, MemoryError) as error:
                if not is_memory(error):
                    raise
                if not self.automatic or self.sequences == 1:
                    raise NoMemoryError(self._advice()) from None
            self.sequences //= 2
            release()

    def _advice(self) -> str:
        if self.automatic:
            return "evaluation: memory runs out with one sequence; set evaluation.max_length"
        return (
            f"evaluation.batch_size: memory runs out with {self.sequences} sequences; set it lower "
            "or to 'auto'"
        )


def is_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


def release() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
