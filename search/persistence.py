"""What may pass by itself is tried again: memory that runs out, a file system that is away."""

import time
from collections.abc import Callable
from typing import TypeVar

from evals.errors import EvaluationError, NoMemoryError
from evals.memory import is_memory, release
from merge_core.errors import MergeError
from search.errors import ScorerError

T = TypeVar("T")

PAUSES = (1.0, 5.0)
"""Seconds before the second and the third try."""


def persistent(work: Callable[[], T], forget: Callable[[], None]) -> T:
    """Do something, up to three times where what stops it may pass.

    Args:
        work: Gives the same whenever it is done.
        forget: Gives memory back that isn't needed to do it again.

    Raises:
        Exception: What stopped it: at once, or the third time if `may_pass`.
    """
    for pause in PAUSES:
        try:
            return work()
        except Exception as error:
            if not may_pass(error):
                raise
        # Out of the handler: the error holds on to all that was there when it was raised.
        forget()
        release()
        time.sleep(pause)
    return work()


def may_pass(error: Exception) -> bool:
    """Whether the same work may succeed another time."""
    if isinstance(error, OSError | NoMemoryError):
        return True
    stated = isinstance(error, MergeError | EvaluationError | ScorerError)
    return not stated and is_memory(error)
