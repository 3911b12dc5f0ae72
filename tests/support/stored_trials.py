"""What a study's storage holds, as far as two runs of it must agree."""

from pathlib import Path

from optuna.trial import FrozenTrial

from search.bench import check_study
from search.study import open_study


def stored(study: Path) -> list[FrozenTrial]:
    """All trials of a study file, by number."""
    with open_study(check_study(study)) as opened:
        return opened.get_trials()


def history(study: Path) -> list[tuple]:
    """Everything about the trials that were scored but times and counts of attempts."""
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
        if "scorecard" in trial.user_attrs
    ]
