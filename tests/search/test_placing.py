"""A merge or a comparison without a study says where layers were moved that mustn't be."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from tiny_families import write_family_model
from tiny_models import tokenizer

from evals import places
from search.lineup import CompareOptions, check_lineup, score_lineup
from search.merge_command import merge_recipe
from search.merging import MergeOptions, plan_file
from search.placing import misplaced

SCALED = "layers of GPT2Model must keep their places: with the same weights and inputs, layer 1"


def model(folder: Path, family: str = "gpt2", **more: Any) -> Path:
    write_family_model(folder, family, layers=3, **more)
    tokenizer().save_pretrained(folder)
    return folder


def recipe(folder: Path, parent: Path, *ranges: tuple[int, int]) -> Path:
    slices = [{"sources": [{"model": str(parent), "layer_range": list(r)}]} for r in ranges]
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"merge_method": "passthrough", "slices": slices}))
    return path


def told(path: Path) -> str | None:
    (job,) = plan_file(path, 0)
    return misplaced(job.plan, job.aligned.checkpoints)


def test_layers_are_tried_only_where_they_are_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    parent = model(tmp_path / "m")
    assert told(recipe(tmp_path, parent, (0, 2), (1, 3))) is None
    monkeypatch.setattr(places, "rooted_form", lambda *_: "tried")
    assert told(recipe(tmp_path, parent, (0, 2))) is None  # fewer, each where it was
    assert (told(recipe(tmp_path, parent, (0, 2), (1, 3))) or "").endswith(", and tried")


def test_a_merge_tells_that_layers_must_keep_their_places(tmp_path: Path):
    parent = model(tmp_path / "m", scale_attn_by_inverse_layer_idx=True)
    path, said = recipe(tmp_path, parent, (1, 2)), StringIO()
    console = Console(file=said, width=200)
    merge_recipe(path, tmp_path / "out", console, MergeOptions(), dry_run=False)
    # The output has one layer, which can't be compared; its parent has three.
    text = said.getvalue()
    assert f"Warning: the plan makes layer 0 of layer 1 of '{parent}', and {SCALED}" in text
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_family_that_transformers_does_not_know_is_merged_and_told(tmp_path: Path):
    parent = model(tmp_path / "m", "llama")
    path = recipe(tmp_path, parent, (0, 2), (1, 3))
    assert told(path) is None
    config = json.loads((parent / "config.json").read_text()) | {"model_type": "none"}
    (parent / "config.json").write_text(json.dumps(config))
    assert "it isn't known whether layers may be moved" in (told(path) or "")


def test_a_comparison_tells_it_of_candidate_and_reference(tmp_path: Path, study_folder: Path):
    parent = model(tmp_path / "m", scale_attn_by_inverse_layer_idx=True)
    path = recipe(tmp_path, parent, (1, 3), (0, 1))
    options = CompareOptions(
        ("tiny_choice:acc",), items=4, include=(study_folder / "tasks",), device="cpu"
    )
    for models in ([parent, path], [path, parent]):
        lineup = check_lineup([str(one) for one in models], options)
        (flag, *_) = score_lineup(lineup, options, lambda *_: None)[2]["recipe.yaml"]
        assert SCALED in flag
