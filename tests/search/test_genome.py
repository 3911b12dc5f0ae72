"""Genome files of mergekit-evolve, read as studies."""

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import yaml

from merge_core.plan import compile_plan
from search.bench import CheckedStudy, check_study
from search.errors import StudyError
from search.genome import is_genome, read_genome

TIES = {
    "models": ["./models/a", "./models/b"],
    "merge_method": "ties",
    "base_model": "./models/base",
}
FILE: dict[str, Any] = {
    "tasks": [{"name": "tiny_choice", "weight": 2.0, "metric": "acc,none"}],
    "limit": 16,
    "apply_chat_template": False,
    # What a genome lacks: where the tasks are, and how many items there are to spare.
    "evaluation": {"tasks": ["./tasks"]},
    "items": {"select": 8, "holdout": 16},
    "device": "cpu",
}


def checked(folder: Path, genome: dict[str, Any], **changes: Any) -> CheckedStudy:
    path = folder / "evolve.yml"
    path.write_text(yaml.safe_dump(FILE | {"genome": genome} | changes))
    return check_study(path)


def mistakes_of(folder: Path, **changes: Any) -> list[str]:
    found: list[str] = []
    read_genome(FILE | {"genome": TIES} | changes, folder / "evolve.yml", found)
    return found


def names(study: CheckedStudy) -> list[str]:
    return [dimension.name for dimension in study.space.dimensions]


def test_a_genome_file_is_a_study(study_folder: Path):
    study = checked(study_folder, TIES)
    assert study.config.name == "evolve"
    assert names(study) == ["a.weight", "a.density", "b.weight", "b.density"]
    first = study.space.starts()[0]
    assert first == {"a.weight": 0.5, "a.density": 1.0, "b.weight": 0.5, "b.density": 1.0}
    recipe = study.space.decode(first)
    assert (recipe.method, recipe.base) == ("ties", "base")
    (task,) = study.config.objectives
    assert (task.task, task.metric, task.weight) == ("tiny_choice", "acc,none", 2.0)
    assert (study.config.items.search, study.config.items.holdout) == (16, 16)
    assert not study.config.evaluation.apply_chat_template
    assert str(study.dtype) == "torch.bfloat16"
    assert any("no bounds" in text for text in study.warnings)


def test_groups_of_layers_are_slices(study_folder: Path):
    study = checked(study_folder, TIES | {"layer_granularity": 1, "filters": ["mlp"]})
    assert len(names(study)) == 3 * 2 * 2 * 2
    assert names(study)[:3] == [
        "slice0.a.weight[mlp]",
        "slice0.a.weight[*]",
        "slice0.a.density[mlp]",
    ]
    values = dict(study.space.starts()[0])
    values |= {f"slice{n}.a.weight[{g}]": n + 0.1 for n in range(2) for g in ("mlp", "*")}
    plan = compile_plan(study.space.decode(values), study.checkpoints)
    weights = {step.out: dict(step.params)["weight"] for step in plan.steps}
    assert weights["model.embed_tokens.weight"] == (0.1, 0.5)  # as the first slice
    assert weights["model.layers.1.mlp.up_proj.weight"] == (1.1, 0.5)
    assert weights["model.norm.weight"] == (0.5, 0.5)  # as the last


def test_smooth_groups_are_one_gradient(study_folder: Path):
    study = checked(study_folder, TIES | {"layer_granularity": 1, "smooth": True})
    assert names(study)[:3] == ["a.weight@0", "a.weight@1", "a.weight@2"]


@pytest.mark.parametrize(
    ("changes", "normalize"),
    [
        ({}, None),
        ({"normalize": False}, False),
        ({"merge_method": "task_arithmetic"}, None),
        ({"merge_method": "task_arithmetic", "normalize": True}, True),
        ({"merge_method": "dare_ties"}, True),
        ({"merge_method": "linear", "base_model": None}, None),
    ],
)
def test_normalize_is_as_in_mergekit_evolve(
    study_folder: Path, changes: dict[str, Any], normalize: bool | None
):
    study = checked(study_folder, TIES | changes)
    plan = compile_plan(study.space.decode(study.space.starts()[0]), study.checkpoints)
    method = (TIES | changes)["merge_method"]
    expected = method in ("linear", "ties", "dare_ties") if normalize is None else normalize
    assert dict(plan.steps[0].params)["normalize"] is expected


def test_negative_weights_and_a_random_start(study_folder: Path):
    study = checked(study_folder, TIES | {"allow_negative_weights": True}, random_init=True)
    weight = study.space.dimensions[0]
    assert (weight.low, weight.high, weight.start) == (-1.5, 1.5, None)


def test_slerp_of_two(study_folder: Path):
    genome = {"models": ["./models/a", "./models/b"], "merge_method": "slerp"}
    assert names(checked(study_folder, genome)) == ["t"]
    grouped = checked(study_folder, genome | {"layer_granularity": 1})
    assert names(grouped) == ["slice0.t", "slice1.t", "slice2.t"]


def test_slerp_of_several_chooses_two(study_folder: Path):
    genome = {"models": [f"./models/{m}" for m in ("a", "b", "base")], "merge_method": "slerp"}
    study = checked(study_folder, genome)
    assert names(study) == ["slice0", *(f"slice0.{p}.t" for p in ("a-b", "a-base", "b-base"))]


def test_fewshot_and_negative_task_weights(study_folder: Path):
    study = checked(study_folder, TIES, num_fewshot=2, tasks=["tiny_choice"])
    assert study.config.objectives[0].num_fewshot == 2
    read = read_genome(
        FILE | {"genome": TIES, "tasks": [{"name": "x", "weight": -2}]}, study_folder / "g.yml", []
    )
    (task,) = read.study["objectives"]
    assert (task["weight"], task["direction"], task["metric"]) == (2.0, "minimize", "acc,none")


def test_models_of_one_name_have_two_aliases(study_folder: Path):
    models = ["x/a", "y/a"]
    read = read_genome(FILE | {"genome": TIES | {"models": models}}, study_folder / "g.yml", [])
    assert read.study["models"] == {"a": "x/a", "a-2": "y/a", "base": "./models/base"}


def test_a_study_is_no_genome():
    assert is_genome({"genome": {}, "tasks": []})
    assert not is_genome({"recipe": {}, "models": {}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"genome": 7}, "genome: expected a mapping of keys"),
        ({"genome": TIES | {"models": []}}, "genome.models: expected a list of models"),
        ({"genome": TIES | {"models": [7]}}, "genome.models[0]: expected a name"),
        ({"genome": TIES | {"filter": []}}, "genome.filter: unknown key; did you mean 'filters'?"),
        ({"genome": TIES | {"merge_method": "sce"}}, "genome.merge_method: mergekit-evolve has li"),
        ({"genome": TIES | {"base_model": None}}, "genome.base_model: ties needs one"),
        (
            {"genome": TIES | {"merge_method": "slerp"}},
            "genome.base_model: slerp takes two of the models",
        ),
        (
            {"genome": {"models": ["a", "b"], "merge_method": "slerp", "smooth": True}},
            "genome.smooth: slerp has none in mergekit-evolve",
        ),
        ({"genome": TIES | {"layer_granularity": 2}}, "genome.layer_granularity: 3 layers are no"),
        ({"limits": 3}, "limits: unknown key; did you mean 'limit'?"),
        ({"tasks": []}, "tasks: expected a list of tasks"),
        ({"tasks": [7]}, "tasks[0]: expected a task's name, or name, weight and metric"),
        (
            {"tasks": [{"name": "x", "weight": 0}]},
            "tasks[0].weight: expected a number that isn't 0",
        ),
        (
            {"apply_chat_template": True},
            "apply_chat_template: is true, mergekit-evolve's default, and none of a, b, base has a "
            "chat template; write apply_chat_template: false",
        ),
        ({"tasks": [{"name": "x", "wight": 1}]}, "tasks[0].wight: unknown key; did you mean 'weig"),
    ],
)
def test_a_mistake_in_a_genome(study_folder: Path, changes: dict[str, Any], message: str):
    found = mistakes_of(study_folder, **changes)
    assert any(line.startswith(message) for line in found), found


def test_one_model_with_a_chat_template_is_enough(study_folder: Path, tmp_path: Path):
    (tmp_path / "models").mkdir()
    for name in ("a", "b", "base"):
        copytree(study_folder / "models" / name, tmp_path / "models" / name)
    silent = {key: value for key, value in FILE.items() if key != "apply_chat_template"}

    def found() -> list[str]:
        mistakes: list[str] = []
        read_genome(silent | {"genome": TIES}, tmp_path / "evolve.yml", mistakes)
        return mistakes

    assert len(found()) == 1  # applied unless the file says otherwise
    (tmp_path / "models" / "b" / "chat_template.jinja").write_text("{{ messages }}")
    assert not found()


def test_unknown_tasks_are_told_where_their_folder_stands(study_folder: Path):
    with pytest.raises(StudyError) as error:
        checked(study_folder, TIES, evaluation={}, tasks=["tiny_choice"])
    assert error.value.mistakes == (
        "tasks[0]: task 'tiny_choice': lm-eval has no task of that name; tasks of your own need "
        "their folder (mergekit-evolve's --task-search-path): evaluation: {tasks: [./folder]}",
    )


def test_all_mistakes_come_with_the_file(study_folder: Path):
    with pytest.raises(StudyError, match=r"evolve\.yml") as error:
        checked(study_folder, TIES | {"filter": []}, tasks=[])
    assert len(error.value.mistakes) == 2
