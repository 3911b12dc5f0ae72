"""Results as tables for the terminal: numbers as they fall."""

from collections.abc import Iterator

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from merge_core.memory import memory
from merge_core.plan import describe
from search.finals import Finalist
from search.merging import Job
from search.writing import size


def print_finalists(console: Console, finalists: tuple[Finalist, ...]) -> None:
    """The best trials by search and select items together; the first is the winner."""
    table = Table(title="Finalists", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in ("trial", "method", "search items", "shrunk", "select items", "search + select"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for finalist in finalists:
        record = finalist.record
        figures = (record.value or 0.0, finalist.shrunk, finalist.chosen, finalist.pooled)
        cells = (f"{figure:.4f}" for figure in figures)
        table.add_row(str(record.number), record.recipe.method, *cells)
    console.print(table)
    console.print(
        "Shrunk: what the search score is worth, since the best of many is also the luckiest.",
        highlight=False,
    )


def print_job(console: Console, job: Job, device: torch.device, *, verbose: bool) -> None:
    """What merging one document reads, needs and writes; with `verbose` tensor by tensor."""
    console.print(f"{job.stage.name or 'result'}:", style="bold", highlight=False)
    for label, text in _facts(job, device):
        console.print(f"  {label:<16}{text}", highlight=False, markup=False, soft_wrap=True)
    for warning in dict.fromkeys((*job.aligned.warnings, *job.plan.warnings)):
        console.print(f"Warning: {warning}", highlight=False, markup=False, soft_wrap=True)
    if verbose:
        console.print(describe(job.plan), soft_wrap=True, highlight=False, markup=False)


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
