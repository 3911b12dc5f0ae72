"""A plain text file as a benchmark: how well a model predicts it, piece by piece."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset  # pyright: ignore[reportMissingTypeStubs]

from evals.errors import EvaluationError

CHARS = 1000
_METRICS = ("bits_per_byte", "word_perplexity", "byte_perplexity")
_BORDERS = (r"\n\s*\n\s*", r"\n\s*", r"(?<=[.!?])\s+", r"\s+")  # the coarsest that will do


def text_task(name: str, path: Path, chars: int = CHARS) -> dict[str, Any]:
    """A task of lm-eval whose documents are the pieces of a file.

    Its metrics are bits_per_byte, word_perplexity and byte_perplexity. Each piece is scored alone,
    from the beginning of a text on.

    Args:
        name: What the task is called.
        path: A UTF-8 text file.
        chars: About how long a piece is, in characters.

    Raises:
        EvaluationError: If the file can't be read or holds no text.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise EvaluationError(f"text '{name}': there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"text '{name}': {path} can't be read as UTF-8 text: {error}"
        ) from None
    found = pieces(text, chars)
    if not found:
        raise EvaluationError(f"text '{name}': {path} holds no text")
    figure = {"higher_is_better": False}
    aggregations = zip(_METRICS, ("bits_per_byte", *["weighted_perplexity"] * 2), strict=True)
    return {
        "output_type": "loglikelihood_rolling",
        "custom_dataset": partial(_dataset, found),
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [
            {"metric": metric, "aggregation": aggregation, **figure}
            for metric, aggregation in aggregations
        ],
        "metadata": {"version": 1.0},
    }


def pieces(text: str, chars: int = CHARS) -> tuple[str, ...]:
    """Cut a text into pieces at blank lines, each from `chars` to about twice as long.

    Paragraphs are joined until a piece has `chars` characters. One of more than twice as many is
    cut at lines, else at ends of sentences, else at blanks; what has none of them stays whole. What
    is left at the end and shorter than half of `chars` goes with the piece before it.
    """
    joined: list[str] = []
    part = ""
    for unit in _units(text.strip(), chars, 0):
        part += unit
        if len(part.strip()) >= chars:
            joined.append(part)
            part = ""
    if part.strip():
        if joined and len(part.strip()) < chars / 2:
            joined[-1] += part
        else:
            joined.append(part)
    return tuple(piece.strip() for piece in joined)


def _units(text: str, chars: int, level: int) -> Iterator[str]:
    """The text in parts that needn't be cut, each with the white space after it."""
    starts = [found.end() for found in re.finditer(_BORDERS[level], text)]
    for start, end in zip([0, *starts], [*starts, len(text)], strict=True):
        unit = text[start:end]
        if len(unit) > 2 * chars and level + 1 < len(_BORDERS):
            yield from _units(unit, chars, level + 1)
        elif unit:
            yield unit


def _dataset(found: tuple[str, ...], **_: object) -> dict[str, Any]:
    """As lm-eval asks for it, which hands over a study's metadata."""
    data: Any = Dataset  # its methods' types are incomplete
    return {"test": data.from_list([{"text": piece} for piece in found])}
