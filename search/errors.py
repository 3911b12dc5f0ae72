"""What can be wrong with a study, and how the command ends then.

StudyError       the study file, its models or its tasks: exit code 2
ProtocolError    a study is resumed under other conditions: exit code 2
NothingFound     no trial gave a score: exit code 3
"""

from collections.abc import Sequence
from typing import Any


class StudyError(ValueError):
    """One or more mistakes, each a line that names the place in the file.

    Args:
        mistakes: All that were found.
        where: The file that they are in.
        advice: What to do about all of them.
    """

    called = "mistakes"

    def __init__(self, mistakes: Sequence[str], where: str = "", advice: str = "") -> None:
        self.mistakes, self.where, self.advice = tuple(mistakes), where, advice
        head = f"{where}: " if where else ""
        if len(self.mistakes) == 1:
            super().__init__(head + "; ".join(filter(None, [self.mistakes[0], advice])))
        else:
            lines = "\n".join(f"  - {mistake}" for mistake in self.mistakes)
            told = f"{head}{len(self.mistakes)} {self.called}\n{lines}"
            super().__init__("\n".join(filter(None, [told, advice])))

    def __reduce__(self) -> tuple[Any, ...]:
        """What to make it of again where a worker's is told by another process."""
        return type(self), (self.mistakes, self.where, self.advice)


class ProtocolError(StudyError):
    """The stored study was made under other conditions than the file now states."""

    called = "differences"


class NothingFound(RuntimeError):  # noqa: N818
    """A search ended without a single scored candidate."""


class ScorerError(RuntimeError):
    """A user's own function can't be loaded, fails or gives no number."""


def first_line(error: Exception) -> str:
    """What a library's exception says, shortened to one line; its type if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
