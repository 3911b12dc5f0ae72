"""Run a study in child processes that get a signal at given moments, until one ends by itself.

Run as a program: `python interrupt.py STUDY SIGNAL SECONDS…`. The libraries are imported once, then
each child is a fork, so that ten kills cost seconds. A SIGKILL may come at any moment; another
signal is sent that long after the child's first trial. Prints each child's exit status.
"""

import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    study, name, *moments = sys.argv[1:]
    number = getattr(signal, name)
    _import_everything()
    for moment in moments:
        child = _start(Path(study))
        if name != "SIGKILL":
            _wait_for_a_trial(Path(study))
        time.sleep(float(moment))
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
    journals = study.parent / "runs"
    while not any(b"scorecard" in path.read_bytes() for path in journals.glob("*/journal.log")):
        time.sleep(0.05)


def _wait(child: int) -> int:
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    main()
