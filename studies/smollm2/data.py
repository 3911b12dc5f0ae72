"""Writes the items as JSON lines and local lm-eval tasks, with a note on where they come from."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from studies.smollm2.items import Answer, Choice, Split

TASKS = ("kinds", "sums", "facts")
_NOTE = """# Data of the smollm2 study

`kinds.jsonl`, `kinds.train.jsonl`: made from WordNet 3.0, Copyright 2006 by Princeton University,
free for any use under its licence (`../sources/wordnet/LICENSE.txt`).
`sums.train.jsonl`: generated.
`sums.jsonl`, `facts.jsonl`: items of BIG-bench (Apache-2.0), only to be scored. Its files say:

{canaries}
"""


def write_data(splits: dict[str, Split], bigbench: Path, out: Path) -> None:
    """Writes `<task>.jsonl`, `<task>.train.jsonl` and the note to the new folder `out`."""
    out.mkdir()
    for name, split in splits.items():
        _write_lines(out / f"{name}.jsonl", split.test)
        if split.train:
            _write_lines(out / f"{name}.train.jsonl", split.train)
    files = sorted(bigbench.glob("*.json"))
    canaries = dict.fromkeys(json.loads(path.read_text("utf-8"))["canary"] for path in files)
    (out / "README.md").write_text(_NOTE.format(canaries="\n".join(canaries)), "utf-8")


def write_tasks(out: Path) -> None:
    """Writes `<task>.yaml` to the new folder `out`; the data lie in the folder `data` beside it."""
    out.mkdir()
    for name in TASKS:
        text = yaml.safe_dump(task_config(name), sort_keys=False)
        (out / f"{name}.yaml").write_text(text, "utf-8")


def task_config(name: str) -> dict[str, Any]:
    """Returns the lm-eval task; one forward pass per item, as no option is longer than a token."""
    # lm-eval puts the delimiter before options, but not before the target of a log-likelihood.
    greedy = {"output_type": "loglikelihood", "doc_to_target": " {{answer}}"}
    choice = {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": " ",
    }
    return {
        "task": f"smollm2_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"../data/{name}.jsonl"}},
        "test_split": "test",
        "doc_to_text": "{{query}}",
        **(greedy if name == "sums" else choice),
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }


def _write_lines(path: Path, items: Iterable[Choice | Answer]) -> None:
    path.write_text("".join(json.dumps(asdict(item)) + "\n" for item in items), "utf-8")
