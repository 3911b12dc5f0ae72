"""What a study will do and what its items can show, before anything is spent."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evals.items import Role
from evals.objective import item_scores, objective
from evals.power import independent_items, items_to_show, multiple, smallest_gain
from evals.tasks import OpenTask
from search.baselines import baselines, parents
from search.bench import CheckedStudy, deepest
from search.chain import stored_study
from search.config import ObjectiveConfig
from search.idle import idle_warning
from search.layouts import Layout
from search.record import card_from_dict, readings_from_dict, samplers_of
from search.samplers import Used
from search.sizes import counted, size
from search.space import Choice, Dimension, Real, Share, Whole, holes

DISCORDANCES = (0.05, 0.10, 0.20)
_TWO_POINTS = 0.02


@dataclass(frozen=True, slots=True)
class Reach:
    """What the holdout can show if two models differ on a share of its items.

    Attributes:
        discordance: That share; a measured one is the weighted mean of the benchmarks'.
        mean: The smallest gain of the weighted mean that shows with 80% power.
        tasks: The same for each benchmark alone.
        needed: Holdout items of each benchmark that a gain of two points in the mean would need.
        measured: Between which two models the share was measured; None for an assumption.
    """

    discordance: float
    mean: float
    tasks: tuple[float, ...]
    needed: int
    measured: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Discordance:
    """Where two models of a study were seen to differ.

    Attributes:
        pair: A merge that needs no search, as the winner is a merge, and the best parent.
        shares: Of the search items of each benchmark; of graded scores the mean square of the
            difference.
    """

    pair: tuple[str, str]
    shares: tuple[float, ...]


def reach(checked: CheckedStudy) -> tuple[Reach, ...]:
    """What the study's holdout can show; its items are counted, no score on them is read.

    With the discordances that were measured where the study has scored its baselines, else for
    usual ones.
    """
    weights = [task.weight for task in checked.tasks]
    found = discordance(checked)
    if found is None:
        return tuple(_reach(checked, q, [q] * len(weights)) for q in DISCORDANCES)
    mean = float(np.average(found.shares, weights=weights))
    return (replace(_reach(checked, mean, found.shares), measured=found.pair),)


def discordance(checked: CheckedStudy) -> Discordance | None:
    """What the stored scores of parents and plain merges tell; None where there are none."""
    study = stored_study(checked.storage, checked.folder, checked.config.name)
    if study is None:
        return None
    stored: dict[str, Any] = study.user_attrs.get("baselines", {})
    names = parents(checked.space)
    if any(name not in stored for name in names) or len(stored) < 2:
        return None
    readings = readings_from_dict(study)
    if [one.name for one in readings] != [task.name for task in checked.tasks]:
        return None  # the file has changed since
    cards = {name: card_from_dict(card) for name, card in stored.items()}
    values = {name: objective([card], readings) for name, card in cards.items()}
    best = max(names, key=lambda name: values[name])
    others = [name for name in cards if name not in names] or [n for n in cards if n != best]
    other = max(others, key=lambda name: values[name])
    pairs = zip(
        item_scores(cards[other], readings), item_scores(cards[best], readings), strict=True
    )
    shares = tuple(float(np.mean((one - two) ** 2)) for one, two in pairs)
    # Two models that agree on all items so far will differ on some: as if on the next.
    least = [1 / (1 + score.n) for score in cards[best].scores]
    return Discordance((other, best), tuple(map(max, shares, least)))


def _reach(checked: CheckedStudy, mean: float, shares: Sequence[float]) -> Reach:
    independent = _independent(checked)
    weights = [task.weight for task in checked.tasks]
    held = [len(task.split.roles[Role.HOLDOUT]) for task in checked.tasks]
    worth = [n / items for n, items in zip(independent, held, strict=True)]
    return Reach(
        mean,
        smallest_gain(independent, weights, shares),
        tuple(smallest_gain([n], [1.0], q) for n, q in zip(independent, shares, strict=True)),
        items_to_show(_TWO_POINTS, worth, weights, shares),
    )


def print_outlook(console: Console, checked: CheckedStudy) -> None:
    """Everything that is known of a study before its first trial."""
    study = stored_study(checked.storage, checked.folder, checked.config.name)
    used = () if study is None else samplers_of(study)
    for label, text in _facts(checked, used):
        console.print(f"{label:<12}{text}", highlight=False, markup=False, soft_wrap=True)
    idle = idle_warning(checked, checked.config.ray, used=used)
    for warning in (*checked.warnings, *([idle] if idle else ())):
        console.print(f"Warning: {warning}", highlight=False, markup=False, soft_wrap=True)
    _print_dimensions(console, checked)
    _print_items(console, checked)
    _print_without_items(console, checked)
    _print_reach(console, checked)


def announcement(checked: CheckedStudy) -> str:
    """What a search is about to do, in one line; who proposes is told by `proposing`."""
    space = checked.space
    return (
        f"Study '{checked.config.name}': {counted(len(space.dimensions), 'dimension')}, "
        f"{', '.join(space.methods)}; {_items_text(checked.tasks)}; "
        f"{str(checked.dtype).removeprefix('torch.')} on {checked.device}"
    )


def proposing(checked: CheckedStudy, used: Used) -> str:
    """Who proposes and why, which only the stored study can tell.

    Args:
        checked: The study file.
        used: What proposed so far.
    """
    word, reason = checked.sampler(used)
    return f"Sampler {word} ({reason}), {checked.config.search.trials:,} trials in all"


def _items_text(tasks: Sequence[OpenTask]) -> str:
    """How many search items there are: of rests and whole clusters each benchmark has its own."""
    counts = [len(task.split.roles[Role.SEARCH]) for task in tasks]
    low, high = min(counts), max(counts)
    if len(counts) == 1:
        return f"1 benchmark with {low:,} search items"
    each = f"{low:,} search items each" if low == high else f"{low:,} to {high:,} search items each"
    return f"{len(counts)} benchmarks with {each}"


def _facts(checked: CheckedStudy, used: Used) -> Iterator[tuple[str, str]]:
    config, space = checked.config, checked.space
    plan = deepest(checked)
    word, reason = checked.sampler(used)
    yield "study", f"{config.name}, in {checked.storage}"
    for alias, parent in checked.checkpoints.items():
        layers = f"{parent.layout.depth} layers, {size(parent.bytes)}"
        yield "model", f"{alias}: {config.models[alias]} ({layers})"
    yield "methods", ", ".join(space.methods)
    for node in holes(space.template):
        if isinstance(node, Layout):
            yield "layers", node.told()
    yield "sampler", f"{word} ({reason}); {config.search.trials} trials"
    dtype = str(checked.dtype).removeprefix("torch.")
    parents = sum(parent.bytes for parent in checked.checkpoints.values())
    held = "mapped from their files" if checked.device.type == "cpu" else f"on {checked.device}"
    yield (
        "memory",
        f"{size(plan.bytes_out)} for the live model ({dtype} on {checked.device}), "
        f"{size(parents)} of parents {held}, and what a batch of "
        f"{config.evaluation.batch_size} needs",
    )


def _print_dimensions(console: Console, checked: CheckedStudy) -> None:
    dimensions = checked.space.dimensions
    shares = {
        d.name
        for node in holes(checked.space.template)
        if isinstance(node, Share)
        for d in node.dimensions
    }
    table = _table(counted(len(dimensions), "dimension"))
    for name in ("dimension", "values", "scale", "start", "exists if"):
        table.add_column(name)
    for dimension in dimensions:
        share = dimension.name in shares
        cells = (dimension.name, _values(dimension), _scale(dimension, share=share))
        table.add_row(*map(escape, (*cells, _start(dimension, share=share), _under(dimension))))
    console.print(table)


def _values(dimension: Dimension) -> str:
    if isinstance(dimension, Choice):
        return ", ".join(map(str, dimension.options))
    prior = dimension.prior if isinstance(dimension, Real) else None
    low, high = (prior.low, prior.high) if prior else (dimension.low, dimension.high)
    return f"{low:g} to {high:g}"


def _scale(dimension: Dimension, *, share: bool) -> str:
    """How coordinates become values."""
    if isinstance(dimension, Choice):
        return "choice"
    if isinstance(dimension, Real) and (prior := dimension.prior):
        return f"prior {prior.mean:g}, sd {prior.sd:g}"
    scale = "share of what is left" if share else "logarithm" if dimension.log else "linear"
    return f"whole, {scale}" if isinstance(dimension, Whole) else scale


def _start(dimension: Dimension, *, share: bool) -> str:
    """What the study says, as a value; every parent's weight is the same on a simplex."""
    if share:
        return "equal weights"
    if dimension.start is None:
        return "-"
    if isinstance(dimension, Choice):
        return str(dimension.start)
    return f"{dimension.value(dimension.start):g}"


def _under(dimension: Dimension) -> str:
    words = (f"{name}: {' or '.join(map(str, allowed))}" for name, allowed in dimension.under)
    return ", ".join(words) or "always"


def _print_items(console: Console, checked: CheckedStudy) -> None:
    table = _table("Items by role")
    for name in ("task", "metric"):
        table.add_column(name)
    for name in ("weight", *Role, "not used", "holdout clusters"):
        table.add_column(str(name), justify="right")
    objectives, clusters = checked.config.benchmarks, checked.clusters(Role.HOLDOUT)
    limited = any(one.limit is not None for one in objectives)
    if limited:
        table.add_column("limit")
    for one, task, cluster in zip(objectives, checked.tasks, clusters, strict=True):
        counts = [len(task.split.roles[role]) for role in Role]
        table.add_row(
            escape(task.name),
            escape(task.metric.removesuffix(",none")),
            f"{task.weight:g}",
            *(f"{count:,}" for count in counts),
            f"{len(task.places) - sum(counts):,}",
            "-" if cluster is None else f"{len(np.unique(cluster)):,}",
            *((_limit(one, rises=task.higher_is_better),) if limited else ()),
        )
    console.print(table)


def _print_without_items(console: Console, checked: CheckedStudy) -> None:
    """What a model is and what a user's function says of it."""
    found = [one for one in checked.config.objectives if not one.has_items]
    if not found:
        return
    table = _table("Objectives without items")
    for name in ("objective", "better", "counts", "limit"):
        table.add_column(name)
    for one in found:
        better = "higher" if one.rises else "lower"
        cells = (one.name, better, _counts(checked, one), _limit(one, rises=one.rises))
        table.add_row(*map(escape, cells))
    console.print(table)


def _counts(checked: CheckedStudy, one: ObjectiveConfig) -> str:
    """What an objective without items is to the search."""
    if not one.maximized:
        return "as a limit"
    parts = ["a value of the front"] if checked.config.search.goal == "pareto" else []
    parts += [f"weight {one.weight:g} in the mean"] if one.kind == "function" else []
    return ", ".join(parts)


def _limit(one: ObjectiveConfig, *, rises: bool) -> str:
    """What a candidate has to keep to."""
    limit = one.limit
    if limit is None:
        return "-"
    if not isinstance(limit, dict):
        return f"{'at least' if rises else 'at most'} {limit:,.12g}"
    slack = limit["parents"]
    return f"{f'at most {slack:g}' if slack else 'no'} worse than the best parent"


def _print_reach(console: Console, checked: CheckedStudy) -> None:
    """The smallest gains, and the items that two points need."""
    table = _table("Smallest gain that the holdout shows with 80% power, in points of accuracy")
    table.add_column("if two models differ on")
    for name in ("mean of all tasks", "one task alone", "items per task for two points"):
        table.add_column(name, justify="right")
    for found in reach(checked):
        low, high = 100 * min(found.tasks), 100 * max(found.tasks)
        alone = f"{low:.1f}" if high - low < 0.05 else f"{low:.1f} to {high:.1f}"
        share = f"{found.discordance:.0%} of the items"
        table.add_row(share, f"{100 * found.mean:.1f}", alone, f"{found.needed:,}")
    console.print(table)
    console.print(_source(checked), highlight=False, markup=False)
    count = len(baselines(checked.space))
    console.print(
        f"For one comparison; compare makes {count}, and in the worst case Holm's correction "
        f"raises each gain {multiple(count) / multiple():.2f}-fold.",
        highlight=False,
    )


def _source(checked: CheckedStudy) -> str:
    """Where the shares of the table come from."""
    found = discordance(checked)
    if found is None:
        return "These shares are assumed; when the study has scored its parents, theirs are used."
    parts = zip(checked.tasks, found.shares, strict=True)
    each = ", ".join(f"{task.name} {share:.1%}" for task, share in parts)
    other, best = found.pair
    return f"Measured on the search items, between {other} and {best}, the best parent: {each}."


def _independent(checked: CheckedStudy) -> list[float]:
    """How many independent items each benchmark's holdout is worth."""
    found: list[float] = []
    for task, cluster in zip(checked.tasks, checked.clusters(Role.HOLDOUT), strict=True):
        n = len(task.split.roles[Role.HOLDOUT])
        found.append(float(n) if cluster is None else independent_items(n, len(np.unique(cluster))))
    return found


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
