"""Local lm-eval tasks whose prompts have the lengths that the evaluation benchmark asks for."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SHOTS = 5
LETTERS = ["A", "B", "C", "D"]
_TEXT = """the river winter stone market garden letter window morning bridge silver captain
history forest evening shoulder kitchen weather journey engine village mountain paper harbour
question answer number colour animal music summer doctor teacher island corner minute"""
_WORDS = _TEXT.split()


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of benchmark.

    Attributes:
        name: Of the task.
        what: What it stands for.
        wanted: How many times quicker than lm-eval it is meant to be.
        words: In an item's question.
        letters: Whether the options are single letters.
        shots: Few-shot examples.
        fixed: Whether all items have the same ones.
        output: lm-eval's output type.
    """

    name: str
    what: str
    wanted: float
    words: int
    letters: bool = False
    shots: int = 0
    fixed: bool = False
    output: str = "multiple_choice"


CASES = (
    Case("phrases_header", "phrases, one 5-shot header", 12, 110, shots=SHOTS, fixed=True),
    Case("letters_header", "letters, one 5-shot header", 3.5, 110, True, SHOTS, True),
    Case("phrases_shots", "phrases, 5 shots per item", 4, 100, shots=SHOTS),
    Case("phrases_alone", "phrases, 0-shot, 100 tokens", 2.5, 90),
    Case("letters_shots", "letters, 5 shots per item", 1, 100, True, SHOTS),
    Case("letters_alone", "letters, 0-shot", 1, 40, True),
    Case("rolling", "rolling, 300 tokens", 1, 280, output="loglikelihood_rolling"),
    Case("generation", "generation, 16 tokens", 1, 40, output="generate_until"),
)


def write_cases(folder: Path, items: int) -> Path:
    """Write data and tasks; returns the tasks' folder."""
    tasks = folder / "tasks"
    tasks.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        generator = random.Random(case.name)
        files: dict[str, str] = {}
        for split, count in (("test", items), ("train", 40)):
            path = folder / f"{case.name}.{split}.jsonl"
            rows = [_row(generator, case, number) for number in range(count)]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            files[split] = str(path)
        (tasks / f"{case.name}.yaml").write_text(yaml.safe_dump(_task(case, files)))
    return tasks


def _row(generator: random.Random, case: Case, number: int) -> dict[str, Any]:
    options = [" ".join(generator.choices(_WORDS, k=8)) for _ in LETTERS]
    question = f"{number}: {' '.join(generator.choices(_WORDS, k=case.words))}?"
    if case.letters:
        listed = "".join(f"\n{a}. {b}" for a, b in zip(LETTERS, options, strict=True))
        question, options = question + listed, LETTERS
    return {"question": question, "options": options, "gold": generator.randrange(4)}


def _task(case: Case, files: dict[str, str]) -> dict[str, Any]:
    task: dict[str, Any] = {
        "task": case.name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "training_split": "train",
        "fewshot_split": "train",
        "num_fewshot": case.shots,
        "output_type": case.output,
        "doc_to_text": "Question: {{question}}\nAnswer:",
    }
    if case.fixed:
        task["fewshot_config"] = {"sampler": "first_n"}
    mean = {"aggregation": "mean", "higher_is_better": True}
    match case.output:
        case "multiple_choice":
            task |= {"doc_to_choice": "options", "doc_to_target": "gold"}
            task["metric_list"] = [{"metric": name, **mean} for name in ("acc", "acc_norm")]
        case "generate_until":
            task |= {"doc_to_target": "{{options[gold]}}"}
            task["generation_kwargs"] = {"until": ["\n\n"], "max_gen_toks": 16, "do_sample": False}
            task["metric_list"] = [{"metric": "exact_match", **mean}]
        case _:
            task |= {"doc_to_text": "", "doc_to_target": "{{question}}"}
            bits = {"aggregation": "bits_per_byte", "higher_is_better": False}
            task["metric_list"] = [{"metric": "bits_per_byte", **bits}]
    return task
