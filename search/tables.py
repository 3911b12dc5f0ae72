"""Results as tables for the terminal: numbers as they fall."""

from collections.abc import Iterator

import torch
from rich.console import Console
from rich.table import Table

from evals.compare import Comparison
from evals.scorecard import Scorecard
from merge_core.memory import memory
from merge_core.plan import describe
from search.finals import WINNER, Claim, Finalist
from search.merging import Job
from search.writing import size

_COLOURS = {"better": "green", "worse": "red"}


def print_finalists(console: Console, finalists: tuple[Finalist, ...]) -> None:
    """The best trials by search and select items together; the first is the winner."""
    table = Table(title="Finalists", title_justify="left")
    for name in ("trial", "method", "search items", "search + select"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for finalist in finalists:
        record = finalist.record
        value = "" if record.value is None else f"{record.value:.4f}"
        table.add_row(str(record.number), record.recipe.method, value, f"{finalist.pooled:.4f}")
    console.print(table)


def print_claim(console: Console, claim: Claim) -> None:
    """The winner against every reference on the holdout."""
    scores = claim.cards[WINNER].scores
    items = sum(score.n for score in scores)
    table = Table(title=f"Holdout: {items} items that no search has seen", title_justify="left")
    table.add_column("model")
    for score in scores:
        table.add_column(f"{score.task}\n{score.metric.removesuffix(',none')}", justify="right")
    for name in ("mean", "winner's gain", "95% interval", "p (Holm)", "winner is"):
        table.add_column(name, justify="left" if name == "winner is" else "right")
    winner = f"{WINNER} (trial {claim.trial})"
    table.add_row(*_cells(winner, claim.cards[WINNER], claim.values[WINNER]))
    for c in claim.comparisons:
        cells = _cells(c.reference, claim.cards[c.reference], claim.values[c.reference])
        table.add_row(*cells, *_comparison_cells(c))
    console.print(table)
    search, select, holdout = claim.path
    console.print(
        f"The winner's mean on search items {search:.4f}, on select items {select:.4f}, on the "
        f"holdout {holdout:.4f}. The holdout was read {_times(len(claim.looks))} for this study.",
        highlight=False,
    )
    console.print(conclusion(claim), highlight=False)


def conclusion(claim: Claim) -> str:
    """What may be said, in one sentence."""
    words = {
        "better": "is better than",
        "not distinguishable": "can't be told from",
        "worse": "is worse than",
    }
    parts: list[str] = []
    for verdict, phrase in words.items():
        if names := [c.reference for c in claim.comparisons if c.verdict == verdict]:
            parts.append(f"{phrase} {', '.join(names)}")
    return f"The winner {'; it '.join(parts)}."


def _cells(name: str, card: Scorecard, mean: float) -> list[str]:
    return [name, *(f"{score.value:.3f}" for score in card.scores), f"{mean:.4f}"]


def _comparison_cells(c: Comparison) -> list[str]:
    colour = _COLOURS.get(c.verdict)
    verdict = f"[{colour}]{c.verdict}[/]" if colour else c.verdict
    interval = f"[{c.gain.low:+.4f}, {c.gain.high:+.4f}]"
    return [f"{c.gain.value:+.4f}", interval.replace("[", "\\["), f"{c.p:.2g}", verdict]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


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
