"""`outcross new`: what it writes passes every check, and says why it is as it is."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from tiny_adapters import low_rank, write_adapter
from tiny_models import write_model

from evals.items import Role
from search import cli
from search.bench import CheckedStudy, check_study
from search.commented import Line, render
from search.errors import StudyError
from search.new import NewOptions, new_study

Write = Callable[..., tuple[CheckedStudy, str]]


@pytest.fixture(scope="module")
def models(study_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More models than the study has: a third fine-tune, a copy, another depth, adapters."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("base", "a", "b"):
        (folder / name).symlink_to(study_folder / "models" / name)
    base = folder / "base"
    write_model(folder / "c", seed=7, near=base)
    write_model(folder / "weak", seed=8, near=base, spread=0.005)
    write_model(folder / "copy", seed=0)
    write_model(folder / "deep", layers=4)
    write_model(folder / "gpt2", "gpt2")
    for name, seed in (("first", 1), ("second", 2)):
        modules = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(3)]
        write_adapter(folder / name, low_rank(base, modules, seed=seed))
    return folder


@pytest.fixture
def write(
    models: Path, study_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Write:
    """Write a study for models by name; it is checked once more as it was left."""
    monkeypatch.chdir(models)

    def call(*words: str, tasks: tuple[str, ...] = ("tiny_choice",), **options: Any):
        out = options.pop("out", tmp_path / "study.yaml")
        include = (study_folder / "tasks",)
        new_study(words, NewOptions(tasks, include, out, **options))
        assert sorted(path.name for path in out.parent.glob("*.draft")) == []
        return check_study(out), out.read_text("utf-8")

    return call


def names(checked: CheckedStudy) -> list[str]:
    return [dimension.name for dimension in checked.space.dimensions]


FAMILIES = {
    "base and two": ("base=base", "a=a", "b=b"),
    "base and one": ("base=base", "a=a"),
    "base and four": ("base=base", "a=a", "b=b", "c=c", "weak=weak"),
    "no base": ("a=a", "b=b"),
    "three siblings": ("a=a", "b=b", "c=c"),
    "adapters": ("one=base+first", "two=base+second", "plain=base"),
}


@pytest.mark.parametrize("words", FAMILIES.values(), ids=FAMILIES)
def test_every_study_is_valid_of_8_to_16_dimensions_and_commented(
    write: Write, words: tuple[str, ...]
):
    checked, text = write(*words)
    assert 8 <= len(names(checked)) <= 16
    assert checked.config.search.trials >= 10 * len(names(checked))
    rows = text.splitlines()
    for before, row in zip(["", *rows], rows, strict=False):
        assert "# " in row or before.lstrip().startswith("# "), row
        assert len(row) <= 100 or "  # " not in row


def test_a_named_base_and_its_experts(write: Write):
    checked, text = write("base=base", "a=a", "b=b")
    recipe = checked.config.recipe
    assert recipe["base_model"] == "base"
    assert recipe["merge_method"] == {"choice": ["task_arithmetic", "ties"]}
    assert [source["model"] for source in recipe["models"]] == ["a", "b"]
    assert "the base (as you say)" in text
    assert all((checked.folder / place).is_dir() for place in checked.config.models.values())


def test_the_base_is_guessed_from_the_tensors(write: Write):
    checked, text = write("x=a", "y=base", "z=b", "w=weak")
    assert checked.config.recipe["base_model"] == "y"
    assert "guessed: every other model is nearer to it" in text


def test_the_users_base_goes_before_a_guess(write: Write):
    checked, _ = write("x=a", "y=base", "z=b", base="x")
    assert checked.config.recipe["base_model"] == "x"


def test_siblings_have_no_base(write: Write):
    checked, text = write("a=a", "b=b", "c=c")
    assert "base_model" not in checked.config.recipe
    assert checked.config.recipe["parameters"]["weight"]["simplex"] is True
    assert "as those of siblings do whose base is missing" in " ".join(text.split()).replace(
        " # ", " "
    )


def test_adapters_of_one_model_have_it_as_their_base(write: Write):
    checked, text = write("one=base+first", "two=base+second")
    assert list(checked.config.models) == ["base", "one", "two"]
    assert checked.config.recipe["base_model"] == "base"
    assert "the adapters of 'one', 'two' are of it" in text
    weight = checked.config.recipe["models"][0]["parameters"]["weight"]
    assert "by" not in weight  # attention alone was changed
    assert weight["knots"] == 3
    assert "attention 100%" in text


def test_a_model_that_changed_less_may_be_stretched(write: Write):
    checked, _ = write("base=base", "a=a", "b=b", "weak=weak")
    high = {
        source["model"]: source["parameters"]["weight"]["range"][1]
        for source in checked.config.recipe["models"]
    }
    assert high == {"a": pytest.approx(1.5, abs=0.1), "b": high["a"], "weak": 3.0}


def test_a_copy_of_the_base_and_what_does_not_fit_are_told_and_left_out(write: Write):
    checked, text = write("base=base", "a=a", "b=b", "same=copy", "deep=deep", "other=gpt2")
    assert list(checked.config.models) == ["base", "a", "b"]
    flat = text.replace("\n  # ", " ")
    assert "left out: it has the same weights as 'base'" in flat
    assert "left out: it has 4 layers and 'base' 3; only slices mix models" in flat
    assert "left out: it doesn't fit 'base': model 'other' is a gpt2" in flat


def test_a_copy_that_differs_where_the_sample_does_not_look_is_kept(
    write: Write, models: Path, monkeypatch: pytest.MonkeyPatch
):
    almost = write_model(models / "almost", seed=0)
    weights = load_file(almost / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = weights[
        "model.layers.1.mlp.up_proj.weight"
    ].clone()
    weights["model.layers.1.mlp.up_proj.weight"][1] += 1
    save_file(weights, almost / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr("merge_core.sketches._ELEMENTS", 64)
    checked, _ = write("base=base", "a=a", "almost=almost")
    assert "almost" in checked.config.models


def test_models_that_are_all_the_same(write: Write):
    with pytest.raises(StudyError, match=r"two models or more are needed.*'same' has the same"):
        write("base=base", "same=copy")


def test_a_small_budget_searches_fewer_numbers(write: Write):
    few, _ = write("base=base", "a=a", "b=b", trials=80)
    assert few.config.search.trials == 80
    more, _ = write("base=base", "a=a", "b=b", force=True)
    assert len(names(few)) < len(names(more))


def test_items_follow_from_the_smallest_task(write: Write):
    checked, text = write("base=base", "a=a", "b=b", tasks=("tiny_choice:acc_norm", "tiny_exact"))
    items = checked.config.items
    assert (items.search, items.select, items.holdout) == (18, 12, 30)
    metrics = [(o.name, o.metric) for o in checked.config.objectives]
    assert metrics == [("tiny_choice", "acc_norm"), ("tiny_exact", "perplexity")]
    assert "60 items; lower is better" in text
    assert "points in the mean shows, if two models differ on 10%" in text.replace("\n  # ", " ")


def test_paths_are_seen_from_the_file(write: Write, study_folder: Path, tmp_path: Path):
    (tmp_path / "deep" / "down").mkdir(parents=True)
    task = study_folder / "tasks" / "tiny_choice.yaml"
    checked, _ = write(
        "base=./base", "a=a", tasks=(f"{task}:acc",), out=tmp_path / "deep" / "down" / "mine.yaml"
    )
    assert checked.config.name == "mine"
    assert all(place.startswith("../") for place in checked.config.models.values())
    assert checked.config.objectives[0].name.endswith("tasks/tiny_choice.yaml")


def test_vocabularies_that_differ_are_merged_by_token(write: Write, models: Path):
    folder = write_model(models / "tokens", seed=9, near=models / "base")
    path = folder / "tokenizer.json"
    text = path.read_text()
    assert '"~"' in text
    path.write_text(text.replace('"~"', '"≈"'))
    checked, text = write("base=base", "a=a", "tokens=tokens")
    assert checked.config.recipe["tokenizer_source"] == "union"
    assert "vocabularies differ" in text


def test_clusters_cost_items_at_the_ends_of_roles(write: Write, study_folder: Path, tmp_path: Path):
    rows = [
        {
            "passage": f"passage {at // 5}: " + "as long as a text is " * 3,
            "query": f"{at} is",
            "choices": ["a", "b"],
            "gold": at % 2,
        }
        for at in range(200)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = yaml.safe_load((study_folder / "tasks/tiny_choice.yaml").read_text())
    task["task"] = "clustered"
    task["dataset_kwargs"] = {"data_files": {"test": str(tmp_path / "rows.jsonl")}}
    (tmp_path / "clustered.yaml").write_text(yaml.safe_dump(task))
    checked, _ = write("base=base", "a=a", tasks=(str(tmp_path / "clustered.yaml"),))
    items = checked.config.items
    assert items.search + items.select + items.holdout == 200 - 2 * 4
    assert any(key is not None for key in checked.clusters(Role.HOLDOUT))


def test_all_mistakes_come_at_once_and_nothing_is_written(
    models: Path, study_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(models)
    out = tmp_path / "study.yaml"
    out.write_text("mine")
    include = (study_folder / "tasks", Path("nowhere"))
    options = NewOptions(("tiny_choice:nonsense",), include, out)
    with pytest.raises(StudyError) as error:
        new_study(["base=base", "b=./missing"], options)
    told = str(error.value)
    for part in (
        "study.yaml exists; give another name, or --force",
        "--include: nowhere is no folder",
        "--tasks: task 'tiny_choice': has no metric 'nonsense'; it has acc, acc_norm",
        "models.b: './missing': there is no such folder",
    ):
        assert part in told
    assert out.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [out]


def test_force_replaces(write: Write, tmp_path: Path):
    (tmp_path / "study.yaml").write_text("mine")
    checked, text = write("base=base", "a=a", force=True)
    assert text != "mine"
    assert checked.config.name == "a"


def test_a_study_that_fails_its_check_is_not_written(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(_: Path):
        raise StudyError(["items: something"], "draft")

    monkeypatch.setattr("search.new.check_study", fail)
    with pytest.raises(StudyError, match=r"nothing was written; .*: items: something"):
        write("base=base", "a=a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["base=base"], "two models or more are needed for a merge, got 1"),
        (["a=a", "a=b"], "two models are called 'a'"),
        (["a=", "b=b"], "'a=': expected name=path"),
        (["a=a", "b=b", "--base"], "'c' is none of the models"),
    ],
)
def test_mistakes_in_models(models: Path, tmp_path: Path, monkeypatch, words: list[str], told: str):
    monkeypatch.chdir(models)
    base = "c" if "--base" in words else None
    named = [word for word in words if word != "--base"]
    with pytest.raises(StudyError, match=told):
        new_study(named, NewOptions((), (), tmp_path / "study.yaml", base=base))


def test_the_command_ends_with_the_next_one(
    models: Path, study_folder: Path, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(models)
    out = tmp_path / "study.yaml"
    words = ["new", "base", "a", "other=b", "--tasks", "tiny_choice", "--out", str(out)]
    words += ["--include", str(study_folder / "tasks")]
    monkeypatch.setattr(sys, "argv", ["outcross", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    text = capsys.readouterr().out
    assert text.endswith(f"Wrote {out}. Next: outcross run {out}\n")
    assert "change of 'other':" in text
    assert list(yaml.safe_load(out.read_text())["models"]) == ["base", "a", "other"]


def test_a_comment_stands_beside_where_there_is_room():
    assert render([Line(1, "a: 1", "why")]) == "  a: 1  # why\n"
    long = "word " * 30
    rows = render([Line(1, "a: 1", long)]).splitlines()
    assert rows[-1] == "  a: 1"
    assert all(row.startswith("  # ") and len(row) <= 100 for row in rows[:-1])
    assert render([Line(0, "", "alone\n  b: 2")]) == "# alone b: 2\n"
