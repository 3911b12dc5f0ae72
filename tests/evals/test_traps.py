"""Traps of the plain stack: each is shown to be there, and not to be here."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from lm_eval.caching import cache
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from plain_lm_eval import plain_model, plain_prompts, plain_results

from evals.harness import Harness
from evals.items import Counts, Role
from evals.loading import TaskRequest
from evals.resident import Resident
from evals.tasks import OpenTask, open_tasks

OpenLocal = Callable[..., tuple[OpenTask, ...]]
HarnessOf = Callable[..., Harness]
EVERY = Counts(None, 1, 1)


@pytest.fixture
def tasks(study_folder: Path, tmp_path: Path) -> Path:
    """The local tasks over the first 12 documents, so that the plain stack is quick."""
    lines = (study_folder / "data/test.jsonl").read_text().splitlines()[:12]
    (tmp_path / "test.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "train.jsonl").write_text((study_folder / "data/train.jsonl").read_text())
    for name in ("tiny_choice", "tiny_shots"):
        task = yaml.safe_load((study_folder / f"tasks/{name}.yaml").read_text())
        task["dataset_kwargs"]["data_files"] = {"test": "test.jsonl", "train": "train.jsonl"}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return tmp_path


@pytest.fixture
def request_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval keeps prompts inside its own package; not in a test."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(cache, "PATH", str(tmp_path / "cache"))


def our_prompts(
    harness_of: HarnessOf,
    tasks: Path,
    name: str,
    roles: tuple[Role, ...] = tuple(Role),
    counts: Counts = EVERY,
) -> dict[str, str]:
    opened = open_tasks(
        [TaskRequest(name)],
        counts,
        0,
        [tasks],
        lambda _, text: pytest.fail(text),
    )
    (benchmark,) = harness_of(opened, roles).benchmarks
    items = [item for part in benchmark.items.values() for item in part]
    return {item.document["query"]: item.requests[0].args[0] for item in items}


def spoil(resident: Resident) -> None:
    with torch.no_grad():
        for slot in resident.slots.values():
            slot.mul_(-1.5)


def test_a_cache_of_answers_knows_no_model(
    resident: Resident, tasks: Path, tmp_path: Path, open_local: OpenLocal, harness_of: HarnessOf
):
    harness = harness_of(open_local("tiny_choice"))
    first = harness.score(Role.SEARCH)
    kept = {"use_cache": str(tmp_path / "answers")}
    before = plain_results(resident, tasks, "tiny_choice", **kept)["samples"]
    spoil(resident)
    after = plain_results(resident, tasks, "tiny_choice", **kept)["samples"]
    now = plain_results(resident, tasks, "tiny_choice")["samples"]
    responses = [[s["resps"] for s in found["tiny_choice"]] for found in (before, after, now)]
    assert responses[0] == responses[1] != responses[2]  # the plain stack: another model's answers
    second = harness.score(Role.SEARCH)
    assert second.items["tiny_choice"]["margin"] != first.items["tiny_choice"]["margin"]


@pytest.mark.usefixtures("request_cache")
def test_a_cache_of_prompts_knows_no_samples(
    resident: Resident, tasks: Path, harness_of: HarnessOf
):
    plain_results(resident, tasks, "tiny_choice", cache_requests=True)
    chosen = {"tiny_choice": [9, 10, 11]}
    found = plain_results(resident, tasks, "tiny_choice", samples=chosen, cache_requests=True)
    wrong = plain_prompts(found, "tiny_choice")
    assert all(not prompt.startswith(query) for query, prompt in wrong.items())
    ours = our_prompts(harness_of, tasks, "tiny_choice", counts=Counts(3, 2, 2))
    assert all(prompt.startswith(query) for query, prompt in ours.items())


@pytest.mark.usefixtures("request_cache")
def test_a_cache_of_prompts_knows_no_prompt(resident: Resident, tasks: Path, harness_of: HarnessOf):
    plain_results(resident, tasks, "tiny_choice", cache_requests=True)
    old = our_prompts(harness_of, tasks, "tiny_choice")
    task = yaml.safe_load((tasks / "tiny_choice.yaml").read_text())
    (tasks / "tiny_choice.yaml").write_text(
        yaml.safe_dump(task | {"doc_to_text": "Now: {{query}}"})
    )
    found = plain_results(resident, tasks, "tiny_choice", cache_requests=True)
    assert not any("Now" in prompt for prompt in plain_prompts(found, "tiny_choice").values())
    ours = our_prompts(harness_of, tasks, "tiny_choice")
    assert ours.keys() == old.keys()
    assert all(prompt.startswith("Now: ") for prompt in ours.values())


def test_examples_move_with_the_subset(resident: Resident, tasks: Path, harness_of: HarnessOf):
    whole = plain_prompts(plain_results(resident, tasks, "tiny_shots"), "tiny_shots")
    some = {"tiny_shots": [4, 7, 11]}
    part = plain_prompts(plain_results(resident, tasks, "tiny_shots", samples=some), "tiny_shots")
    assert any(part[query] != whole[query] for query in part)
    assert our_prompts(harness_of, tasks, "tiny_shots") == whole
    for counts, roles in ((Counts(3, 2, 2), (Role.SELECT,)), (Counts(5, 1, 4), (Role.SEARCH,))):
        ours = our_prompts(harness_of, tasks, "tiny_shots", roles, counts=counts)
        assert ours == {query: whole[query] for query in ours}


def test_a_second_evaluation_has_other_prompts(
    resident: Resident,
    tasks: Path,
    open_local: OpenLocal,
    harness_of: HarnessOf,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tasks)
    loaded = TaskManager(include_path=str(tasks), include_defaults=False).load(["tiny_shots"])
    loaded["tasks"]["tiny_shots"].set_fewshot_seed(1234)
    model = plain_model(resident)
    first, second = (
        plain_prompts(evaluate(model, loaded, bootstrap_iters=0), "tiny_shots") for _ in range(2)
    )
    assert first != second
    tasks_ = open_local("tiny_shots")
    again = [harness_of(tasks_).benchmarks[0].digest for _ in range(2)]
    assert again[0] == again[1]


def test_samples_out_of_order_get_others_names(
    resident: Resident, tasks: Path, open_local: OpenLocal, harness_of: HarnessOf
):
    shuffled = {"tiny_choice": [7, 5, 6]}
    found = plain_results(resident, tasks, "tiny_choice", samples=shuffled)
    rows = (tasks / "test.jsonl").read_text().splitlines()
    told = {s["doc_id"]: s["doc"]["query"] for s in found["samples"]["tiny_choice"]}
    assert any(f'"{query}"' not in rows[at] for at, query in told.items())
    (opened,) = open_local("tiny_choice")
    (benchmark,) = harness_of([opened]).benchmarks
    places = opened.split.roles[Role.SEARCH]
    assert list(places) != sorted(places)
    documents = opened.subtasks[0].documents
    for at, item in zip(places, benchmark.items[Role.SEARCH], strict=True):
        assert item.document == documents[opened.places[at][1]]


def test_a_limit_takes_the_first_rows(study_folder: Path, resident: Resident, tmp_path: Path):
    """A file that is sorted by its answers: the first rows all have the same one."""
    task = yaml.safe_load((study_folder / "tasks/tiny_choice.yaml").read_text())
    rows = (study_folder / "data/test.jsonl").read_text().splitlines()
    rows.sort(key=lambda row: yaml.safe_load(row)["gold"])
    (tmp_path / "test.jsonl").write_text("\n".join(rows) + "\n")
    task["dataset_kwargs"]["data_files"] = {"test": "test.jsonl"}
    (tmp_path / "tiny_choice.yaml").write_text(yaml.safe_dump(task))
    found = plain_results(resident, tmp_path, "tiny_choice", limit=8)
    assert {s["doc"]["gold"] for s in found["samples"]["tiny_choice"]} == {0}
    (opened,) = open_tasks(
        [TaskRequest("tiny_choice")], Counts(8, 8, 8), 0, [tmp_path], pytest.fail
    )
    for places in opened.split.roles.values():
        golds = [opened.subtasks[0].documents[at]["gold"] for at in places]
        assert set(golds) == {0, 1, 2, 3}


def test_options_tie_in_bfloat16(
    study_folder: Path, resident: Resident, tmp_path: Path, harness_of: HarnessOf
):
    """lm-eval's softmax has the model's dtype; argmax then takes the first of equal options."""

    def ties(likelihoods: list[list[float]]) -> int:
        return sum(len(set(options)) < len(options) for options in likelihoods)

    task = yaml.safe_load((study_folder / "tasks/tiny_choice.yaml").read_text())
    task |= {"doc_to_choice": ["a", "b", "c", "d", "e", "f"]}
    task["dataset_kwargs"]["data_files"] = {"test": str(study_folder / "data/test.jsonl")}
    (tmp_path / "tiny_choice.yaml").write_text(yaml.safe_dump(task))
    resident.model.to(torch.bfloat16)
    found = plain_results(
        resident, tmp_path, "tiny_choice", plain_model(resident, softmax_dtype=None)
    )
    theirs = [[r[0][0] for r in s["resps"]] for s in found["samples"]["tiny_choice"]]
    opened = open_tasks([TaskRequest("tiny_choice")], EVERY, 0, [tmp_path], pytest.fail)
    harness = harness_of(opened)
    harness.score(Role.SEARCH)
    items = harness.benchmarks[0].items[Role.SEARCH]
    ours = [[r.resps[0][0] for r in item.requests] for item in items]
    # The logits themselves are bfloat16 here, so a tie may be real; a softmax in it makes more.
    assert ties(theirs) > 5 * ties(ours)
