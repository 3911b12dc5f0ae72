"""A bench holds what its command needs, and nothing of what it may not see."""

import gc
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from tiny_study import study_dict, write_study

from evals.errors import EvaluationError
from evals.items import Role
from evals.tasks import OpenTask
from search.baselines import parent_recipe
from search.bench import Bench, CheckedStudy, build_bench, check_study
from search.errors import StudyError

OBJECTIVES = [{"task": "tiny_shots"}, {"task": "tiny_generate"}, {"task": "tiny_text"}]


def checked(study_folder: Path, **changes: Any) -> CheckedStudy:
    path = study_folder / "bench.yaml"
    path.write_text(yaml.safe_dump(study_dict(**({"objectives": OBJECTIVES} | changes))))
    return check_study(path)


def texts(checked: CheckedStudy, role: Role) -> set[str]:
    """The queries and texts of a role's documents, before they are sealed."""
    found: set[str] = set()
    for task in checked.tasks:
        for place in task.split.roles[role]:
            number, at = task.places[place]
            document = task.subtasks[number].documents[at]
            found |= {document["query"], document["text"]}
    return found


def reachable(root: object) -> Iterator[object]:
    """Everything that an object holds, however deep; code and what it imports is left out."""
    code = types.ModuleType | types.FunctionType | type
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, code):
            continue
        seen.add(id(one))
        yield one
        waiting += gc.get_referents(one)


def holds(bench: Bench, words: set[str]) -> set[str]:
    held = (one for one in reachable(bench) if isinstance(one, str))
    return {word for text in held for word in words if word in text}


def test_a_bench_for_a_search_holds_no_document_of_the_holdout(study_folder: Path):
    study = checked(study_folder)
    kept, sealed = texts(study, Role.SEARCH), texts(study, Role.HOLDOUT)
    assert len(sealed) > 20
    bench = build_bench(study, (Role.SEARCH, Role.SELECT))
    assert holds(bench, kept) == kept  # so that the search below means something
    assert holds(bench, sealed) == set()
    assert not [one for one in reachable(bench) if isinstance(one, datasets.Dataset)]
    with pytest.raises(EvaluationError, match="the holdout items are sealed"):
        bench.harness.score(Role.HOLDOUT)


def test_a_sealed_task_makes_no_other_items(study_folder: Path):
    study = checked(study_folder)
    build_bench(study, (Role.SEARCH,))
    with pytest.raises(StudyError, match="its documents are sealed; open it again"):
        build_bench(study, (Role.HOLDOUT,))


def test_a_sealed_task_judges_all_the_same(study_folder: Path):
    bench = build_bench(checked(study_folder), (Role.SEARCH,))
    card = bench.harness.score(Role.SEARCH)
    assert [score.n for score in card.scores] == [16, 16, 16]


def test_settings_reach_the_harness(study_folder: Path):
    evaluation = {
        "tasks": ["./tasks"],
        "fewshot_seed": 3,
        "fewshot_draws": "per_item",
        "add_bos_token": True,
        "gen_kwargs": {"max_gen_toks": 5},
        "think_end_token": "|",
        "torch_seed": 9,
    }
    objectives = [
        {"task": {"task": "tiny_shots", "description": "Now: "}, "num_fewshot": 1},
        {"task": "tiny_generate", "gen_kwargs": {"until": "x"}},
    ]
    study = checked(study_folder, evaluation=evaluation, objectives=objectives)
    bench = build_bench(study, (Role.SEARCH,))
    harness = bench.harness
    assert (harness.lm.add_bos_token, harness.lm.think_end_token) == (True, "|")
    assert (harness.settings.fewshot_draws, harness.settings.torch_seed) == ("per_item", 9)
    shots, generate = (b.items[Role.SEARCH][0].requests[0].args for b in harness.benchmarks)
    assert shots[0].startswith("Now: ")
    assert shots[0].count(" is") == 2
    assert generate[1] == {"until": ["x"], "max_gen_toks": 5, "do_sample": False}


def notes(tasks: tuple[OpenTask, ...]) -> list[str]:
    return [note for task in tasks for note in task.notes]


def test_examples_that_are_scored_items_too_are_announced(study_folder: Path, tmp_path: Path):
    task = yaml.safe_load((study_folder / "tasks/tiny_shots.yaml").read_text())
    rows = (study_folder / "data/test.jsonl").read_text().splitlines()
    shown = [row.replace('" ', '"  ').replace(" is", "  IS") for row in rows[:7]]
    (tmp_path / "shown.jsonl").write_text("\n".join(shown) + "\n")
    files = {"test": str(study_folder / "data/test.jsonl"), "train": str(tmp_path / "shown.jsonl")}
    task |= {"task": "tiny_leak", "dataset_kwargs": {"data_files": files}}
    (tmp_path / "tiny_leak.yaml").write_text(yaml.safe_dump(task))
    study = checked(
        study_folder,
        objectives=[{"task": "tiny_leak"}],
        evaluation={"tasks": [str(tmp_path)]},
    )
    assert notes(study.tasks) == [
        "task 'tiny_leak': 7 documents are few-shot examples and are left out"
    ]
    dealt = {at for places in study.tasks[0].split.roles.values() for at in places}
    assert not dealt & set(range(7))


def test_a_merge_that_no_method_takes_is_named_as_the_file_has_it(study_folder: Path):
    """Not as the slices that it would become between copied layers."""
    recipe = {"merge_method": "passthrough", "models": ["a", "b"]}
    with pytest.raises(StudyError) as refused:
        checked(study_folder, recipe=recipe | {"slices": {"origin": ["a", "merge"]}})
    assert refused.value.mistakes == (
        "recipe (passthrough): merge_method 'passthrough' takes exactly 1 model, base_model "
        "included; models has 2: a, b",
    )
    checked(study_folder, recipe=recipe | {"slices": {"origin": ["a", "b"]}})  # merges nothing


@pytest.mark.parametrize("key", ["dtype", "out_dtype"])
def test_a_dtype_may_be_written_as_torch_does(study_folder: Path, key: str):
    found = checked(study_folder, recipe=study_dict()["recipe"] | {key: "torch.float16"})
    assert found.dtype is torch.float16
    assert {step.dtype for step in found.plan(parent_recipe("a")).steps} == {torch.float16}


def test_parents_in_float64_are_merged_in_the_dtype_that_the_study_states(tmp_path: Path):
    path = write_study(tmp_path, study_dict(dtype="float32"), dtype=torch.float64)
    found = check_study(path)
    assert {spec.dtype for spec in found.checkpoints["a"].tensors.values()} == {torch.float64}
    step = found.plan(found.space.decode(found.space.starts()[0])).steps[0]
    assert step.dtype is torch.float32
