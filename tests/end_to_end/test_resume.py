"""A study killed at any moment and started again is the study that was never killed."""

import random
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from optuna.trial import TrialState
from rich.console import Console
from stored_trials import history, stored
from tiny_models import write_family
from tiny_study import study_dict, write_study, write_tasks

from evals import likelihood, memory
from evals.items import Role
from search.asking import Proposer, ask
from search.bench import build_bench, check_study
from search.commands import compare_study, run_study
from search.finals import claim
from search.samplers import WORDS
from search.study import open_study

QUIET = Console(file=StringIO())
SUPPORT = Path(__file__).parents[1] / "support"


QUICK = ("cmaes",)  # in every run; the others with -m slow


@pytest.mark.parametrize(
    "sampler", [pytest.param(w, marks=() if w in QUICK else pytest.mark.slow) for w in WORDS]
)
def test_killed_study_equals_uninterrupted_one(tmp_path, sampler):
    """The samplers' models begin after ten trials, CMA-ES' second generation after its warm-up."""
    whole, killed = (new_study(tmp_path / name, sampler, trials=26) for name in ("whole", "killed"))
    assert interrupt(whole, "SIGKILL") == [0]
    chance = random.Random(f"{sampler} killed")
    moments = [chance.uniform(0, 10) for _ in range(5 if sampler in QUICK else 20)]
    statuses = interrupt(killed, "SIGKILL", *moments)
    assert statuses[-1] == 0
    assert statuses.count(-signal.SIGKILL) >= len(moments) / 2
    # The others died while proposing, which composite does longest.
    assert died_in(killed) >= len(moments) / 8
    assert history(killed) == history(whole)


@pytest.mark.slow
def test_killed_race_equals_uninterrupted_one(tmp_path):
    """Whom a candidate is held against doesn't depend on where the process died."""
    whole, killed = (racing_study(tmp_path / name) for name in ("whole", "killed"))
    assert interrupt(whole, "SIGKILL") == [0]
    chance = random.Random(0)
    interrupt(killed, "SIGKILL", *[chance.uniform(0, 10) for _ in range(12)])
    assert died_in(killed) >= 3
    assert history(killed) == history(whole)
    stopped = [trial for trial in stored(whole) if "stopped" in trial.user_attrs]
    assert stopped
    for trial in stopped:
        assert len(trial.user_attrs["scorecard"]["items"]["tiny_exact"]) > 0


def test_interrupt_finishes_the_running_trial(tmp_path):
    study = new_study(tmp_path, "random", trials=200)
    statuses = interrupt(study, "SIGINT", 0.3, wait=False)
    assert statuses == [130]
    trials = stored(study)
    assert 0 < len(trials) < 200
    states = [trial.state for trial in trials]
    assert TrialState.FAIL not in states
    assert states.count(TrialState.RUNNING) < 4  # of its batch: begun when the study goes on


def test_orphan_is_retried_and_nothing_else_changes(tmp_path):
    study = new_study(tmp_path, "tpe")
    assert interrupt(study, "SIGKILL") == [0]
    before = history(study)
    begin(study, attempts=0)  # and the process died right after asking
    raise_budget(study, 10)
    assert interrupt(study, "SIGKILL") == [0]
    after = history(study)
    assert after[:8] == before
    assert [entry[0] for entry in after] == list(range(10))


def test_candidate_that_kills_the_process_is_given_up(tmp_path):
    study = new_study(tmp_path, "tpe")
    begin(study, attempts=3)
    assert interrupt(study, "SIGKILL") == [0]
    first, *others = stored(study)
    assert first.state is TrialState.FAIL
    assert "the process died 3 times" in first.user_attrs["failure"]
    assert all(trial.state is TrialState.COMPLETE for trial in others)


@pytest.mark.parametrize("first", [True, False], ids=["quick", "plain"])
def test_requests_go_on_being_answered_as_they_were(tmp_path, monkeypatch, first):
    """Another candidate would decide otherwise between the quick and the plain way, here always."""
    whole, halved = (bfloat16_study(tmp_path / name) for name in ("whole", "halved"))
    monkeypatch.setattr(likelihood, "_agree", lambda *_: (first, "by the first candidate"))
    run_study(whole, QUIET)
    half = halved.read_text().replace("trials: 6", "trials: 3")
    full = halved.read_text()
    halved.write_text(half)
    run_study(halved, QUIET)
    halved.write_text(full)
    monkeypatch.setattr(likelihood, "_agree", lambda *_: (not first, "by another one"))
    run_study(halved, QUIET)
    assert len(history(whole)) == 6
    assert history(halved) == history(whole)
    bench = build_bench(check_study(halved), (Role.SEARCH, Role.HOLDOUT))
    with open_study(bench.study) as opened:
        claim(opened, bench, 0.01)
    assert [("by the first candidate" in way) for way in bench.harness.answering.ways] == [True]
    monkeypatch.setattr(likelihood, "_agree", lambda *_: (first, "by the first candidate"))
    ours, theirs = (compare_study(path, QUIET).cards for path in (halved, whole))
    assert {n: card.items for n, card in ours.items()} == {n: c.items for n, c in theirs.items()}


def test_the_two_ways_differ_in_bfloat16(tmp_path, monkeypatch):
    """Else the test above could not fail."""
    found = []
    for quick in (True, False):
        study = bfloat16_study(tmp_path / str(quick))
        monkeypatch.setattr(likelihood, "_agree", lambda *_, told=quick: (told, ""))
        run_study(study, QUIET)
        found.append([entry[-1] for entry in history(study)])
    assert found[0] != found[1]


def test_a_batch_size_that_memory_forced_is_kept(tmp_path, monkeypatch):
    study = write_study(
        tmp_path, study_dict(evaluation={"tasks": ["./tasks"], "batch_size": "auto"})
    )
    sizes = []
    real = memory.BatchSize.attempt

    def attempt(self, work):
        def limited(sequences):
            sizes.append(sequences)
            if sequences > 8 and scarce:
                raise MemoryError
            return work(sequences)

        return real(self, limited)

    monkeypatch.setattr(memory.BatchSize, "attempt", attempt)
    scarce = True
    run_study(study, QUIET)
    assert {32, 16, 8} == set(sizes)
    scarce = False
    sizes.clear()
    raised = study.read_text().replace("trials: 6", "trials: 8")
    study.write_text(raised)
    run_study(study, QUIET)
    compare_study(study, QUIET)
    # Parents are scored before a study's own size is known to a new process; none are here.
    assert set(sizes) == {8}


def bfloat16_study(folder: Path) -> Path:
    folder.mkdir()
    objectives = [{"task": "tiny_exact", "metric": "perplexity"}]
    search = {"sampler": "random", "trials": 6, "finalists": 2}
    return write_study(folder, study_dict(search=search, objectives=objectives, dtype="bfloat16"))


def new_study(folder: Path, sampler: str, trials: int = 8) -> Path:
    folder.mkdir(exist_ok=True)
    search = {"sampler": sampler, "trials": trials, "finalists": 2}
    recipe = study_dict()["recipe"]
    for source in recipe["models"]:  # no trial is a baseline, whose scores are known
        source["parameters"]["weight"]["range"] = [0.55, 1.5]
    return write_study(folder, study_dict(search=search, recipe=recipe))


def racing_study(folder: Path) -> Path:
    """Log-likelihoods of many items, which tell candidates apart soon; weights far too large."""
    folder.mkdir()
    write_family(folder / "models")
    write_tasks(folder, items=400)
    study = study_dict(
        objectives=[{"task": "tiny_exact", "metric": "perplexity"}],
        items={"search": 320, "select": 16, "holdout": 32},
        search={"sampler": "tpe", "trials": 24, "finalists": 2, "racing": "always"},
    )
    for model in study["recipe"]["models"]:
        model["parameters"]["weight"] = {"range": [0.0, 8.0]}
    return write_study(folder, study)


def begin(study: Path, attempts: int) -> None:
    """A trial that is asked for and nothing more."""
    checked = check_study(study)
    with open_study(checked) as opened:
        history = opened.get_trials(deepcopy=False)
        asked = ask(opened, checked.space, Proposer("tpe", 0, 4), len(history), history)
        if attempts:
            asked.set_user_attr("attempts", attempts)


def died_in(study: Path) -> int:
    """Trials that a killed process was in the midst of; without any a kill proves nothing."""
    return sum(trial.user_attrs.get("attempts", 0) > 1 for trial in stored(study))


def raise_budget(study: Path, trials: int) -> None:
    text = study.read_text()
    study.write_text(text.replace("trials: 8", f"trials: {trials}"))


def interrupt(study: Path, name: str, *moments: float, wait: bool = True) -> list[int]:
    """Exit statuses of all children; without `wait` the last, undisturbed one is left out.

    What a moment is stands in `support/interrupt.py`.
    """
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
