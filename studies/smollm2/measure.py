"""Scores the parents and the merges that need no search, for the table of the README.

Run as `python -m studies.smollm2.measure FOLDER [ITEMS]`; it scores the first items of each task.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.evaluator  # pyright: ignore[reportMissingTypeStubs]
import torch
import yaml
from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingTypeStubs]
from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from studies.smollm2.data import TASKS
from studies.smollm2.loading import load_model, load_tokenizer

# Weights of the task vectors of `words` and `sums`: base, parents, average, and a sweep.
POINTS = (
    (0.0, 0.0),
    (1.0, 0.0),
    (0.0, 1.0),
    (0.5, 0.5),
    (0.7, 0.7),
    (1.0, 1.0),
    (1.3, 1.3),
    (0.5, 1.0),
    (1.0, 0.5),
)
_evaluator: Any = lm_eval.evaluator


@dataclass(frozen=True, slots=True)
class Family:
    """The base weights and the task vectors of the siblings, all in fp32.

    Attributes:
        base: tensor name -> weights.
        vectors: one mapping per sibling: tensor name -> sibling minus base.
    """

    base: dict[str, Tensor]
    vectors: tuple[dict[str, Tensor], ...]


def measure(folder: Path, items: int) -> None:
    """Prints one line of a Markdown table per point of `POINTS`."""
    torch.set_num_threads(1)
    family = load_family(folder / "models")
    model = load_model(folder / "models" / "base", torch.bfloat16)
    scorer = _scorer(model, load_tokenizer(folder / "models" / "base"))
    tasks = _load_tasks(folder / "tasks")
    print(f"| words, sums | {' | '.join(TASKS)} | mean | seconds |\n|{'---|' * (len(TASKS) + 3)}")
    for point in POINTS:
        put(model, family, point)
        start = time.process_time()
        scores = score(scorer, tasks, items)
        cells = [f"{scores[name]:.3f}" for name in TASKS]
        mean = sum(scores.values()) / len(scores)
        spent = time.process_time() - start
        name = ", ".join(map(str, point))
        print(f"| {name} | {' | '.join(cells)} | {mean:.3f} | {spent:.0f} |", flush=True)


def load_family(models: Path) -> Family:
    """Reads the base and the siblings; prints how long and how parallel the task vectors are."""
    base, words, sums = (_weights(models / name) for name in ("base", "words", "sums"))
    vectors = tuple({name: other[name] - base[name] for name in base} for other in (words, sums))
    lengths = [_dot(v, v) ** 0.5 / _dot(base, base) ** 0.5 for v in vectors]
    cosine = _dot(*vectors) / (_dot(vectors[0], vectors[0]) * _dot(vectors[1], vectors[1])) ** 0.5
    print(f"task vectors: {lengths[0]:.4f} and {lengths[1]:.4f} of the base, cosine {cosine:.3f}")
    return Family(base, vectors)


def put(model: Any, family: Family, weights: Sequence[float]) -> None:
    """Writes base + sum of weight times task vector (Ilharco et al., 2023) into the live model."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            merged = family.base[name].clone()
            for weight, vector in zip(weights, family.vectors, strict=True):
                merged.add_(vector[name], alpha=weight)
            parameter.copy_(merged)


def score(scorer: Any, tasks: Any, items: int) -> dict[str, float]:
    """Returns task -> accuracy on its first `items` items."""
    results = _evaluator.evaluate(scorer, tasks, limit=items, bootstrap_iters=0, log_samples=False)[
        "results"
    ]
    return {name: float(results[f"smollm2_{name}"]["acc,none"]) for name in TASKS}


def _scorer(model: Any, tokenizer: Any) -> Any:
    untyped: Any = HFLM
    # Log-likelihoods in bfloat16 fall on a coarse grid, where options tie.
    return untyped(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=32,
        max_length=512,
        device="cpu",
        softmax_dtype=torch.float32,
    )


def _load_tasks(folder: Path) -> Any:
    """Loads the tasks with the data paths made absolute, as lm-eval reads them from the cwd."""
    manager: Any = TaskManager(include_defaults=False)
    return manager.load([_absolute(folder / f"{name}.yaml") for name in TASKS])


def _absolute(path: Path) -> dict[str, Any]:
    config = yaml.safe_load(path.read_text("utf-8"))
    files = config["dataset_kwargs"]["data_files"]
    files["test"] = str((path.parent / files["test"]).resolve())
    return config


def _weights(folder: Path) -> dict[str, Tensor]:
    return dict(load_model(folder, torch.float32).named_parameters())


def _dot(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    return sum(float((first[name] * second[name]).sum(dtype=torch.float64)) for name in first)


if __name__ == "__main__":
    with torch.no_grad():
        measure(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 500)
