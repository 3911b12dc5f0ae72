"""A study killed at any moment and started again is the study that was never killed."""

import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from tiny_study import study_dict, write_study

from search.bench import check_study
from search.study import open_study

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "gp"])
def test_killed_study_equals_uninterrupted_one(tmp_path, sampler):
    """Sixteen trials: the samplers' models begin after ten."""
    whole = new_study(tmp_path / "whole", sampler, trials=16)
    killed = new_study(tmp_path / "killed", sampler, trials=16)
    assert interrupt(whole, "SIGKILL") == [0]
    statuses = interrupt(killed, "SIGKILL", 0.6, 1.1, 0.9, 1.4, 1.2, 1.7, 1.5)
    assert statuses[-1] == 0
    assert -signal.SIGKILL in statuses
    assert history(killed) == history(whole)


def test_interrupt_finishes_the_running_trial(tmp_path):
    study = new_study(tmp_path, "random", trials=200)
    statuses = interrupt(study, "SIGINT", 0.3, wait=False)
    assert statuses == [130]
    trials = stored(study)
    assert 0 < len(trials) < 200
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}


def test_orphan_is_retried_and_nothing_else_changes(tmp_path):
    study = new_study(tmp_path, "tpe")
    assert interrupt(study, "SIGKILL") == [0]
    before = history(study)
    with open_study(check_study(study)) as opened:
        opened.ask()  # a process that died right after asking
    raise_budget(study, 10)
    assert interrupt(study, "SIGKILL") == [0]
    after = history(study)
    assert after[:8] == before
    assert [entry[0] for entry in after] == list(range(10))


def test_candidate_that_kills_the_process_is_given_up(tmp_path):
    study = new_study(tmp_path, "tpe")
    with open_study(check_study(study)) as opened:
        opened.ask().set_user_attr("attempts", 3)
    assert interrupt(study, "SIGKILL") == [0]
    first, *others = stored(study)
    assert first.state is TrialState.FAIL
    assert "the process died 3 times" in first.user_attrs["failure"]
    assert all(trial.state is TrialState.COMPLETE for trial in others)


def new_study(folder: Path, sampler: str, trials: int = 8) -> Path:
    folder.mkdir(exist_ok=True)
    search = {"sampler": sampler, "trials": trials, "finalists": 2}
    recipe = study_dict()["recipe"]
    for source in recipe["models"]:  # no trial is a baseline, whose scores are known
        source["parameters"]["weight"]["range"] = [0.55, 1.5]
    return write_study(folder, study_dict(search=search, recipe=recipe))


def raise_budget(study: Path, trials: int) -> None:
    text = study.read_text()
    study.write_text(text.replace("trials: 8", f"trials: {trials}"))


def interrupt(study: Path, name: str, *moments: float, wait: bool = True) -> list[int]:
    """Exit statuses of all children; without `wait` the last, undisturbed one is left out."""
    command = [sys.executable, str(SUPPORT / "interrupt.py"), str(study), name]
    command += [str(moment) for moment in moments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        statuses = []
        for line in process.stdout:
            statuses.append(int(line))
            if not wait and len(statuses) == len(moments):
                process.kill()
                break
    return statuses


def stored(study: Path) -> list[optuna.trial.FrozenTrial]:
    with open_study(check_study(study)) as opened:
        return opened.get_trials()


def history(study: Path) -> list[tuple]:
    """Everything about the trials but times and counts of attempts."""
    return [
        (
            trial.number,
            trial.state,
            trial.value,
            trial.params,
            trial.user_attrs["fingerprint"],
            trial.user_attrs["scorecard"]["items"],
        )
        for trial in stored(study)
    ]
