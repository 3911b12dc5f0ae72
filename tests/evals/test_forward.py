"""What is made of the logits of a pass."""

import pytest
import torch

from evals import forward
from evals.batches import Batch


def batch(rows: list[int], targets: list[int]) -> Batch:
    one = torch.zeros(1, 1, dtype=torch.int64)
    numbers = torch.arange(len(rows)).numpy()
    return Batch(one, None, None, one[0], torch.tensor(rows), torch.tensor(targets), numbers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("table", [1, 100, 1 << 20])  # bytes: a row at a time, three, all
def test_log_probabilities_and_greedy_flags_are_those_of_plain_torch(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, table: int
):
    monkeypatch.setitem(forward._TABLE, "cpu", table)
    generator = torch.Generator().manual_seed(0)
    logits = (8 * torch.randn(10, 7, generator=generator)).to(dtype)
    logits[4] = torch.tensor([0, 3, 3, 1, 3, 0, 0])  # the first of equals is the greedy one
    logits[5] += 1e4
    places = [(row, token) for row in (4, *range(10)) for token in range(7)]
    asked = batch([row for row, _ in places], [token for _, token in places])
    expected = torch.log_softmax(logits.double(), dim=-1)
    likeliest = logits.float().argmax(dim=-1)
    found, greedy = forward._judge(logits.clone(), asked)
    for (row, token), chance, flag in zip(places, found.tolist(), greedy.tolist(), strict=True):
        assert chance == pytest.approx(expected[row, token].item(), rel=1e-5, abs=1e-6)
        assert flag == (token == likeliest[row])
    assert greedy.sum() == 11
