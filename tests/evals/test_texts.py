"""A plain text as a benchmark: where it is cut, and what lm-eval makes of the pieces."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.errors import EvaluationError
from evals.texts import pieces, text_task

SENTENCE = "The miller counts his sacks before noon. "


def test_paragraphs_are_joined_up_to_the_size():
    paragraphs = [f"{n} " + SENTENCE.strip() for n in range(12)]
    found = pieces("\n\n".join(paragraphs), 100)
    assert [piece.count("miller") for piece in found] == [3, 3, 3, 3]
    assert "\n\n".join(found) == "\n\n".join(paragraphs)


def test_a_long_paragraph_is_cut_at_sentences():
    found = pieces(SENTENCE * 20, 100)
    assert all(piece.endswith(".") for piece in found)
    assert all(100 <= len(piece) <= 200 for piece in found[:-1])
    assert len(found[-1]) >= 50


def test_a_short_rest_goes_with_the_piece_before_it():
    assert pieces("a" * 60 + "\n\n" + "b" * 20, 50) == ("a" * 60 + "\n\n" + "b" * 20,)
    assert pieces("a" * 60 + "\n\n" + "b" * 30, 50) == ("a" * 60, "b" * 30)


def test_what_has_no_border_stays_whole():
    assert pieces("x" * 500, 100) == ("x" * 500,)


@given(st.text(st.sampled_from("ab .\n"), max_size=400), st.integers(10, 50))
def test_no_letter_is_lost_and_the_order_is_kept(text: str, chars: int):
    found = pieces(text, chars)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(piece and piece == piece.strip() for piece in found)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no file"), (b" \n", "holds no text"), (b"\xff\xfe\xfa", "can't be read as")],
)
def test_bad_files_are_named(tmp_path: Path, content: bytes | None, message: str):
    path = tmp_path / "my.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EvaluationError, match=f"text 'my.txt': .*{message}"):
        text_task("my.txt", path)
