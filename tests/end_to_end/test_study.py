"""A study from its file to an exported model, in one process."""

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from optuna.trial import TrialState
from rich.console import Console
from safetensors.torch import load_file
from scipy.special import expit
from stored_trials import stored
from tiny_study import study_dict, write_study
from transformers import AutoModelForCausalLM, AutoTokenizer

from search.bench import check_study
from search.commands import RunOptions, compare_study, export_study, run_study
from search.errors import NothingFound, ProtocolError, StudyError
from search.merge_command import merge_options, merge_recipe
from search.record import load, readings_from_dict
from search.study import open_study


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A study that was run, compared and exported."""
    folder = tmp_path_factory.mktemp("study")
    study = write_study(folder)
    run_study(study, silent())
    compare_study(study, silent())
    export_study(study, folder / "out", silent())
    return study


def test_every_trial_has_recipe_scores_and_items(finished):
    trials = stored(finished)
    assert [trial.number for trial in trials] == list(range(6))
    with open_study(check_study(finished)) as opened:
        (reading,) = readings_from_dict(opened)
    assert (reading.soft, reading.signal) == (True, "margin")
    for trial in trials:
        record = load(trial)
        assert record.recipe.method == "task_arithmetic"
        assert len(record.scorecard.items["tiny_choice"]["acc,none"]) == 16
        items = record.scorecard.items["tiny_choice"]
        assert record.scorecard.scores[0].value == pytest.approx(fmean(items["acc,none"]))
        assert record.value == pytest.approx(
            expit(np.array(items["margin"]) / reading.scale).mean(), abs=1e-4
        )


def test_known_recipes_come_first_and_cost_nothing(finished):
    """The base, the parents, their average, task arithmetic; they were scored before the search."""
    trials = stored(finished)[:5]
    weights = [tuple(trial.params.values()) for trial in trials]
    assert weights == [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.4, 0.4)]
    assert {load(trial).merge_seconds for trial in trials} == {0.0}
    assert len({trial.value for trial in trials}) > 1
    assert [load(trial).reused for trial in stored(finished)[:2]] == ["base", "a"]


def test_exported_model_loads_and_is_the_winner(finished):
    out = finished.parent / "out"
    model = AutoModelForCausalLM.from_pretrained(out)
    AutoTokenizer.from_pretrained(out)
    winner = load(stored(finished)[winner_of(finished)])
    weights = {
        source.model: dict(source.parameters)["weight"][0].value
        for source in winner.recipe.slices[0].sources
    }
    parents = {name: tensors(finished.parent / "models" / name) for name in ("base", "a", "b")}
    for name, tensor in model.state_dict().items():
        base = parents["base"][name]
        expected = base + sum(w * (parents[p][name] - base) for p, w in weights.items())
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)


def test_exported_recipe_gives_the_same_file(finished, tmp_path):
    out = finished.parent / "out"
    options = merge_options(0, "cpu", "5GB", None)
    merge_recipe(out / "recipe.yaml", tmp_path / "again", silent(), options, dry_run=False)
    again = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert again == (out / "model.safetensors").read_bytes()


def test_card_states_parents_and_holdout(finished):
    card = (finished.parent / "out" / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["base_model"] == ["./models/a", "./models/b", "./models/base"]
    assert "16 held-out items" in card
    assert "against plain average" in card


def test_comparison_is_stored_and_the_holdout_is_read_once(finished):
    first = compare_study(finished, silent())
    again = compare_study(finished, silent())
    assert first == again
    (look,) = first.looks
    assert look.trial == first.trial
    assert abs(datetime.now(UTC) - datetime.fromisoformat(look.time)) < timedelta(minutes=10)
    references = ["base", "a", "b", "plain average", "task arithmetic", "TIES"]
    assert [c.reference for c in first.verdicts.overall] == references


def test_the_margin_is_the_studys_unless_it_is_given(finished):
    assert compare_study(finished, silent()).verdicts.margin == 0.01
    wide = compare_study(finished, silent(), margin=1.0)
    assert len(wide.looks) == 1
    assert {c.verdict for c in wide.verdicts.overall} <= {"equivalent", "better", "worse"}


def test_right_answers_drawn_by_chance_give_no_winner(finished):
    """The tiny study's labels are random: there is nothing to find, whatever the search claims."""
    found = compare_study(finished, silent())
    assert "better" not in {c.verdict for c in found.verdicts.overall}


def test_the_winners_way_is_told(finished):
    path = compare_study(finished, silent()).path
    assert path.candidates == 6
    assert path.search >= path.rival_search - 1
    assert path.luck == pytest.approx(
        (path.search - path.rival_search) - (path.holdout - path.rival_holdout)
    )
    out = Console(file=StringIO(), width=120)
    compare_study(finished, out)
    told = out.file.getvalue()
    for text in ("Chosen among 6 candidates", "Its lead over", "The holdout was read once"):
        assert text in told


def test_running_again_adds_nothing(finished):
    before = len(stored(finished))
    run_study(finished, silent())
    assert len(stored(finished)) == before


def test_larger_budget_goes_on(tmp_path):
    study = write_study(tmp_path)
    run_study(study, silent())
    write_study(tmp_path, study_dict(search={"sampler": "random", "trials": 8, "finalists": 3}))
    run_study(study, silent())
    assert [trial.number for trial in stored(study)] == list(range(8))


def test_another_sampler_goes_on_from_the_same_trials(tmp_path):
    study = write_study(tmp_path)
    run_study(study, silent())
    write_study(tmp_path, study_dict(search={"sampler": "tpe", "trials": 8, "finalists": 3}))
    run_study(study, silent())
    with open_study(check_study(study)) as opened:
        assert opened.user_attrs["samplers"] == [[0, "random", "random"], [6, "tpe", "tpe"]]
        assert len(opened.trials) == 8


def ran_as(study: Path, options: RunOptions | None = None, **search: Any) -> tuple[str, list[Any]]:
    """Run with these keys of `search`: what was printed, and what proposed so far."""
    write_study(study.parent, study_dict(search={"finalists": 2, **search}))
    text = StringIO()
    with suppress(NothingFound):  # where there is no time for a trial
        run_study(study, Console(file=text, width=300), options)
    with open_study(check_study(study)) as opened:
        return text.getvalue(), opened.user_attrs["samplers"]


def test_auto_after_another_sampler_proposes_as_it_says(tmp_path: Path):
    study = write_study(tmp_path)
    ran_as(study, sampler="random", trials=5)
    told, used = ran_as(study, sampler="auto", trials=7)
    assert "Sampler composite (at most 500 trials" in told
    assert used == [[0, "random", "random"], [5, "composite", "auto"]]


def test_auto_heeds_the_budget_that_is_typed_and_stays_with_its_choice(tmp_path: Path):
    study = write_study(tmp_path)
    long = RunOptions(trials=1000, seconds=0.001)
    told, used = ran_as(study, long, sampler="auto", trials=6)
    assert "Sampler cmaes (numbers only, many trials), 1,000 trials" in told
    assert used == [[0, "cmaes", "auto"]]
    told, used = ran_as(study, sampler="auto", trials=6)
    assert "Sampler cmaes (auto took it at trial 0, and stays with it), 6 trials" in told
    assert used == [[0, "cmaes", "auto"]]


def test_a_typed_budget_is_refused_where_the_files_would_be(tmp_path: Path):
    study = write_study(tmp_path)
    with pytest.raises(StudyError, match=r"'gp' takes seconds .* and the budget is 1000"):
        ran_as(study, RunOptions(trials=1000), sampler="gp", trials=6)
    write_study(tmp_path, study_dict(search={"sampler": "gp", "trials": 1000}))
    assert run_study(study, silent(), RunOptions(trials=4))


@pytest.mark.parametrize(("typed", "numbers"), [(1000, True), (None, False)])
def test_orders_of_layers_keep_their_form_under_auto(
    tmp_path: Path, typed: int | None, numbers: bool
):
    """Another budget would have them as numbers or as choices: another space."""
    recipe = study_dict()["recipe"] | {"slices": {"origin": "merge", "depth": [2, 3]}}
    study = write_study(tmp_path, study_dict(recipe=recipe, search={"sampler": "auto"}))
    with suppress(NothingFound):
        run_study(study, silent(), RunOptions(typed, seconds=0.001))
    for trials in (4, 1000):
        search = {"sampler": "auto", "trials": trials}
        write_study(tmp_path, study_dict(recipe=recipe, search=search))
        names = [dimension.name for dimension in check_study(study).space.dimensions]
        assert ("layer00" in names) is numbers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"items": {"search": 12, "select": 8, "holdout": 16}}, "items.search: was 16, is 12"),
        ({"dtype": "bfloat16"}, 'dtype: was "float32", is "bfloat16"'),
        ({"search": {"sampler": "random", "seed": 1}}, "seed: was 0, is 1"),
    ],
)
def test_other_conditions_are_refused(finished, change, message):
    original = finished.read_text()
    try:
        write_study(finished.parent, study_dict(**change))
        with pytest.raises(ProtocolError, match=message.replace(".", r"\.")):
            run_study(finished, silent())
    finally:
        finished.write_text(original)


def test_changed_parent_is_refused(tmp_path):
    study = write_study(tmp_path)
    run_study(study, silent())
    config = tmp_path / "models" / "a" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_cache": False}))
    with pytest.raises(ProtocolError, match=r"models\.a: was"):
        run_study(study, silent())


def test_same_recipe_reuses_its_scores(tmp_path):
    recipe = study_dict()["recipe"] | {
        "models": [
            {"model": "a", "parameters": {"weight": {"choice": [0.2, 0.4]}}},
            {"model": "b", "parameters": {"weight": 0.5}},
        ]
    }
    study = write_study(tmp_path, study_dict(recipe=recipe))
    run_study(study, silent())
    records = [load(trial) for trial in stored(study)]
    assert len({record.recipe.fingerprint for record in records}) == 2
    repeated = [record for record in records if record.reused is not None]
    assert len(repeated) == 4
    for record in repeated:
        assert record.value == records[record.reused].value


def test_broken_candidate_is_a_failed_trial_with_its_reason(tmp_path):
    recipe = study_dict()["recipe"] | {
        "merge_method": "linear",
        "base_model": None,
        "models": [
            {"model": "a", "parameters": {"weight": {"choice": [0.5, -0.5]}}},
            {"model": "b", "parameters": {"weight": 0.5}},
        ],
    }
    study = write_study(tmp_path, study_dict(recipe=recipe))
    run_study(study, silent())
    failed = [trial for trial in stored(study) if trial.state is TrialState.FAIL]
    assert failed
    for trial in failed:
        assert trial.value is None
        assert "sum to 0 and can't be normalised" in trial.user_attrs["failure"]


def test_choice_of_methods_asks_only_for_what_the_method_has(tmp_path):
    study_text = study_dict(search={"sampler": "tpe", "trials": 14, "finalists": 2})
    study_text["recipe"]["merge_method"] = {"choice": ["task_arithmetic", "ties", "dare_linear"]}
    for source in study_text["recipe"]["models"]:
        source["parameters"]["density"] = {"range": "auto"}
    study = write_study(tmp_path, study_text)
    run_study(study, silent())
    methods = set()
    for trial in stored(study):
        method = trial.params["merge_method"]
        methods.add(method)
        assert ("a.density" in trial.params) == (method != "task_arithmetic")
    assert methods == {"task_arithmetic", "ties", "dare_linear"}


@pytest.mark.parametrize("family", ["llama_tied", "qwen2", "gpt_neox", "gpt2"])
def test_every_family_goes_the_whole_way(tmp_path, family):
    recipe = {
        "merge_method": "slerp",
        "base_model": "base",
        "models": [{"model": "base"}, {"model": "a"}],
        "parameters": {
            "t": {"range": [0.0, 1.0], "by": ["attn" if family == "gpt2" else "att", "*"]}
        },
    }
    search = {"sampler": "tpe", "trials": 3, "finalists": 1}
    study = write_study(tmp_path, study_dict(recipe=recipe, search=search), family=family)
    run_study(study, silent())
    compare_study(study, silent())
    export_study(study, tmp_path / "out", silent())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model(torch.tensor([[1, 5, 6]])).logits.isfinite().all()


def sliced(*ranges: tuple[int, int]) -> dict:
    """A passthrough study of slices of `a`, with a searched scale."""
    parameters = {"scale": {"range": [0.5, 1.5]}}
    return {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "a", "layer_range": list(layers), "parameters": parameters}]}
            for layers in ranges
        ],
    }


def test_slices_that_keep_the_depth_are_searched(tmp_path):
    study = write_study(tmp_path, study_dict(recipe=sliced((0, 1), (1, 3))))
    run_study(study, silent())
    assert set(stored(study)[0].params) == {"slice0.a.scale", "slice1.a.scale"}


def test_slices_that_change_the_depth_are_searched(tmp_path):
    study = write_study(tmp_path, study_dict(recipe=sliced((0, 2), (1, 3))))
    run_study(study, silent())
    assert all("scorecard" in trial.user_attrs for trial in stored(study))
    export_study(study, tmp_path / "out", silent())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.num_hidden_layers == 4


def test_sqlite_serves_as_well(tmp_path):
    study = write_study(tmp_path, study_dict(storage=f"sqlite:///{tmp_path}/study.db"))
    run_study(study, silent())
    assert len(stored(study)) == 6


def test_all_mistakes_come_in_one_message(tmp_path):
    study = study_dict(objectives=[{"task": "tiny_choise"}, {"task": "tiny_exact", "metric": "f1"}])
    study["models"]["b"] = "./nowhere"
    study["recipe"]["models"][0]["parameters"]["wieght"] = 1.0
    path = write_study(tmp_path, study)
    with pytest.raises(StudyError) as caught:
        run_study(path, silent())
    text = str(caught.value)
    for part in (
        "4 mistakes",
        "recipe.models[0].parameters.wieght",
        "did you mean 'weight'",
        "models.b: './nowhere': there is no such folder",
        "objectives[0]: task 'tiny_choise': lm-eval has no task of that name",
        "objectives[1]: task 'tiny_exact': has no metric 'f1'",
    ):
        assert part in text


def test_comparing_or_exporting_before_running_says_so(tmp_path):
    study = write_study(tmp_path)
    for command in (
        lambda: compare_study(study, silent()),
        lambda: export_study(study, tmp_path / "o", silent()),
    ):
        with pytest.raises(NothingFound, match="run it first"):
            command()
    assert not (tmp_path / "o").exists()


def silent() -> Console:
    return Console(file=StringIO())


def winner_of(study: Path) -> int:
    with open_study(check_study(study)) as opened:
        return opened.user_attrs["winner"]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")
