"""Orders of layers from a study file to a model that transformers loads."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from stored_trials import stored
from tiny_families import write_family_model
from tiny_models import write_model
from tiny_study import study_dict, write_study
from transformers import AutoModelForCausalLM

from evals.items import Role
from merge_core.recipe import from_dict
from search.bench import build_bench, check_study
from search.commands import compare_study, export_study, run_study
from search.errors import StudyError
from search.merging import MergeOptions, merge_file, plan_file
from search.trial import evaluate

QUIET = Console(file=StringIO())
MERGED = study_dict()["recipe"]
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "origin": ("composite", MERGED | {"slices": {"origin": ["a", "b", "merge"]}}),
    "edits": ("evolution", MERGED | {"slices": {"origin": "merge", "depth": [2, 5]}}),
    "cuts": ("tpe", {"slices": {"cuts": 2, "of": ["a", "deep"], "overlap": 2, "scale": True}}),
    "walk": ("catcma", MERGED | {"slices": {"walk": 1, "of": ["merge", "a"], "scale": "layers"}}),
    "indicators": ("cmaes", {"slices": {"walk": 2, "of": ["a", "b"], "scale": True}}),
}


def layer_study(folder: Path, form: str, trials: int = 14) -> Path:
    word, recipe = FORMS[form]
    study = study_dict(
        models={name: f"./models/{name}" for name in ("base", "a", "b", "deep")},
        recipe=recipe,
        search={"sampler": word, "trials": trials, "finalists": 14},
    )
    path = write_study(folder, study)
    if not (folder / "models/deep").exists():
        write_model(folder / "models/deep", seed=7, layers=4)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_a_winner_is_the_model_that_was_scored(form: str, tmp_path: Path):
    """Exported weights are the live ones to the bit, and merging its recipe gives them again."""
    study = layer_study(tmp_path, form)
    assert run_study(study, QUIET) is not None
    trials = [t for t in stored(study) if t.user_attrs.get("scorecard")]
    assert len(trials) == 14
    assert len({t.user_attrs["fingerprint"] for t in trials}) > 5
    layered = [t for t in trials if "slices" in t.user_attrs["recipe"]]
    if form == "walk":  # one of those with scaled merged layers
        layered = [
            t for t in layered if any("scale" in part for part in t.user_attrs["recipe"]["slices"])
        ]
    out, again = tmp_path / "out", tmp_path / "again"
    export_study(study, out, QUIET, trial=layered[-1].number)
    bench = build_bench(check_study(study), (Role.SEARCH,))
    outcome = evaluate(from_dict(layered[-1].user_attrs["recipe"]), bench, Role.SEARCH)
    assert outcome.failure is None
    live = logits(bench.harness.lm.model)
    torch.testing.assert_close(logits(load(out)), live, rtol=0, atol=1e-4)
    recipe = out / "recipe.yaml"
    merge_file(recipe, plan_file(recipe, 0), again, MergeOptions())
    one, other = load(out).state_dict(), load(again).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert "Its layers, from bottom to top" in (out / "README.md").read_text()


def test_a_winner_is_compared(tmp_path: Path):
    study = layer_study(tmp_path, "edits", 6)
    run_study(study, QUIET)
    text = StringIO()
    compare_study(study, Console(file=text, width=200))
    assert "plain average" in text.getvalue()


def test_a_family_whose_scales_cannot_be_folded_is_refused(tmp_path: Path):
    """Gemma 2 ends its blocks with norms of 1 + weight: told before any candidate."""
    study = layer_study(tmp_path, "walk")
    for name in ("base", "a", "b", "deep"):
        folder = tmp_path / "models" / name
        (folder / "model.safetensors").unlink()
        write_family_model(folder, "gemma2")  # the tokenizer stays
    with pytest.raises(StudyError, match=r"slices\.scale: it can't be folded .* 1 \+ weight"):
        build_bench(check_study(study), (Role.SEARCH,))


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model(torch.tensor([[1, 20, 33, 7, 50, 9]])).logits


@pytest.mark.parametrize(("trials", "numbers"), [(100, False), (1000, True)])
def test_auto_gets_the_encoding_that_suits_its_sampler(tmp_path: Path, trials: int, numbers: bool):
    study = study_dict(
        recipe=MERGED | {"slices": {"origin": "merge", "depth": [2, 5]}},
        search={"sampler": "auto", "trials": trials},
    )
    checked = check_study(write_study(tmp_path, study))
    assert checked.sampler()[0] == ("cmaes" if numbers else "composite")
    assert ("layer00" in [d.name for d in checked.space.dimensions]) is numbers
