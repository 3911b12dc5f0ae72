"""The study file: every mistake at once, each with its place."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_study import study_dict

from search.bench import check_study
from search.config import StudyConfig, parse, read_yaml
from search.errors import ProtocolError, StudyError


def mistakes_of(**changes: Any) -> list[str]:
    found: list[str] = []
    parse(study_dict(**changes), found)
    return found


def check(study_folder: Path, name: str, **changes: Any) -> tuple[str, ...]:
    """The mistakes of a whole study file, models and tasks included."""
    path = study_folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(study_dict(**changes), sort_keys=False))
    with pytest.raises(StudyError) as error:
        check_study(path)
    return error.value.mistakes


def test_a_valid_study_has_no_mistake_and_sane_defaults():
    found: list[str] = []
    minimal = {key: study_dict()[key] for key in ("name", "models", "recipe", "objectives")}
    config = parse(minimal, found)
    assert not found
    assert isinstance(config, StudyConfig)
    assert (config.items.search, config.items.select, config.items.holdout) == (200, 200, 400)
    assert (config.search.sampler, config.search.trials) == ("auto", 100)
    assert config.storage is None


def test_search_items_may_be_the_rest():
    assert mistakes_of(items={"search": "rest", "select": 5, "holdout": 5}) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nmae": "x"}, "nmae: unknown key; did you mean 'name'?"),
        ({"goal": "pareto"}, "goal: unknown key here; write 'search: {goal: ...}'"),
        (
            {"seed": 1},
            "seed: unknown key here; write 'items: {seed: ...}' or 'search: {seed: ...}'",
        ),
        ({"search": {"trails": 3}}, "search.trails: unknown key; did you mean 'trials'?"),
        ({"items": {"hold_out": 3}}, "items.hold_out: unknown key; did you mean 'holdout'?"),
        (
            {"evaluation": {"batchsize": 3}},
            "evaluation.batchsize: unknown key; did you mean 'batch_size'?",
        ),
        (
            {"objectives": [{"task": "x"}, {"task": "y", "metrc": "acc"}]},
            "objectives[1].metrc: unknown key; did you mean 'metric'?",
        ),
        (
            {"search": {"zzz": 1}},
            "search.zzz: unknown key; known: sampler, goal, trials, batch, racing, finalists, seed",
        ),
        (
            {"objectives": [{}]},
            "objectives[0]: is one of task, text, model and function, and none is given",
        ),
        (
            {"objectives": [{"task": "x", "model": "depth"}]},
            "objectives[0]: is one of task, text, model and function, and task and model are given",
        ),
        (
            {"objectives": [{"task": "x", "at_most": 3}]},
            "objectives[0]: task has no 'at_most'; it has metric, weight, direction, cluster, ",
        ),
        (
            {"objectives": [{"model": "depth", "weight": 2.0}]},
            "objectives[0]: model has no 'weight'; it has floor, at_most",
        ),
        (
            {"objectives": [{"model": "width"}]},
            "objectives[0].model: input should be 'depth' or 'parameters', got 'width'",
        ),
        (
            {"objectives": [{"model": "depth", "floor": 3, "at_most": 3}]},
            "objectives[0]: floor and at_most both say the limit; give one",
        ),
        (
            {"objectives": [{"task": "x"}, {"model": "depth"}]},
            "objectives[1].model: depth can't be averaged with scores; give at_most, or search: ",
        ),
        (
            {"objectives": [{"model": "depth", "at_most": 3}]},
            "objectives: none of them is a task or a text; a claim needs items",
        ),
        (
            {"objectives": [{"task": "x", "floor": "parent"}]},
            "objectives[0].floor: expected parents (no worse than the best parent), {parents: ",
        ),
        (
            {"objectives": [{"task": "x", "floor": {"parents": -0.1}}]},
            "objectives[0].floor: expected parents (no worse than the best parent), {parents: ",
        ),
        (
            {"objectives": [{"task": "x", "floor": float("nan")}]},
            "objectives[0].floor: expected parents (no worse than the best parent), {parents: ",
        ),
        (
            {"objectives": [{"task": "x"}], "search": {"goal": "pareto"}},
            "search.goal: pareto needs two objectives or more, and there is one; leave it out",
        ),
        (
            {"objectives": [{"task": "x"}], "search": {"goal": "front"}},
            "search.goal: input should be 'mean' or 'pareto', got 'front'",
        ),
        (
            {"objectives": [{"task": "x"}, {"function": "scorer.py"}]},
            "objectives[1].function: expected a file and a name in it, ./scorer.py:name, got ",
        ),
        ({"name": "a b"}, "name: 'a b' has a form that is not allowed"),
        ({"device": "gpu"}, "device: 'gpu' has a form that is not allowed"),
        ({"models": {}}, "models: dictionary should have at least 1 item"),
        ({"models": {"a": 3}}, "models.a: input should be a valid string, got 3"),
        ({"objectives": []}, "objectives: tuple should have at least 1 item"),
        ({"search": {"trials": 0}}, "search.trials: input should be greater than 0, got 0"),
        ({"search": {"trials": "9"}}, "search.trials: input should be a valid integer, got '9'"),
        ({"search": {"seed": -1}}, "search.seed: input should be greater than or equal to 0"),
        ({"items": {"select": 2.5}}, "items.select: input should be a valid integer"),
        (
            {"search": {"sampler": "tpee"}},
            "search.sampler: input should be 'auto', 'composite', 'tpe', 'cmaes', 'catcma', 'gp', "
            "'nsgaii', 'evolution', 'qmc' or 'random', got 'tpee'",
        ),
        ({"dtype": "fp32"}, "dtype: input should be 'auto', 'float32', 'float16' or 'bfloat16'"),
        (
            {"objectives": [{"task": "x", "direction": "up"}]},
            "objectives[0].direction: input should be 'maximize' or 'minimize', got 'up'",
        ),
        (
            {"objectives": [{"task": "x", "weight": 0}]},
            "objectives[0].weight: input should be greater than 0, got 0",
        ),
        (
            {"objectives": [{"task": "x"}, {"task": "x", "metric": "acc"}]},
            "objectives[1].task: 'x' is listed twice",
        ),
        (
            {"objectives": [{"task": {"task": "x", "num_fewshot": 3}}, {"task": "x"}]},
            "objectives[1].task: 'x' is listed twice",
        ),
        (
            {"objectives": [{"task": {"num_fewshot": 3}}]},
            "objectives[0].task: expected a task's name, or its keys with the name as 'task' or "
            "'group', got {'num_fewshot': 3}",
        ),
        ({"objectives": [{"task": 3}]}, "objectives[0].task: expected a task's name"),
        (
            {"objectives": [{"task": "x", "signal": "prob"}]},
            "objectives[0].signal: input should be 'auto', 'metric', 'soft_accuracy', "
            "'probability', 'margin' or 'bits_per_byte', got 'prob'",
        ),
        (
            {"objectives": [{"task": "x", "gen_kwargs": {"max_gen_toks": 0}}]},
            "objectives[0].gen_kwargs: max_gen_toks is a number of tokens from 1 on, not 0",
        ),
        (
            {"objectives": [{"task": "x", "gen_kwargs": {"until": [3]}}]},
            "objectives[0].gen_kwargs: until is a text or a list of texts, not [3]",
        ),
        (
            {"evaluation": {"gen_kwargs": {"temperature": 1, "do_sample": False}}},
            "evaluation.gen_kwargs: temperature has no meaning with do_sample: false",
        ),
        (
            {"evaluation": {"apply_chat_template": 3}},
            "evaluation.apply_chat_template: expected true, false or a template's name, got 3",
        ),
        (
            {"evaluation": {"chat_template_args": {"a": 1}}},
            "evaluation: chat_template_args has no effect without apply_chat_template",
        ),
        (
            {"evaluation": {"apply_chat_template": True, "enable_thinking": True}},
            "evaluation: enable_thinking: true needs a think_end_token",
        ),
        (
            {"evaluation": {"fewshot_draws": "first"}},
            "evaluation.fewshot_draws: input should be 'lm_eval' or 'per_item', got 'first'",
        ),
        ({"evaluation": {"predict_only": True}}, "evaluation.predict_only: would leave nothing"),
        ({"evaluation": {"use_cache": "x"}}, "evaluation.use_cache: lm-eval's cache answers for"),
        ({"evaluation": {"limit": 9}}, "evaluation.limit: say how many items under 'items'"),
        ({"evaluation": {"chat_template": True}}, "evaluation.chat_template: is called apply_chat"),
    ],
)
def test_a_mistake_is_named_with_its_place(changes: dict[str, Any], message: str):
    found = mistakes_of(**changes)
    assert any(line.startswith(message) for line in found), found


def test_a_missing_section_is_named():
    found: list[str] = []
    assert parse({"name": "x", "recipe": {}}, found) is None
    assert found == ["models: is missing", "objectives: is missing"]


def test_a_mistake_within_an_objective_is_one_line():
    assert len(mistakes_of(objectives=[{"task": "x", "weight": 0}])) == 1


def test_a_wrong_number_of_search_items_is_one_line():
    assert len(mistakes_of(items={"search": 0})) == 1


def test_all_mistakes_of_the_file_come_at_once(study_folder: Path):
    recipe = study_dict()["recipe"] | {"merge_method": "task_arithmetik", "base_model": "bass"}
    found = check(study_folder, "shape", search={"trails": 3}, device="gpu", recipe=recipe)
    text = "\n".join(found)
    for part in ("search.trails: ", "device: ", "recipe.merge_method: ", "recipe.base_model: "):
        assert part in text
    assert len(found) == 4


def test_recipe_models_tasks_and_items_are_checked_together(study_folder: Path):
    recipe = study_dict()["recipe"] | {"parameters": {"lamda": 1.0}}
    found = check(
        study_folder,
        "content",
        recipe=recipe,
        models={"base": "./models/base", "a": "./models/nowhere", "b": "./models/b"},
        objectives=[{"task": "tiny_choice", "metric": "ac"}, {"task": "tiny_exact"}],
        items={"search": 100, "select": 8, "holdout": 16},
        evaluation={"tasks": ["./tasks", "./taks"]},
    )
    expected = [
        "recipe.parameters.lamda: task_arithmetic has no parameter 'lamda'; did you mean 'lambda'?",
        "models.a: './models/nowhere': there is no such folder",
        "evaluation.tasks[1]: ",
        "objectives[0]: task 'tiny_choice': has no metric 'ac'; it has acc, acc_norm",
        "objectives[1]: task 'tiny_exact': has 60 different items, too few for search 100",
    ]
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)


def test_a_recipe_that_does_not_fit_its_parents_is_named_with_its_method(study_folder: Path):
    recipe = study_dict()["recipe"] | {"merge_method": {"choice": ["task_arithmetic", "slerp"]}}
    found = check(study_folder, "fit", recipe=recipe)
    assert found[0].startswith("recipe (slerp): merge_method 'slerp' takes exactly 2 models")
    assert len(found) == 1


def test_groups_that_leave_tensors_out_are_named_with_what_to_write(study_folder: Path):
    recipe = study_dict()["recipe"]
    recipe["models"][0]["parameters"]["weight"]["by"] = ["mlp", "self_attn"]
    found = check(study_folder, "rest", recipe=recipe)
    assert found == (
        "recipe (task_arithmetic): tensor 'lm_head.weight': merge_method 'task_arithmetic' needs "
        "'weight' for model 'a': there are values for 'mlp', 'self_attn' alone; give one for all "
        "other tensors too, with \"*\" at the end of 'by', or an entry without a filter",
    )


def test_a_local_task_without_its_folder_is_told_where_that_stands(study_folder: Path):
    found = check(study_folder, "tasks", evaluation={})
    assert found == (
        "objectives[0]: task 'tiny_choice': lm-eval has no task of that name; tasks of your own "
        "need their folder: evaluation: {tasks: [./folder]}",
    )
    (found,) = check(study_folder, "tasks", objectives=[{"task": "nowhere"}])
    assert found == "objectives[0]: task 'nowhere': lm-eval has no task of that name"


def test_a_group_that_matches_no_tensor_is_a_mistake(study_folder: Path):
    hole = {"range": [0, 1], "by": ["self.attn", "*"]}
    recipe = study_dict()["recipe"] | {"models": [{"model": "a", "parameters": {"weight": hole}}]}
    found = check(study_folder, "group", recipe=recipe)
    assert found == ("recipe: by: 'self.attn' is part of no tensor's name",)


def test_cuda_is_refused_where_there_is_none(study_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = check(study_folder, "cuda", device="cuda:0")
    assert found == ("device: 'cuda:0' is asked for, but this machine has no such device",)


def test_a_local_task_file_is_relative_to_the_study(
    study_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    changes = {"objectives": [{"task": "tasks/tiny_choice.yaml"}], "evaluation": {}}
    path = study_folder / "by_file.yaml"
    path.write_text(yaml.safe_dump(study_dict(**changes)))
    monkeypatch.chdir(tmp_path)
    assert len(check_study(path).tasks[0].places) == 60


def test_a_study_folder_can_be_moved(study_folder: Path):
    changes = {"objectives": [{"task": "tasks/tiny_choice.yaml"}], "evaluation": {}}
    path = study_folder / "by_file.yaml"
    path.write_text(yaml.safe_dump(study_dict(**changes)))
    assert str(study_folder) not in check_study(path).tasks[0].name


def test_one_mistake_is_one_line_and_several_are_a_list():
    assert str(StudyError(["search: bad"], "s.yaml")) == "s.yaml: search: bad"
    assert str(StudyError(["x", "y"], "s.yaml")) == "s.yaml: 2 mistakes\n  - x\n  - y"


def test_a_mistake_of_another_process_reads_the_same():
    for error in (StudyError(["x", "y"], "s.yaml"), ProtocolError(["seed: was 1, is 2"])):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.mistakes) == (
            type(error),
            str(error),
            error.mistakes,
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", "is not valid YAML: line 1, column 9"),
        ("- a", "expected a mapping of keys at the top"),
        ("", "expected a mapping of keys at the top"),
        ("a: 1\n b: 2", "is not valid YAML: line 2, column 3"),
        (
            "a: 1\nb: 2\na: 1",
            "is not valid YAML: line 3, column 1: key 'a' stands in line 1 already; give it once",
        ),
        (
            "x:\n- {b: 1,\n   c: 2,\n   b: 3}",
            "is not valid YAML: line 4, column 4: key 'b' stands in line 2 already",
        ),
        ("x: {3: 1, 3: 2}", "is not valid YAML: line 1, column 11: key '3' stands in line 1"),
    ],
)
def test_a_file_that_is_no_yaml_mapping(tmp_path: Path, text: str, message: str):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(StudyError) as error:
        read_yaml(path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_what_is_merged_in_may_be_given_again(tmp_path: Path):
    """YAML's `<<` is a default; and a key may stand in several mappings."""
    path = tmp_path / "s.yaml"
    text = "a: &a {q: 1, r: 1}\nb: &b {<<: *a, q: 2}\nc: {<<: *b, r: 3}\nd: {q: 4}\n"
    path.write_text(text)
    a, b = {"q": 1, "r": 1}, {"q": 2, "r": 1}
    assert read_yaml(path) == {"a": a, "b": b, "c": {"q": 2, "r": 3}, "d": {"q": 4}}


def test_a_study_is_one_document(tmp_path: Path):
    (tmp_path / "study.yaml").write_text("name: a\n---\nname: b\n")
    with pytest.raises(StudyError, match=r"study.yaml: has 2 documents; one is expected"):
        read_yaml(tmp_path / "study.yaml")


def test_files_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(StudyError, match=r"nowhere\.yaml: there is no such file"):
        read_yaml(tmp_path / "nowhere.yaml")
    with pytest.raises(StudyError, match="can't be read"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: ü".encode("latin-1"))
    with pytest.raises(StudyError, match="can't be read"):
        read_yaml(tmp_path / "latin.yaml")
