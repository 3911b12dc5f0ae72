"""`async: true`: candidates are asked whenever somebody is free."""

from collections.abc import Generator, Iterable
from io import StringIO
from pathlib import Path

import yaml
from optuna.trial import TrialState
from rich.console import Console
from tiny_study import study_dict

from search import commands
from search.asking import Proposer, ask
from search.bench import check_study
from search.evaluators import Begin, InProcess, Job
from search.study import open_study
from search.trial import Outcome

TRIALS = 14


class LastFirst(InProcess):
    """Two at a time, of whom the one that began last always ends first."""

    count = 2
    most = 0

    def score(
        self, jobs: Iterable[Job], begin: Begin | None = None
    ) -> Generator[tuple[int, Outcome]]:
        waiting, running = super().score(jobs, begin), []
        while True:
            while len(running) < 2 and (one := next(waiting, None)) is not None:
                running.append(one)
            if not running:
                return
            LastFirst.most = max(LastFirst.most, len(running))
            yield running.pop()


def test_every_trial_is_told_once_though_others_overtake_it(study_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "InProcess", LastFirst)
    study = write(study_folder, tmp_path)
    text = StringIO()
    assert commands.run_study(study, Console(file=text, width=200)) is not None
    told = [int(line.split()[1]) for line in text.getvalue().splitlines() if line[:6] == "trial "]
    with open_study(check_study(study)) as opened:
        trials = opened.get_trials()
    assert LastFirst.most == 2
    assert sorted(told) == list(range(TRIALS))
    assert told != sorted(told)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * TRIALS
    assert all("scorecard" in trial.user_attrs for trial in trials)


def test_an_orphan_is_adopted_and_the_budget_kept(study_folder, tmp_path):
    study = write(study_folder, tmp_path)
    checked = check_study(study)
    with open_study(checked) as opened:  # of a process that died right after
        ask(opened, checked.space, Proposer("tpe", 0, 1), 0, [])
    assert commands.run_study(study, Console(file=StringIO())) is not None
    with open_study(check_study(study)) as opened:
        states = [trial.state for trial in opened.get_trials()]
    assert states == [TrialState.COMPLETE] * TRIALS


def write(folder: Path, storage: Path) -> Path:
    search = {"sampler": "tpe", "trials": TRIALS, "finalists": 2, "async": True}
    study = study_dict(search=search, storage=str(storage / "runs"))
    study["models"] = {name: str(folder / "models" / name) for name in study["models"]}
    study["evaluation"]["tasks"] = [str(folder / "tasks")]
    path = storage / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path
