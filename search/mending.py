"""A journal after a crash: what a crash can cause is mended, anything else is refused.

Optuna counts trials by the journal's lines: without one in the middle, all later results would go
to other trials. A crash tears the last line only; if the next process writes behind the torn piece,
both are on one line. Any other damage is somebody's, who has to say what shall hold.
"""

import json
import os
import shutil
from itertools import chain, count
from pathlib import Path
from typing import Any, cast

from optuna.storages.journal._storage import JournalOperation

from search.errors import StudyError

_BEGINNING = b'{"op_code"'
_OPERATIONS = tuple(JournalOperation)
_SHOWN = 40  # bytes of a line that is refused


def mend(journal: Path) -> str | None:
    """Drop the torn pieces of a journal; the file as it was is kept beside it.

    Args:
        journal: Held by this process; it needn't exist.

    Returns:
        What was mended, for people; None if nothing had to be.

    Raises:
        StudyError: If a line is damaged as no crash does it; nothing is written then.
        OSError: If the disk is full, for one; the journal is as it was.
    """
    torn = torn_lines(journal) if journal.exists() else {}
    if not torn:
        return None
    draft = journal.with_suffix(".draft")
    with journal.open("rb") as damaged, draft.open("wb") as whole:
        whole.writelines(torn.get(number, line) for number, line in enumerate(damaged, 1))
    kept = _kept(journal)
    os.replace(draft, journal)
    lines = f"line {next(iter(torn))} was" if len(torn) == 1 else f"{len(torn)} lines were"
    return f"storage: {journal}: {lines} torn by a crash and mended; as it was it is {kept.name}"


def torn_lines(journal: Path) -> dict[int, bytes]:
    """Lines that a crash tore, by number from 1 on, each with the whole record that it still holds.

    Args:
        journal: Is only read.

    Raises:
        StudyError: If a line is damaged as no crash does it.
    """
    found: dict[int, bytes] = {}
    with journal.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.endswith(b"\n") and _is_record(line):
                continue
            whole = _whole(line)
            if whole is None:
                raise _refused(journal, number, line)
            found[number] = whole
    return found


def _whole(line: bytes) -> bytes | None:
    """The record that a torn line still holds, if any; None if no crash leaves such a line."""
    if not line.endswith(b"\n"):  # the last one
        if _is_record(line):
            return line + b"\n"
        return b"" if _begins(line) else None
    at = line.rfind(_BEGINNING)
    piece, record = line[: max(at, 0)], line[max(at, 0) :]
    torn = _begins(piece) and not _is_record(piece)
    return record if torn and _is_record(record) else None


def _begins(piece: bytes) -> bool:
    """Whether it is a record's beginning; after a power cut zeros may stand for what is lost."""
    text = piece.rstrip(b"\0")
    return text.startswith(_BEGINNING) or _BEGINNING.startswith(text)


def _is_record(line: bytes) -> bool:
    try:
        data = json.loads(line)
    except ValueError:
        return False
    if not isinstance(data, dict):
        return False
    record = cast("dict[str, Any]", data)
    return "worker_id" in record and record.get("op_code") in _OPERATIONS


def _kept(journal: Path) -> Path:
    """A copy of the journal as `.torn`; where there is one, under the next name that is free."""
    names = chain([".torn"], (f".torn{number}" for number in count(2)))
    kept = next(path for name in names if not os.path.lexists(path := journal.with_suffix(name)))
    draft = journal.with_suffix(".copy")
    shutil.copyfile(journal, draft)
    os.replace(draft, kept)
    return kept


def _refused(journal: Path, number: int, line: bytes) -> StudyError:
    shown = line[:_SHOWN].rstrip(b"\n").decode("utf-8", "backslashreplace")
    more = "…" if len(line.rstrip(b"\n")) > _SHOWN else ""
    cut = (
        f"cut it after line {number - 1} to keep the trials before"
        if number > 1
        else "move it away to begin anew"
    )
    return StudyError(
        [
            f"storage: {journal}, line {number}: expected a record of Optuna's journal, found "
            f"{shown + more!r}, which no crash leaves there; restore the file from a copy, or {cut}"
        ]
    )
