"""A journal after a crash, and after what is no crash."""

import errno
import json
import re
import shutil
from pathlib import Path

import pytest

from search.errors import StudyError
from search.mending import mend

RECORD = json.dumps({"op_code": 0, "worker_id": "w", "study_name": "s"}).encode() + b"\n"
OTHER = json.dumps({"op_code": 4, "worker_id": "w", "study_id": 0}).encode() + b"\n"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal.log"


@pytest.mark.parametrize(
    ("damaged", "whole"),
    [
        (RECORD + OTHER[:-20], RECORD),
        (RECORD + OTHER[:5], RECORD),
        (RECORD + OTHER[:-1], RECORD + OTHER),
        (RECORD + OTHER[:-20] + OTHER, RECORD + OTHER),
        (RECORD + OTHER[:-20] + OTHER + RECORD, RECORD + OTHER + RECORD),
        (RECORD + OTHER[:5] + RECORD + OTHER, RECORD + RECORD + OTHER),
        (OTHER[:20] + RECORD + OTHER[:20] + OTHER + RECORD[:9], RECORD + OTHER),
        (RECORD + b"\0" * 100, RECORD),
        (RECORD + OTHER[:20] + b"\0" * 100 + OTHER, RECORD + OTHER),
        (OTHER[:-20], b""),
    ],
    ids=[
        "torn",
        "torn early",
        "without its end",
        "glued",
        "glued in the middle",
        "glued early",
        "several",
        "zeros",
        "glued behind zeros",
        "only torn",
    ],
)
def test_what_a_crash_leaves_is_mended(journal: Path, damaged: bytes, whole: bytes):
    journal.write_bytes(damaged)
    assert mend(journal)
    assert journal.read_bytes() == whole
    assert journal.with_suffix(".torn").read_bytes() == damaged
    assert {path.suffix for path in journal.parent.iterdir()} == {".log", ".torn"}
    assert mend(journal) is None


@pytest.mark.parametrize("whole", [None, b"", RECORD + OTHER])
def test_a_whole_journal_stays_as_it_is(journal: Path, whole: bytes | None):
    if whole is not None:
        journal.write_bytes(whole)
    assert mend(journal) is None
    assert [path.read_bytes() for path in journal.parent.iterdir()] == (
        [whole] * (whole is not None)
    )


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"garbage\n", "garbage"),
        (b"\n", ""),
        (b"\0\0\n", "\0\0"),
        (b"\xff\xfe\n", r"\xff\xfe"),
        (b'{"garbage": 1}\n', '{"garbage": 1}'),
        (b"[1]\n", "[1]"),
        (b'{"op_code": 99, "worker_id": "w"}\n', '{"op_code": 99, "worker_id": "w"}'),
        (b'{"op_code": 4}\n', '{"op_code": 4}'),
        (OTHER[:-9] + b"\n", OTHER[:-9].decode()),
        (OTHER[:-1] + OTHER, OTHER[:-1].decode()),
        (b"garbage" + OTHER, "garbage" + OTHER.decode()),
    ],
    ids=[
        "text",
        "empty",
        "zeros",
        "bytes",
        "another object",
        "no object",
        "unknown",
        "nobody's",
        "cut",
        "two records",
        "text before a record",
    ],
)
@pytest.mark.parametrize("after", [RECORD, b""], ids=["middle", "end"])
def test_what_no_crash_leaves_is_refused(journal: Path, line: bytes, shown: str, after: bytes):
    journal.write_bytes(RECORD + OTHER + line + after)
    with pytest.raises(StudyError) as error:
        mend(journal)
    text = str(error.value)
    assert text.startswith(f"storage: {journal}, line 3: expected a record of Optuna's journal, ")
    assert repr(shown)[:40] in text
    assert text.endswith("or cut it after line 2 to keep the trials before")
    assert [path.read_bytes() for path in journal.parent.iterdir()] == [
        RECORD + OTHER + line + after
    ]


@pytest.mark.parametrize("text", [b"garbage", b"garbage\n", b"some\nother\nfile\n"])
def test_a_journal_of_garbage_is_not_emptied(journal: Path, text: bytes):
    journal.write_bytes(text)
    with pytest.raises(StudyError, match=r"line 1: .* from a copy, or move it away to begin anew$"):
        mend(journal)
    assert journal.read_bytes() == text


def test_a_long_line_is_shown_in_part(journal: Path):
    journal.write_bytes(b"x" * 1000 + b"\n")
    with pytest.raises(StudyError, match=f"found '{'x' * 40}…', which"):
        mend(journal)


def test_an_earlier_original_is_not_overwritten(journal: Path):
    for number, suffix in enumerate((".torn", ".torn2", ".torn3")):
        damaged = RECORD * (number + 1) + OTHER[:-20]
        journal.write_bytes(damaged)
        told = mend(journal)
        assert told == (
            f"storage: {journal}: line {number + 2} was torn by a crash and mended; as it was it "
            f"is journal{suffix}"
        )
        assert journal.with_suffix(suffix).read_bytes() == damaged
    assert journal.with_suffix(".torn").read_bytes() == RECORD + OTHER[:-20]


def test_several_mended_lines_are_counted(journal: Path):
    journal.write_bytes(OTHER[:9] + RECORD + OTHER[:9])
    assert re.search(r": 2 lines were torn by a crash", mend(journal) or "")


def test_a_full_disk_leaves_the_journal_and_no_second_original(
    journal: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    damaged = RECORD + OTHER[:-20]
    journal.write_bytes(damaged)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(OSError, match="No space left"):
            mend(journal)
    assert journal.read_bytes() == damaged
    assert mend(journal)
    assert {path.suffix for path in journal.parent.iterdir()} == {".log", ".torn"}
