"""Scores are lm-eval's own, and belong to the weights that are in the model now."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from evals.errors import EvaluationError
from evals.harness import Harness
from evals.items import Counts, Role
from evals.loading import TaskRequest
from evals.resident import Resident
from evals.scorecard import Value
from evals.tasks import OpenTask, open_tasks

TASKS = {
    "tiny_choice": ("acc", "acc_norm"),
    "tiny_exact": ("perplexity", "acc"),
    "tiny_text": ("bits_per_byte",),
    "tiny_generate": ("exact_match",),
}
ROUND = {name: f"{metrics[0]},none" for name, metrics in TASKS.items()}

COUNTS = Counts(12, 4, 8)

OpenLocal = Callable[..., tuple[OpenTask, ...]]
HarnessOf = Callable[..., Harness]


def lm_evals_own(resident: Resident, folder: Path, name: str, positions: list[int]) -> dict:
    """What lm-eval's evaluator says about some documents of a task."""
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    with contextlib.chdir(folder / "tasks"):
        loaded = manager.load([name])
    model = HFLM(
        pretrained=resident.model,
        tokenizer=resident.tokenizer,
        batch_size=8,
        softmax_dtype="float32",
    )
    return evaluate(model, loaded, samples={name: sorted(positions)}, bootstrap_iters=0)


def as_value(result: object) -> Value:
    return tuple(float(part) for part in result) if isinstance(result, tuple) else float(result)


@pytest.mark.parametrize("name", TASKS)
def test_results_equal_lm_evals(
    name: str, resident: Resident, study_folder: Path, open_local: OpenLocal, harness_of: HarnessOf
):
    (task,) = open_local(name)
    places = task.split.roles[Role.SEARCH]
    card = harness_of([task]).score(Role.SEARCH)
    theirs = lm_evals_own(resident, study_folder, name, list(places))
    by_place = {sample["doc_id"]: sample for sample in theirs["samples"][name]}
    for metric in TASKS[name]:
        expected = [as_value(by_place[at][metric]) for at in places]
        assert len(expected) == 12
        for ours, other in zip(card.items[name][f"{metric},none"], expected, strict=True):
            assert ours == pytest.approx(other, rel=1e-5)
    (score,) = card.scores
    assert score.value == pytest.approx(theirs["results"][name][ROUND[name]], rel=1e-5)


def test_the_tiny_tasks_can_tell_models_apart(open_local: OpenLocal, harness_of: HarnessOf):
    """Equality with lm-eval means little where all results are the same."""
    card = harness_of(open_local("tiny_choice", "tiny_text")).score(Role.SEARCH)
    for name, metric in (("tiny_choice", "acc,none"), ("tiny_text", "bits_per_byte,none")):
        assert len(set(card.items[name][metric])) > 1


def test_scoring_twice_gives_the_same(open_local: OpenLocal, harness_of: HarnessOf):
    harness = harness_of(open_local(*TASKS))
    first, second = harness.score(Role.SEARCH), harness.score(Role.SEARCH)
    assert first.items == second.items
    assert first.scores == second.scores


def test_weights_changed_in_place_change_the_results(
    resident: Resident, open_local: OpenLocal, harness_of: HarnessOf
):
    harness = harness_of(open_local(*TASKS))
    before = harness.score(Role.SEARCH)
    kept = {name: slot.clone() for name, slot in resident.slots.items()}
    with torch.no_grad():
        for slot in resident.slots.values():
            slot.mul_(-1.5)
    after = harness.score(Role.SEARCH)
    for name in ("tiny_choice", "tiny_exact", "tiny_text"):
        assert after.items[name] != before.items[name]
    with torch.no_grad():
        for name, slot in resident.slots.items():
            slot.copy_(kept[name])
    assert harness.score(Role.SEARCH).items == before.items


def test_roles_have_items_of_their_own(open_local: OpenLocal, harness_of: HarnessOf):
    (benchmark,) = harness_of(open_local("tiny_choice"), tuple(Role)).benchmarks
    queries = {
        role: {item.document["query"] for item in items} for role, items in benchmark.items.items()
    }
    assert {role: len(found) for role, found in queries.items()} == {
        Role.SEARCH: 12,
        Role.SELECT: 4,
        Role.HOLDOUT: 8,
    }
    assert len(set.union(*queries.values())) == 24


def test_a_search_gets_no_holdout_items(open_local: OpenLocal, harness_of: HarnessOf):
    harness = harness_of(open_local("tiny_choice"), (Role.SEARCH, Role.SELECT))
    assert set(harness.benchmarks[0].items) == {Role.SEARCH, Role.SELECT}
    with pytest.raises(EvaluationError, match="the holdout items are sealed"):
        harness.score(Role.HOLDOUT)


@pytest.mark.parametrize("draws", ["lm_eval", "per_item"])
def test_few_shot_prompts_stay_the_same_in_every_subset(
    open_local: OpenLocal, harness_of: HarnessOf, draws: str
):
    def prompts(counts: Counts, roles: tuple[Role, ...]) -> dict[str, str]:
        opened = open_local("tiny_shots", counts=counts)
        (benchmark,) = harness_of(opened, roles, fewshot_draws=draws).benchmarks
        items = [item for part in benchmark.items.values() for item in part]
        return {item.document["query"]: item.requests[0].args[0] for item in items}

    every = prompts(Counts(40, 10, 10), tuple(Role))
    for counts in (Counts(5, 10, 10), Counts(None, 4, 12), Counts(20, 10, 10)):
        for roles in ((Role.SEARCH,), (Role.SELECT, Role.SEARCH)):
            found = prompts(counts, roles)
            assert found == {query: every[query] for query in found}
    assert all(prompt.count(" is") == 3 for prompt in every.values())
    assert len({prompt.rsplit("\n\n", 1)[0] for prompt in every.values()}) > 5


def test_num_fewshot_overrides_the_task(open_local: OpenLocal, harness_of: HarnessOf):
    tasks = open_local(TaskRequest("tiny_shots", num_fewshot=4))
    (benchmark,) = harness_of(tasks).benchmarks
    assert benchmark.items[Role.SEARCH][0].requests[0].args[0].count(" is") == 5


def test_few_shot_examples_are_never_holdout_items(
    study_folder: Path, tmp_path: Path, harness_of: HarnessOf
):
    """A task may take its examples from the very set that it tests on."""
    task = yaml.safe_load((study_folder / "tasks/tiny_shots.yaml").read_text())
    task |= {"task": "tiny_same", "fewshot_split": "test"}
    _write_task(tmp_path, task, study_folder)
    opened = open_tasks([TaskRequest("tiny_same")], Counts(20, 5, 20), 0, [tmp_path], pytest.fail)
    (benchmark,) = harness_of(opened, tuple(Role)).benchmarks
    held = [item.document["query"] for item in benchmark.items[Role.HOLDOUT]]
    prompts = [item.requests[0].args[0] for item in benchmark.items[Role.SEARCH]]
    assert not any(query in prompt for query in held for prompt in prompts)


@pytest.mark.parametrize(
    ("request_", "settings"),
    [
        (TaskRequest("tiny_choice"), {"apply_chat_template": True}),  # the tokenizer has none
    ],
    ids=["chat template"],
)
def test_what_cannot_be_prompted_is_one_message(
    open_local: OpenLocal, harness_of: HarnessOf, request_: TaskRequest, settings: dict
):
    with pytest.raises(EvaluationError, match="the tokenizer has no chat template"):
        harness_of(open_local(request_), **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unsafe_code": True}, "runs the code that a model writes"),
        ({"doc_to_image": "image"}, "needs images or sound"),
    ],
)
def test_tasks_that_need_more_than_text_are_refused(
    study_folder: Path, tmp_path: Path, change: dict, message: str
):
    task = yaml.safe_load((study_folder / "tasks/tiny_choice.yaml").read_text())
    _write_task(tmp_path, task | {"task": "tiny_odd"} | change, study_folder)
    assert message in _mistakes("tiny_odd", tmp_path)[0]


def test_too_few_examples_are_a_mistake(study_folder: Path):
    request = TaskRequest("tiny_shots", num_fewshot=50)
    mistakes: list[str] = []
    open_tasks([request], COUNTS, 0, [study_folder / "tasks"], lambda _, m: mistakes.append(m))
    assert "12 documents are left for its 50 few-shot examples" in mistakes[0]


def test_metric_and_direction_come_from_the_task(open_local: OpenLocal):
    found = {t.name: (t.metric, t.higher_is_better) for t in open_local(*TASKS)}
    assert found == {
        "tiny_choice": ("acc,none", True),
        "tiny_exact": ("perplexity,none", False),
        "tiny_text": ("bits_per_byte,none", False),
        "tiny_generate": ("exact_match,none", True),
    }


def test_metric_direction_and_weight_may_be_given(open_local: OpenLocal):
    request = TaskRequest("tiny_choice", metric="acc_norm,none", higher_is_better=False, weight=2.0)
    (task,) = open_local(request)
    assert (task.metric, task.higher_is_better, task.weight) == ("acc_norm,none", False, 2.0)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (TaskRequest("tiny_choice", "acc_nrom"), "has no metric 'acc_nrom'; it has acc, acc_norm"),
        (TaskRequest("tiny_choice", "acc,strict"), "has no filter 'strict'; it has none"),
    ],
)
def test_what_a_task_lacks_is_named(open_local: OpenLocal, request_: TaskRequest, message: str):
    mistakes: list[str] = []
    assert open_local("tiny_exact", request_, mistakes=mistakes)[0].name == "tiny_exact"
    assert mistakes == [f"1: task 'tiny_choice': {message}"]


def test_too_few_items_are_a_mistake_of_each_task(open_local: OpenLocal):
    mistakes: list[str] = []
    open_local("tiny_choice", "tiny_exact", counts=Counts(50, 5, 6), mistakes=mistakes)
    assert [text.split(",")[0] for text in mistakes] == [
        "0: task 'tiny_choice': has 60 different items",
        "1: task 'tiny_exact': has 60 different items",
    ]


def test_a_metric_that_measures_nothing_is_refused(study_folder: Path, tmp_path: Path):
    task = yaml.safe_load((study_folder / "tasks/tiny_choice.yaml").read_text())
    task["task"] = "tiny_whole"
    task["metric_list"] = [{"metric": "bypass"}]
    _write_task(tmp_path, task, study_folder)
    mistakes = _mistakes("tiny_whole", tmp_path)
    assert "'bypass' measures nothing, lm-eval gives 999 for it" in mistakes[0]


def test_an_unknown_task_is_a_mistake_with_similar_names(study_folder: Path):
    """The one test for which lm-eval reads all its task files."""
    mistakes = _mistakes("tiny_choise", study_folder / "tasks")
    assert mistakes[0].startswith("task 'tiny_choise': lm-eval has no task of that name; did you ")
    assert "mean tiny_choice" in mistakes[0]


def test_missing_data_are_a_mistake(study_folder: Path, tmp_path: Path):
    task = yaml.safe_load((study_folder / "tasks/tiny_choice.yaml").read_text())
    task["dataset_kwargs"]["data_files"] = {"test": "nowhere.jsonl"}
    (tmp_path / "tiny_choice.yaml").write_text(yaml.safe_dump(task))
    assert "task 'tiny_choice': can't be loaded" in _mistakes("tiny_choice", tmp_path)[0]


def test_relative_data_paths_begin_at_the_tasks_file(
    open_local: OpenLocal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = open_local("tiny_choice")[0].hashes
    monkeypatch.chdir(tmp_path)
    assert open_local("tiny_choice")[0].hashes == expected
    assert Path.cwd() == tmp_path


def test_a_yaml_file_is_a_task(study_folder: Path, harness_of: HarnessOf):
    path = study_folder / "tasks/tiny_choice.yaml"
    found: list[str] = []
    tasks = open_tasks(
        [TaskRequest("tasks/tiny_choice.yaml", file=path)],
        Counts(3, 2, 2),
        0,
        [],
        lambda _, text: found.append(text),
    )
    assert not found
    assert harness_of(tasks).score(Role.SEARCH).scores[0].n == 3


def test_equal_documents_count_once(study_folder: Path, tmp_path: Path):
    task = yaml.safe_load((study_folder / "tasks/tiny_choice.yaml").read_text())
    lines = (study_folder / "data/test.jsonl").read_text().splitlines()[:10]
    (tmp_path / "double.jsonl").write_text("\n".join(lines * 2) + "\n")
    task["dataset_kwargs"]["data_files"] = {"test": "double.jsonl"}
    (tmp_path / "tiny_choice.yaml").write_text(yaml.safe_dump(task))
    found: list[str] = []
    (opened,) = open_tasks(
        [TaskRequest("tiny_choice")],
        Counts(None, 3, 3),
        0,
        [tmp_path],
        lambda _, text: found.append(text),
    )
    assert opened.split.duplicates == 10
    assert sum(len(part) for part in opened.split.roles.values()) == 10


def test_a_nan_model_gets_no_score(
    resident: Resident, open_local: OpenLocal, harness_of: HarnessOf
):
    """Per-item accuracy of NaNs is 0 or 1, so this shows in likelihoods only; see guards."""
    harness = harness_of(open_local("tiny_text", "tiny_exact"))
    with torch.no_grad():
        resident.slots["model.norm.weight"].fill_(torch.nan)
    card = harness.score(Role.SEARCH)
    assert [score.value for score in card.scores] == [None, None]
    assert card.failure == "tiny_text: 12 items are not finite numbers"


def test_a_task_that_gives_no_numbers_is_unscored(open_local: OpenLocal, harness_of: HarnessOf):
    harness = harness_of(open_local("tiny_choice"))
    for item in harness.benchmarks[0].items[Role.SEARCH][:2]:
        item.task.process_results = lambda *_: {"acc": "text"}
    card = harness.score(Role.SEARCH)
    assert card.scores[0].value is None
    assert card.scores[0].unscored == "12 of 12 items gave no number for acc,none"


def test_the_digest_follows_the_prompts(open_local: OpenLocal, harness_of: HarnessOf):
    def digest(request: TaskRequest | str, counts: Counts = COUNTS) -> str:
        return harness_of(open_local(request, counts=counts)).benchmarks[0].digest

    assert digest("tiny_shots") == digest("tiny_shots")
    assert digest("tiny_shots") != digest(TaskRequest("tiny_shots", num_fewshot=1))
    assert digest("tiny_choice") != digest(TaskRequest("tiny_choice", "acc_norm"))
    assert digest("tiny_choice") != digest("tiny_choice", Counts(11, 4, 8))


def test_the_health_prompt_is_real_and_short(open_local: OpenLocal, harness_of: HarnessOf):
    harness = harness_of(open_local("tiny_choice"))
    text = harness.benchmarks[0].items[Role.SEARCH][0].requests[0].args[0]
    assert harness.lm.tok_decode(harness.prompt).startswith(text[:4])
    assert 1 <= len(harness.prompt) <= 32


def _write_task(folder: Path, task: dict, study_folder: Path) -> None:
    task["dataset_kwargs"]["data_files"] = {"test": str(study_folder / "data/test.jsonl")}
    (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(task))))


def _mistakes(name: str, include: Path) -> list[str]:
    found: list[str] = []
    request = TaskRequest(name)
    open_tasks([request], Counts(4, 2, 2), 0, [include], lambda _, text: found.append(text))
    return found
