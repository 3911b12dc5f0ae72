"""What `outcross merge` does, apart from parsing its arguments; imports nothing that evaluates."""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console

from merge_core.memory import memory
from merge_core.plan import describe
from search.devices import find_device
from search.errors import StudyError
from search.merging import Job, MergeOptions, merge_file, plan_file
from search.placing import misplaced
from search.sizes import size

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def merge_recipe(
    path: Path,
    folder: Path | None,
    console: Console,
    options: MergeOptions,
    *,
    dry_run: bool,
    verbose: bool = False,
) -> None:
    """Merge a recipe file whose models are paths or hub ids.

    Args:
        path: A mergekit recipe, of one or several documents.
        folder: Where to write; not needed for a dry run.
        console: For messages.
        options: How to merge.
        dry_run: Only say what would be done.
        verbose: Say it tensor by tensor.
    """
    jobs = plan_file(path, options.seed)
    for job in jobs:
        _print_job(console, job, options.device, verbose=dry_run and verbose)
    if dry_run:
        return
    if folder is None:
        raise StudyError(["give the folder to write to, or --dry-run"], "outcross merge")
    merge_file(path, jobs, folder, options)
    console.print(f"Wrote {folder}.", highlight=False, markup=False)


def merge_options(seed: int, device: str, shard_size: str, stages: Path | None) -> MergeOptions:
    """The options of `outcross merge` as they are typed.

    Raises:
        StudyError: If a device or a size can't be read.
    """
    return MergeOptions(seed, _merge_device(device), _bytes(shard_size), stages)


def _print_job(console: Console, job: Job, device: torch.device, *, verbose: bool) -> None:
    """What merging one document reads, needs and writes; with `verbose` tensor by tensor."""
    console.print(f"{job.stage.name or 'result'}:", style="bold", highlight=False, markup=False)
    for label, text in _facts(job, device):
        console.print(f"  {label:<16}{text}", highlight=False, markup=False, soft_wrap=True)
    for warning in dict.fromkeys(_warnings(job)):
        console.print(f"Warning: {warning}", highlight=False, markup=False, soft_wrap=True)
    if verbose:
        console.print(describe(job.plan), soft_wrap=True, highlight=False, markup=False)


def _warnings(job: Job) -> Iterator[str]:
    yield from job.warnings
    if (moved := misplaced(job.plan, job.aligned.checkpoints)) is not None:
        yield moved


def _facts(job: Job, device: torch.device) -> Iterator[tuple[str, str]]:
    plan, models = job.plan, job.aligned.checkpoints
    largest = max(plan.steps, key=lambda step: torch.Size(step.shape).numel())
    used = [models[name] for name in job.stage.recipe.models]
    need = memory(plan, models, device)
    yield "method", job.stage.recipe.method
    yield "models", ", ".join(f"{model.name} ({size(model.bytes)})" for model in used)
    yield "output", f"{len(plan.steps)} tensors, {plan.depth} layers, {size(plan.bytes_out)}"
    dtype = str(largest.dtype).removeprefix("torch.")
    yield "largest tensor", f"{largest.out} {largest.shape} {dtype}"
    yield (
        "memory",
        f"about {size(need.anonymous)} of its own on {device}, beside Python and torch; "
        f"{size(need.mapped)} of model files are mapped and can be dropped at any time",
    )


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(kB|MB|GB|TB|B)?", text.strip(), re.IGNORECASE)
    if found is None or not (count := float(found[1]) * _UNITS[(found[2] or "B").upper()]) >= 1:
        raise StudyError([f"--shard-size: expected a size such as 5GB, got '{text}'"], "merge")
    return int(count)


def _merge_device(word: str) -> torch.device:
    mistakes: list[str] = []
    target = find_device(word, mistakes)
    if mistakes:
        raise StudyError(mistakes, "outcross merge")
    return target
