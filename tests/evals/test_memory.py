"""The batch size: halved when memory runs out, kept, and never hidden from a user who stated it."""

import pytest
import torch

import evals.memory
from evals.errors import EvaluationError
from evals.memory import BatchSize


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch):
    """Collecting garbage takes a second in a process as large as the suite's."""
    monkeypatch.setattr(evals.memory, "release", lambda: None)


def needing(most: int, error: Exception):
    def work(sequences: int) -> int:
        if sequences > most:
            raise error
        return sequences

    return work


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_it_is_halved_until_it_fits_and_stays_so(error: Exception):
    size = BatchSize(32, True)
    assert size.attempt(needing(5, error)) == 4
    assert size.attempt(needing(32, error)) == 4


def test_one_sequence_that_does_not_fit_is_an_error():
    with pytest.raises(EvaluationError, match="memory runs out with one sequence"):
        BatchSize(8, True).attempt(needing(0, MemoryError()))


def test_a_stated_size_is_kept():
    with pytest.raises(EvaluationError, match=r"batch_size: memory runs out with 16 sequences"):
        BatchSize(16, False).attempt(needing(8, MemoryError()))


def test_other_errors_pass_through():
    with pytest.raises(RuntimeError, match="shapes"):
        BatchSize(8, True).attempt(needing(0, RuntimeError("shapes don't agree")))
