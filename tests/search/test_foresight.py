"""`outcross check` refuses what a run would refuse before its first trial, in the same words."""

import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from tiny_families import write_family_model
from tiny_models import tokenizer
from tiny_study import study_dict

from evals.items import Role
from search import foresight
from search.bench import build_bench, check_study
from search.commands import check_file
from search.errors import StudyError
from search.foresight import foresee

WALK = {"walk": 1, "of": ["a", "b"]}
OWN_PLACES = {"origin": ["a", "b"]}


def study(folder: Path, tasks: Path, family: str, slices: dict[str, Any], **more: Any) -> Path:
    """A study of two random models of a family, of three and four layers."""
    for name, layers in (("a", 3), ("b", 3 if "origin" in slices else 4)):
        write_family_model(folder / name, family, layers=layers, **more)
        tokenizer().save_pretrained(folder / name)
    changes = {"models": {"a": "./a", "b": "./b"}, "recipe": {"slices": slices}}
    evaluation = {"tasks": [str(tasks / "tasks")], "batch_size": 16}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study_dict(evaluation=evaluation, **changes)))
    return path


def refusals(path: Path) -> tuple[list[str], list[str]]:
    """What a check refuses, and what a run does; how far logits differ depends on the depth."""
    with pytest.raises(StudyError) as checked:
        check_file(path, Console(file=StringIO()))
    with pytest.raises(StudyError) as run:
        build_bench(check_study(path), (Role.SEARCH,))
    found = (checked.value.mistakes, run.value.mistakes)
    early, late = ([re.sub(r"by [0-9.]+ of", "of", line) for line in lines] for lines in found)
    return early, late


def test_scales_that_cannot_be_folded(tmp_path: Path, study_folder: Path):
    path = study(tmp_path, study_folder, "gemma3_text", WALK | {"scale": True})
    early, late = refusals(path)
    assert early == late
    assert [line.partition(": Gemma3")[0] for line in early] == [
        f"recipe.slices.scale: it can't be folded into the weights of '{name}'" for name in "ab"
    ]
    assert all("they multiply by 1 + weight" in line for line in early)


def test_layers_that_must_keep_their_places(tmp_path: Path, study_folder: Path):
    path = study(tmp_path, study_folder, "gpt2", WALK, scale_attn_by_inverse_layer_idx=True)
    early, late = refusals(path)
    assert early == late
    (line,) = early
    assert line.startswith("recipe.slices: the plan makes layer ")
    assert "and layers of GPT2Model must keep their places" in line
    assert line.endswith(
        "; take every layer from where it stands, as 'origin' does at the parents' own depth, or "
        "leave 'slices' out"
    )


def test_what_a_run_accepts_is_not_refused(tmp_path: Path, study_folder: Path):
    for family, slices, more in (
        ("llama", WALK | {"scale": True}, {}),
        ("gpt2", OWN_PLACES, {"scale_attn_by_inverse_layer_idx": True}),
        ("gemma3_text", WALK, {}),
    ):
        folder = tmp_path / family
        folder.mkdir()
        checked = check_study(study(folder, study_folder, family, slices, **more))
        assert foresee(checked) == foresight.Foresight((), ())
        build_bench(checked, (Role.SEARCH,))


def test_forms_are_built_only_where_layers_move(
    tmp_path: Path, study_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(foresight, "rooted_form", lambda *_: pytest.fail("built"))
    assert foresee(check_study(study_folder / "study.yaml")).unknown == ()
    assert foresee(check_study(study(tmp_path, study_folder, "llama", OWN_PLACES))).unknown == ()


def test_of_a_large_model_a_check_says_that_a_run_finds_out(
    tmp_path: Path, study_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    path = study(tmp_path, study_folder, "gemma3_text", WALK | {"scale": True})
    monkeypatch.setattr(foresight, "_LARGEST", 1000)
    monkeypatch.setattr("evals.places._LARGEST", 1000)
    said = StringIO()
    check_file(path, Console(file=said, width=200))
    moves, scales = re.findall(r"(recipe\.slices.*)", said.getvalue())
    known = "; outcross run finds out before its first trial"
    assert "whether layers may be moved isn't known yet: 'a': a layer of " in moves
    assert "whether it can be folded into the weights isn't known yet: 'a' is too large" in scales
    assert moves.endswith(known)
    assert scales.endswith(known)


def test_a_family_that_fails_with_fewer_layers_is_not_refused(
    tmp_path: Path, study_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise IndexError("no such layer")

    monkeypatch.setattr(foresight, "build_model", fail)
    path = study(tmp_path, study_folder, "llama", WALK | {"scale": True})
    found = foresee(check_study(path))
    assert found.refused == ()
    assert "'a': its first layers can't be tried: no such layer; outcross run" in found.unknown[0]


def test_a_check_leaves_the_parents_as_they_were(tmp_path: Path, study_folder: Path):
    """The proof multiplies copies of mapped weights, not what the study goes on with."""
    path = study(tmp_path, study_folder, "llama", WALK | {"scale": True})
    before = {file.name: file.read_bytes() for file in tmp_path.glob("*/model.safetensors")}
    foresee(check_study(path))
    assert {file.name: file.read_bytes() for file in tmp_path.glob("*/model.safetensors")} == before
    assert not torch.is_inference_mode_enabled()
