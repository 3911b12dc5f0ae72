"""Models without a study: merged in memory, scored as what they would be on disk."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_models import write_family

from evals.scorecard import Scorecard
from search.errors import NothingFound, StudyError
from search.lineup import CompareOptions, check_lineup, score_lineup
from search.merge_command import merge_options
from search.merging import merge_file, plan_file


@pytest.fixture
def options(study_folder: Path) -> CompareOptions:
    return CompareOptions(
        ("tiny_choice:acc", "tiny_exact:perplexity"),
        items=24,
        include=(study_folder / "tasks",),
        device="cpu",
    )


def scored(models: list[Path], options: CompareOptions) -> dict[str, Scorecard]:
    lineup = check_lineup([str(model) for model in models], options)
    return score_lineup(lineup, options, lambda *_: None)[0]


def items(card: Scorecard) -> list[object]:
    return [list(card.items["tiny_choice"]["acc,none"]), *card.items["tiny_exact"].values()]


def digests(folder: Path) -> list[str]:
    return [
        hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*.safetensors"))
    ]


def test_a_recipe_scores_as_the_model_that_it_writes(
    study_folder: Path, recipe: Path, options: CompareOptions, tmp_path: Path
):
    written = tmp_path / "written"
    merge_file(recipe, plan_file(recipe, 0), written, merge_options(0, "cpu", "5GB", None))
    a, b = (study_folder / "models" / name for name in ("a", "b"))
    cards = scored([a, recipe, b, written], options)
    assert list(cards) == ["a", "recipe.yaml", "b", "written"]
    assert items(cards["recipe.yaml"]) == items(cards["written"])
    assert items(cards["recipe.yaml"]) != items(cards["a"])


def test_a_recipes_warnings_are_kept(recipe: Path, options: CompareOptions, tmp_path: Path):
    read = yaml.safe_load(recipe.read_text())
    read["parameters"] = {"weight": [{"filter": "mpl", "value": 0.1}, {"value": 0.5}]}
    (slip := tmp_path / "slip.yaml").write_text(yaml.safe_dump(read))
    one, other = check_lineup([str(slip), str(recipe)], options).entrants
    assert "filter 'mpl' is part of no tensor's name" in one.warnings[0]
    assert other.warnings == ()


def test_the_order_changes_nothing_and_no_file_is_written_to(
    study_folder: Path, recipe: Path, options: CompareOptions
):
    """Models of one kind take turns in one live model, which may lend itself a parent's tensors."""
    before = digests(study_folder / "models")
    a, b = (study_folder / "models" / name for name in ("a", "b"))
    there, back = scored([a, recipe, b], options), scored([b, recipe, a], options)
    for name, card in there.items():
        assert items(card) == items(back[name])
    assert items(there["a"]) != items(there["b"])
    assert digests(study_folder / "models") == before


def test_models_of_other_families_answer_the_same_items(
    study_folder: Path, options: CompareOptions, tmp_path: Path
):
    write_family(tmp_path / "others", family="gpt2")
    other = tmp_path / "others" / "a"
    a = study_folder / "models" / "a"
    renamed = tmp_path / "llama"
    renamed.symlink_to(a)
    lineup = check_lineup([str(renamed), str(other)], options)
    cards, benchmarks, _ = score_lineup(lineup, options, lambda *_: None)
    assert lineup.pairs == (("a", "llama"),)
    assert [len(next(iter(benchmark.items.values()))) for benchmark in benchmarks] == [24, 24]
    assert items(cards["a"]) != items(cards["llama"])


def test_every_model_can_be_scored_in_one_dtype(study_folder: Path, options: CompareOptions):
    models = [study_folder / "models" / name for name in ("a", "b")]
    lineup = check_lineup(list(map(str, models)), replace(options, dtype="bfloat16"))
    assert {entrant.dtype for entrant in lineup.entrants} == {torch.bfloat16}
    full, half = scored(models, options), scored(models, replace(options, dtype="bfloat16"))
    assert items(full["a"])[1] != items(half["a"])[1]


def test_more_items_keep_the_fewer(study_folder: Path, options: CompareOptions):
    models = [study_folder / "models" / name for name in ("a", "b")]
    few, many = scored(models, replace(options, items=10)), scored(models, options)
    assert items(few["a"])[0] == items(many["a"])[0][:10]


@pytest.mark.parametrize(
    ("text", "metric"),
    [
        ("mine:choice", "acc,none"),
        ("mine:choice:", "acc,none"),
        ("mine:choice:acc_norm", "acc_norm,none"),
        ("mine:", "acc,none"),
        ("mine:acc_norm", "acc_norm,none"),
        ("odd:name.yaml", "acc,none"),
        ("odd:name.yaml:acc_norm", "acc_norm,none"),
    ],
)
def test_a_tasks_name_may_have_a_colon_in_it(
    study_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, metric: str
):
    task = (study_folder / "tasks/tiny_choice.yaml").read_text()
    task = task.replace("../data", str(study_folder / "data"))
    for file, name in (("a", "mine:choice"), ("b", "mine"), ("odd:name", "odd:name")):
        (tmp_path / f"{file}.yaml").write_text(task.replace("tiny_choice", f"'{name}'"))
    monkeypatch.chdir(tmp_path)
    options = CompareOptions((text,), items=5, include=(tmp_path,), device="cpu")
    models = [str(study_folder / "models" / name) for name in ("a", "b")]
    (opened,) = check_lineup(models, options).tasks
    assert (opened.name, opened.metric) == (
        text.removesuffix(":").split(":acc")[0].removesuffix(".yaml"),
        metric,
    )


def test_a_task_file_is_found_where_the_command_is_called(
    study_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(study_folder)
    options = CompareOptions(("tasks/tiny_choice.yaml:acc",), items=5, device="cpu")
    lineup = check_lineup(["models/a", "models/b"], options)
    assert [task.name for task in lineup.tasks] == ["tiny_choice"]
    by_name = CompareOptions(("tiny_choice:acc",), items=5, include=(Path("tasks"),), device="cpu")
    assert check_lineup(["models/a", "models/b"], by_name).tasks[0].digest == lineup.tasks[0].digest


def changed(model: Path, folder: Path, name: str, factor: float) -> Path:
    """A copy of a model with one tensor multiplied."""
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name] * factor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


NORM = "model.layers.1.mlp.up_proj.weight"


def strange(models: list[Path], options: CompareOptions) -> dict[str, tuple[str, ...]]:
    lineup = check_lineup([str(model) for model in models], options)
    return score_lineup(lineup, options, lambda *_: None)[2]


def test_what_exceeds_the_reference_is_told_and_not_refused(
    study_folder: Path, options: CompareOptions, tmp_path: Path
):
    base, a = (study_folder / "models" / name for name in ("base", "a"))
    exploded = changed(a, tmp_path / "exploded", NORM, 30.0)
    found = strange([base, a, exploded], options)
    assert set(found) == {"exploded"}
    (flag,) = found["exploded"]
    assert flag.startswith(f"tensor '{NORM}' exploded")
    assert "of no reference above" in flag
    # Beside a reference that is as large, nothing is strange.
    assert strange([base, a, exploded], replace(options, reference=("base", "exploded"))) == {}


def test_generations_are_held_against_the_references(
    study_folder: Path, options: CompareOptions, monkeypatch: pytest.MonkeyPatch
):
    first, second = {"looping": (1, 10), "truncated": (1, 10)}, {"looping": (7, 10)}
    tallies = iter([first, second | {"truncated": (5, 10)}])
    monkeypatch.setattr("evals.harness.symptoms", lambda *_: next(tallies))
    models = [study_folder / "models" / name for name in ("base", "a")]
    found = strange(models, replace(options, tasks=("tiny_choice",)))
    looping, truncated = found["a"]
    assert "70% of its texts repeat themselves to the end; of no reference's more" in looping
    assert (
        "50% of its texts end at the generation limit (at most 10% of a reference's)" in truncated
    )


def test_numbers_that_are_none_are_refused(
    study_folder: Path, options: CompareOptions, tmp_path: Path
):
    base, a = (study_folder / "models" / name for name in ("base", "a"))
    broken = changed(a, tmp_path / "broken", NORM, float("nan"))
    with pytest.raises(NothingFound, match=f"'broken' can't be scored: tensor '{NORM}' holds NaN"):
        strange([base, broken], options)


def test_a_vocabulary_that_fits_no_tensor_is_refused(
    study_folder: Path, options: CompareOptions, tmp_path: Path
):
    base, a = (study_folder / "models" / name for name in ("base", "a"))
    other = tmp_path / "other"
    shutil.copytree(a, other)
    tokens = json.loads((other / "tokenizer.json").read_text())
    tokens["model"]["vocab"]["new"] = 5000
    (other / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(StudyError, match=r"other: the tokenizer has a token 5000"):
        strange([base, other], options)
