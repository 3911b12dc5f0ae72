"""A search whose candidates and parents have several depths."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from stored_trials import history, stored
from tiny_models import write_model
from tiny_study import study_dict, write_study, write_tasks

from search.bench import check_study
from search.commands import export_study, run_study
from search.errors import StudyError
from search.study import open_study

QUIET = Console(file=StringIO())
PLANS = {
    "as it is": [("a", 0, 3)],
    "one less": [("a", 0, 1), ("b", 2, 3)],
    "twice": [("a", 0, 2), ("a", 1, 3)],
    "stacked": [("a", 0, 3), ("deep", 2, 4), ("b", 0, 1)],
    "deep": [("deep", 0, 4)],
}


def passthrough(model: str, first: int, end: int) -> dict[str, Any]:
    return {"sources": [{"model": model, "layer_range": [first, end]}]}


def depth_study(folder: Path, trials: int = 16) -> Path:
    """Passthrough recipes of 2 to 6 layers over parents of 3 and 4."""
    plans = {name: [passthrough(*part) for part in plan] for name, plan in PLANS.items()}
    study = study_dict(
        models={name: f"./models/{name}" for name in ("a", "b", "deep")},
        recipe={"merge_method": "passthrough", "slices": {"choice": plans}},
        objectives=[{"task": "tiny_choice", "metric": "acc"}, {"task": "tiny_text"}],
        search={"sampler": "random", "trials": trials, "finalists": 5},
    )
    path = write_study(folder, study)
    if not (folder / "models/deep").exists():
        write_model(folder / "models/deep", seed=7, layers=4)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A depth study that was run."""
    study = depth_study(tmp_path_factory.mktemp("whole"))
    run_study(study, QUIET)
    return study


def test_candidates_of_every_depth_have_scores(finished: Path):
    trials = [trial for trial in stored(finished) if "scorecard" in trial.user_attrs]
    assert {trial.params["slices"] for trial in trials} == set(PLANS)
    with open_study(check_study(finished)) as opened:
        assert list(opened.user_attrs["baselines"]) == ["a", "b", "deep"]  # no average of them


def test_a_candidates_scores_are_those_of_the_exported_model(finished: Path, tmp_path: Path):
    trial = next(t for t in stored(finished) if t.params["slices"] == "stacked")
    out = tmp_path / "out"
    export_study(finished, out, QUIET, trial=trial.number)
    study = study_dict(
        models={"it": str(out)},
        recipe={
            "merge_method": "passthrough",
            "models": [{"model": "it", "parameters": {"scale": {"range": [0.9, 1.1]}}}],
        },
        objectives=[{"task": "tiny_choice", "metric": "acc"}, {"task": "tiny_text"}],
        search={"sampler": "random", "trials": 1, "finalists": 1},
    )
    alone = depth_study(tmp_path)
    write_study(tmp_path, study)
    run_study(alone, QUIET)
    with open_study(check_study(alone)) as opened:
        exported = opened.user_attrs["baselines"]["it"]
    assert exported["items"] == trial.user_attrs["scorecard"]["items"]


def test_a_study_that_is_resumed_is_the_same(finished: Path, tmp_path: Path):
    for trials in (4, 16):
        halved = depth_study(tmp_path, trials)
        run_study(halved, QUIET)
    assert history(halved) == history(finished)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_layers_that_must_keep_their_places_are_not_moved(tmp_path: Path, order: tuple[int, int]):
    """A GPT-2 whose attention is scaled by the layer's number."""
    model = write_model(tmp_path / "models/a", "gpt2", layers=2)
    config = json.loads((model / "config.json").read_text())
    config |= {"scale_attn_by_inverse_layer_idx": True}
    (model / "config.json").write_text(json.dumps(config))
    scale = {"parameters": {"scale": {"range": [0.9, 1.1]}}}
    slices = [passthrough("a", at, at + 1) for at in order]
    slices[0]["sources"][0] |= scale
    write_tasks(tmp_path)
    study = write_study(
        tmp_path,
        study_dict(
            models={"a": "./models/a"},
            recipe={"merge_method": "passthrough", "slices": slices},
            search={"sampler": "random", "trials": 1, "finalists": 1},
        ),
    )
    if order == (0, 1):
        run_study(study, QUIET)
        assert "scorecard" in stored(study)[0].user_attrs
    else:
        with pytest.raises(StudyError, match=r"layer 0 of layer 1 of 'a', and layers of GPT2"):
            run_study(study, QUIET)
