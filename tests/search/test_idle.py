"""What is said of workers for whom a batch has no candidate."""

from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evals.racing import RUNGS
from evals.rungs import EIGHTHS
from search.bench import CheckedStudy, check_study
from search.commands import RunOptions, run_study
from search.config import ObjectiveConfig, RayConfig, SearchConfig
from search.errors import StudyError
from search.idle import idle_warning
from search.outlook import print_outlook


@pytest.fixture(scope="module")
def study(study_folder: Path) -> CheckedStudy:
    return check_study(study_folder / "study.yaml")


def told(
    study: CheckedStudy,
    workers: int,
    shares: Sequence[float] | None = None,
    *more: ObjectiveConfig,
    **search: Any,
) -> str | None:
    """What is said, by default of a batch of 4 by a sampler whose candidates don't race."""
    changes = {
        "search": SearchConfig(**({"sampler": "composite"} | search)),
        "objectives": (*study.config.objectives, *more),
    }
    config = study.config.model_copy(update=changes)
    return idle_warning(replace(study, config=config), RayConfig(workers=workers), shares)


def test_who_has_a_candidate_for_every_worker_is_told_nothing(study: CheckedStudy):
    assert told(study, 4, RUNGS) is None
    assert told(study, 8, RUNGS, batch=8) is None
    assert told(study, 8, RUNGS, **{"async": True}) is None  # asked for whenever somebody is free
    assert idle_warning(study, None) is None


@pytest.mark.parametrize(
    ("workers", "shares", "expected"),
    [
        (
            5,
            RUNGS,
            "the items of 1 of 4 candidates are split over 2 of them, which ends no batch",
        ),
        (8, RUNGS, "the items of 4 of 4 candidates are split over 2 of them; search: {batch: 8}"),
        (11, RUNGS, "the items of 4 of 4 candidates are split over 2 of them, and 3 of them idle;"),
        (11, EIGHTHS, "the items of 4 of 4 candidates are split over 2 to 3 of them; search:"),
        (40, EIGHTHS, "the items of 4 of 4 candidates are split over 8 of them, and 8 of them"),
        (11, (1.0,), "11 workers for batches of 4: 7 of them idle; search: {batch: 11}"),
        (11, None, "7 of them idle, unless candidates' items can be split (docs/workers.md);"),
    ],
)
def test_what_the_others_do_is_told(
    study: CheckedStudy, workers: int, shares: Sequence[float] | None, expected: str
):
    assert expected in (told(study, workers, shares) or "")


def test_candidates_that_race_are_not_split(study: CheckedStudy):
    alone = "8 workers for batches of 4: 4 of them idle;"
    assert alone in (told(study, 8, RUNGS, sampler="tpe") or "")
    assert alone in (told(study, 8, RUNGS, racing=False) or "")
    function = ObjectiveConfig(function="scorer.py:f")  # of which no race knows anything
    assert "are split over 2 of them;" in (told(study, 8, RUNGS, function, sampler="tpe") or "")


def test_it_is_told_by_check_and_before_the_first_worker_starts(
    study: CheckedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = study.config.model_copy(update={"ray": RayConfig(workers=9)})
    out = Console(file=StringIO(), width=200)
    print_outlook(out, replace(study, config=config))
    warning = "Warning: ray: 9 workers for batches of 4: 5 of them idle; search: {batch: 9}"
    assert warning in out.file.getvalue()  # type: ignore[attr-defined]

    def refuse(*_: object) -> None:
        raise StudyError(["no worker starts"])

    monkeypatch.setattr("search.commands.on_ray", refuse)
    local = study.config.model_copy(update={"storage": str(tmp_path / "runs")})
    monkeypatch.setattr("search.commands.check_study", lambda *_: replace(study, config=local))
    out = Console(file=StringIO(), width=200)
    with pytest.raises(StudyError, match="no worker starts"):
        run_study(tmp_path / "study.yaml", out, RunOptions(workers=9))
    assert warning in out.file.getvalue()  # type: ignore[attr-defined]
