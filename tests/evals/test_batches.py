"""Batches: every request is in one, each of its tokens sees its text and nothing else."""

import pytest
import torch
from windows import draw

from evals.batches import Batch, Section, lay_out
from evals.prefixes import Window, find_groups

CPU = torch.device("cpu")


def seen_by(batch: Batch, row: int, place: int) -> list[int]:
    """The tokens of a row that a token sees, itself among them."""
    if batch.ends is None:
        return batch.tokens[row, : place + 1].tolist()
    ends = batch.ends[row].tolist()
    return [int(batch.tokens[row, j]) for j in range(place + 1) if place < ends[j]]


def read(sections: tuple[Section, ...]) -> dict[int, list[tuple[list[int], int]]]:
    """For each window the texts that its tokens are predicted from, and those tokens."""
    found: dict[int, list[tuple[list[int], int]]] = {}
    for section in sections:
        header = [] if section.header is None else section.header[0].tolist()
        for batch in section.batches:
            width = batch.tokens.shape[1]
            triples = zip(batch.numbers, batch.rows, batch.targets, strict=True)
            for number, row, target in triples:
                at = int(batch.wanted[row])
                text = header + seen_by(batch, at // width, at % width)
                if batch.positions is not None:
                    assert int(batch.positions[at // width, at % width]) == len(text) - 1
                found.setdefault(int(number), []).append((text, int(target)))
    return found


@pytest.mark.parametrize("tokens", [1, 100, 1000, 100000])
@pytest.mark.parametrize("vocabulary", [104, 10**6])
def test_each_predicted_token_sees_its_own_text(tokens: int, vocabulary: int):
    windows = [window for kind in draw(2).values() for window in kind]
    found = read(lay_out(find_groups(windows, 128), tokens, vocabulary, CPU))
    assert found == {number: expected(window, 128) for number, window in enumerate(windows)}


def expected(window: Window, most: int) -> list[tuple[list[int], int]]:
    context, answer = window
    text = (context + answer)[-(most + 1) :]
    first = len(text) - len(answer)
    return [(text[:at], text[at]) for at in range(first, len(text))]


@pytest.mark.parametrize("tokens", [1, 300, 2000])
def test_no_batch_is_larger_than_asked_unless_it_is_one_row(tokens: int):
    windows = [window for kind in draw(3).values() for window in kind]
    for section in lay_out(find_groups(windows, 128), tokens, 104, CPU):
        for batch in section.batches:
            assert batch.size <= tokens or len(batch.tokens) == 1


def test_logits_are_bounded_too():
    windows = [([1], [5 + i % 50] * 60) for i in range(40)]
    vocabulary = 49152
    (section,) = lay_out(find_groups(windows, 128), 10**6, vocabulary, CPU)
    assert len(section.batches) > 5
    assert all(len(batch.wanted) * vocabulary * 4 <= 24 << 20 for batch in section.batches)


def test_plain_texts_need_no_mask():
    windows = draw()["rolling"]
    (section,) = lay_out(find_groups(windows, 128), 1000, 104, CPU)
    assert section.header is None
    assert all(batch.ends is None for batch in section.batches)


def test_the_layout_does_not_depend_on_chance():
    windows = draw()["options"]
    first, second = (lay_out(find_groups(windows, 128), 500, 104, CPU) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one.batches, other.batches, strict=True):
            assert torch.equal(a.tokens, b.tokens)
