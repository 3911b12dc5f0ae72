"""A complete study on disk: tiny parents, local tasks with local data, a study file."""

import json
import random
from pathlib import Path
from typing import Any

import yaml
from tiny_models import write_family

EXAMPLES = 12  # few-shot examples, none of them an item
CHOICES = [" red", " green", " blue", " grey"]


def write_tasks(folder: Path, items: int = 60) -> Path:
    """Write one local lm-eval task of each output type, with its data beside it."""
    generator = random.Random(0)
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "query": f"{word} is",
            "choices": CHOICES,
            "gold": generator.randrange(4),
            "answer": CHOICES[generator.randrange(4)],
            "text": f"{word} and {generator.randrange(1000)}",
        }
        for word in _words(generator, items + EXAMPLES)
    ]
    for name, part in (("test", rows[:items]), ("train", rows[items:])):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    tasks = folder / "tasks"
    tasks.mkdir(exist_ok=True)
    for task in _tasks():
        (tasks / f"{task['task']}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    return tasks


def study_dict(**changes: Any) -> dict[str, Any]:
    """A valid study over `models/base`, `models/a` and `models/b`."""
    study = {
        "name": "tiny",
        "models": {name: f"./models/{name}" for name in ("base", "a", "b")},
        "recipe": {
            "merge_method": "task_arithmetic",
            "base_model": "base",
            "models": [
                {"model": "a", "parameters": {"weight": {"range": [0.0, 1.5]}}},
                {"model": "b", "parameters": {"weight": {"range": [0.0, 1.5]}}},
            ],
        },
        "objectives": [{"task": "tiny_choice", "metric": "acc"}],
        "items": {"search": 16, "select": 8, "holdout": 16},
        "search": {"sampler": "random", "trials": 6, "finalists": 3},
        "evaluation": {"tasks": ["./tasks"], "batch_size": 16},
        "device": "cpu",
    }
    return study | changes


def write_study(folder: Path, study: dict[str, Any] | None = None, **options: Any) -> Path:
    """Write parents, tasks and study file; returns the study file."""
    if not (folder / "models").exists():
        write_family(folder / "models", **options)
        write_tasks(folder)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study or study_dict(), sort_keys=False))
    return path


def _words(generator: random.Random, count: int) -> list[str]:
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(generator.choice("abcdefgh") for _ in range(6))] = None
    return list(words)


def _tasks() -> list[dict[str, Any]]:
    files = {"test": "../data/test.jsonl", "train": "../data/train.jsonl"}
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "doc_to_text": "{{query}}",
        "target_delimiter": "",
        "metadata": {"version": 1.0},
    }
    mean = {"aggregation": "mean", "higher_is_better": True}
    return [
        {"task": "tiny_choice", **common}
        | {
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": [{"metric": "acc", **mean}, {"metric": "acc_norm", **mean}],
        },
        {"task": "tiny_exact", **common}
        | {
            "output_type": "loglikelihood",
            "doc_to_target": "{{answer}}",
            "metric_list": [
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                {"metric": "acc", **mean},
            ],
        },
        {"task": "tiny_text", **common}
        | {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [
                {
                    "metric": "bits_per_byte",
                    "aggregation": "bits_per_byte",
                    "higher_is_better": False,
                }
            ],
        },
        {"task": "tiny_generate", **common}
        | {
            "output_type": "generate_until",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
            "metric_list": [{"metric": "exact_match", **mean}],
        },
        {"task": "tiny_shots", **common}
        | {
            "output_type": "multiple_choice",
            "training_split": "train",
            "fewshot_split": "train",
            "num_fewshot": 2,
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": [{"metric": "acc", **mean}],
        },
    ]
