"""Run a study in child processes that get a signal at given moments, until one ends by itself.

Run as a program: `python interrupt.py STUDY SIGNAL MOMENT…`. The libraries are imported once, then
each child is a fork, so that ten kills cost seconds. Prints each child's exit status.

A SIGKILL comes after as many records as the moment says, counted from the child's start, and a part
of a trial's time later: 6.4 is 0.4 trials after the sixth record. Seconds would all lie before
the first trial on a busy machine, where the start alone takes as long. A trial that two children
died in is spared until its result is there: with a third death it is given up, by design, and the
study isn't the same any more. Any other signal is sent the moment's seconds after the child's first
trial.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

_TRIAL = 0.02  # seconds that a tiny trial takes
_LOOK = 0.001  # seconds between two looks at the journal
_DEATHS = 2  # that a trial survives; see `search.searching`


def main() -> None:
    study, name, *moments = sys.argv[1:]
    number = getattr(signal, name)
    _import_everything()
    for moment in moments:
        before = list(_records(Path(study)))
        child = _start(Path(study))
        if name != "SIGKILL":
            _wait_for_a_trial(Path(study))
            time.sleep(float(moment))
        else:
            _wait_for_records(Path(study), child, before, int(float(moment)))
            time.sleep(float(moment) % 1 * _TRIAL)
        os.kill(child, number)
        print(_wait(child), flush=True)
    print(_wait(_start(Path(study))), flush=True)


def _import_everything() -> None:
    import lm_eval.models.huggingface  # noqa: F401

    import search.commands  # noqa: F401


def _start(study: Path) -> int:
    child = os.fork()
    if child:
        return child
    from rich.console import Console

    from search.commands import run_study

    with open(os.devnull, "w") as nowhere:
        finalists = run_study(study, Console(file=nowhere))
    os._exit(0 if finalists else 130)


def _wait_for_a_trial(study: Path) -> None:
    while not any("scorecard" in record.get("user_attr", {}) for record in _records(study)):
        time.sleep(0.05)


def _wait_for_records(study: Path, child: int, before: list[dict[str, Any]], count: int) -> None:
    """Until a child has written so many records and what may not die again has its result."""
    frail = _frail(before)
    while not _ended(child):
        records = list(_records(study))
        if len(records) >= len(before) + count and not frail & _frail(records):
            return
        time.sleep(_LOOK)


def _frail(records: list[dict[str, Any]]) -> set[int]:
    """Trials that have been begun as often as they survive and have no result."""
    found: set[int] = set()
    for record in records:
        known = record.get("user_attr", {})
        if known.get("attempts", 0) >= _DEATHS:
            found.add(record["trial_id"])
        if "merge_seconds" in known:
            found.discard(record["trial_id"])
    return found


def _records(study: Path) -> Iterator[dict[str, Any]]:
    """The whole records of a journal; the last one may be torn by a death."""
    for path in (study.parent / "runs").glob("*/journal.log"):
        for line in path.read_bytes().splitlines():
            with suppress(ValueError):
                yield json.loads(line)


def _ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _wait(child: int) -> int:
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    main()
