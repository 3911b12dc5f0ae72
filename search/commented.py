"""YAML with a comment on every line: beside it where there is room, else above it."""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

_WIDTH = 100


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file.

    Attributes:
        depth: How far it is indented, in steps of two blanks.
        text: YAML; empty for a comment alone.
        comment: What it does, or why it is so.
    """

    depth: int
    text: str
    comment: str


def flow(value: Any) -> str:
    """A value as YAML on one line, such as `{range: [0.0, 1.5], knots: 2}`."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def entry(depth: int, key: str, value: Any, comment: str, *, item: bool = False) -> Line:
    """`key: value`; `item` begins a list's entry."""
    return Line(depth, f"{'- ' if item else ''}{flow(key)}: {flow(value)}", comment)


def render(lines: Iterable[Line]) -> str:
    """The file's text."""
    return "".join(f"{row}\n" for line in lines for row in _rows(line))


def _rows(line: Line) -> list[str]:
    indent = "  " * line.depth
    comment = " ".join(line.comment.split())
    beside = f"{indent}{line.text}  # {comment}"
    if line.text and len(beside) <= _WIDTH:
        return [beside]
    width = max(_WIDTH - len(indent) - 2, 40)
    above = [f"{indent}# {row}" for row in textwrap.wrap(comment, width)]
    return [*above, f"{indent}{line.text}"] if line.text else above
