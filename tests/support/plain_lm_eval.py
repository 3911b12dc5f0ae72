"""lm-eval as anybody would call it: the plain stack that ours is held against."""

import contextlib
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from evals.resident import Resident


def plain_model(resident: Resident, **arguments: Any) -> HFLM:
    """lm-eval's own model around the live one, with its own defaults but for the softmax."""
    options = {"batch_size": 8, "softmax_dtype": "float32"} | arguments
    return HFLM(pretrained=resident.model, tokenizer=resident.tokenizer, **options)


def plain_results(
    resident: Resident, tasks: Path, name: str | dict, model: Any = None, **arguments: Any
) -> dict[str, Any]:
    """`simple_evaluate` of one local task or group."""
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    # What it notes about the machine takes a second and changes no score.
    with contextlib.chdir(tasks), patch("lm_eval.evaluator.add_env_info"):
        found = simple_evaluate(
            model or plain_model(resident),
            tasks=[name],
            task_manager=manager,
            bootstrap_iters=0,
            verbosity=None,
            **arguments,
        )
    assert found is not None
    return found


def plain_prompts(found: dict[str, Any], name: str) -> dict[str, str]:
    """What each document was asked with: query → the first request's context."""
    return {s["doc"]["query"]: s["arguments"][0][0] for s in found["samples"][name]}
