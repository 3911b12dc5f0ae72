"""What a comparison found, as tables and sentences for the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evals.compare import BETTER, EQUIVALENT, TOO_FEW, WORSE, Comparison, Verdicts, in_points
from evals.flips import Flip
from evals.floors import BROKEN, KEPT, UNTOLD
from evals.scorecard import Scorecard
from search.finals import WINNER, Claim, Path

_COLOURS = {BETTER: "green", WORSE: "red", EQUIVALENT: "cyan", TOO_FEW: "yellow"}
_MARKS = {BETTER: "▲", WORSE: "▼", EQUIVALENT: "=", TOO_FEW: "?"}
_VERDICTS = {KEPT: BETTER, BROKEN: WORSE, UNTOLD: TOO_FEW}
_LONG_NAME = 12


def print_claim(console: Console, claim: Claim, flips: Sequence[Flip], examples: int) -> None:
    """The winner against every reference on the holdout.

    Args:
        console: Where to print.
        claim: What was found.
        flips: Items on which the winner differs from the best parent.
        examples: How many of either kind to show.
    """
    items = sum(score.n for score in claim.cards[WINNER].scores)
    title = f"Holdout: {items:,} items that no search has seen"
    print_scores(console, title, claim.cards, claim.values)
    print_verdicts(console, claim.cards, claim.verdicts)
    _say(console, conclusion(claim.verdicts, WINNER, "The winner"))
    chance = _chance_text(claim.verdicts.chances[WINNER])
    _say(console, f"The probability that it is better than the best parent is {chance}.")
    print_rooms(console, claim)
    unit = _Unit(in_points(claim.cards.values()))
    _say(console, *_path_lines(claim.trial, claim.path, unit))
    print_flips(console, "the winner", claim.path.rival, flips, examples)
    _say(console, f"The holdout was read {_times(len(claim.looks))} for this study.")


def print_scores(
    console: Console, title: str, cards: Mapping[str, Scorecard], values: Mapping[str, float]
) -> None:
    """Each model's score on each benchmark, and the weighted mean."""
    table = _table(title)
    table.add_column("model")
    for score in next(iter(cards.values())).scores:
        metric = escape(score.metric.removesuffix(",none"))
        table.add_column(f"{_stacked(score.task)}\n{metric}", justify="right", vertical="bottom")
    table.add_column("mean", justify="right", vertical="bottom")
    for name, card in cards.items():
        style = "bold" if name == WINNER else None
        cells = (f"{score.value:.3f}" for score in card.scores)
        table.add_row(escape(name), *cells, f"{values[name]:.4f}", style=style)
    console.print(table)


def print_verdicts(console: Console, cards: Mapping[str, Scorecard], verdicts: Verdicts) -> None:
    """Every comparison on the mean of all benchmarks, then by benchmark."""
    unit = _Unit(in_points(cards.values()))
    candidates = {c.candidate for c in verdicts.overall}
    alone = f" of {escape(next(iter(candidates)))}" if len(candidates) == 1 else ""
    table = _table(f"Paired gain{alone} in {unit.name}")
    if not alone:
        table.add_column("model")
    table.add_column("against")
    for name in ("gain", "95% interval", "p (Holm)", "fixed", "broken"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for c in verdicts.overall:
        interval = f"{unit.signed(c.gain.low)} to {unit.signed(c.gain.high)}"
        counts = (f"{c.gain.fixed:,}", f"{c.gain.broken:,}")
        row = (unit.signed(c.gain.value), interval, _p_text(c.p), *counts)
        names = (c.reference,) if alone else (c.candidate, c.reference)
        table.add_row(*map(escape, names), *row, _coloured(c, verdict_text(c)))
    console.print(table)
    if verdicts.tasks:
        _print_tasks(console, cards, verdicts)


def print_rooms(console: Console, claim: Claim) -> None:
    """Whether the winner keeps to each limit, and figures that need no items."""
    if claim.rooms:
        table = _table("Limits: what the winner has above each, in the metric's own units")
        table.add_column("objective")
        for name in ("winner", "limit", "room", "95% interval"):
            table.add_column(name, justify="right")
        table.add_column("kept?")
        for one in claim.rooms:
            interval = "-" if one.low is None else f"{one.low:+.4g} to {one.high:+.4g}"
            limit = f"{one.limit:.6g}" + (f" ({one.against})" if one.against else "")
            cells = (f"{one.figure:.6g}", limit, f"{one.room:+.4g}", interval)
            colour = _COLOURS[_VERDICTS[one.verdict]]
            table.add_row(*map(escape, (one.objective, *cells)), f"[{colour}]{one.verdict}[/]")
        console.print(table)
    for name, models in claim.figures.items():
        told = ", ".join(f"{model} {figure:.6g}" for model, figure in models.items())
        _say(console, f"{name} (a figure without items, so without an interval): {told}")


def print_flips(
    console: Console, candidate: str, reference: str, flips: Sequence[Flip], examples: int
) -> None:
    """Some items that were fixed and some that were broken, of every benchmark in turn."""
    fixed = [flip for flip in flips if flip.change > 0]
    broken = [flip for flip in flips if flip.change < 0]
    if not flips or not examples:
        return
    counts = f"{len(fixed):,} items and breaks {len(broken):,}"
    _say(console, f"Against {reference}, {candidate} fixes {counts}:")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for word, found in (("fixed", fixed), ("broken", broken)):
        for flip in _in_turn(found)[:examples]:
            colour = _COLOURS[BETTER if word == "fixed" else WORSE]
            table.add_row(f"  [{colour}]{word}[/]", escape(flip.task), escape(flip.text))
    console.print(table)


def conclusion(verdicts: Verdicts, candidate: str, name: str) -> str:
    """What may be said of one candidate, in one sentence.

    Args:
        verdicts: All of them.
        candidate: Its name in them.
        name: What the sentence calls it.
    """
    phrases = {
        BETTER: "is better than",
        WORSE: "is worse than",
        EQUIVALENT: "is equivalent to",
        TOO_FEW: "can't be told from",
    }
    parts: list[str] = []
    for verdict, phrase in phrases.items():
        ours = (c for c in verdicts.overall if c.candidate == candidate)
        found = [c for c in ours if c.verdict == verdict]
        if found:
            names = (f"{c.reference}{_needed(c, ' (', ' items')}" for c in found)
            parts.append(f"{phrase} {_listed(names)}")
    return f"{name} {'; it '.join(parts)}."


def chance_sentence(verdicts: Verdicts, candidate: str) -> str:
    """How sure it is that a candidate is better than every one of its references."""
    references = [c.reference for c in verdicts.overall if c.candidate == candidate]
    others = references[0] if len(references) == 1 else "all of them"
    chance = _chance_text(verdicts.chances[candidate])
    return f"The probability that it is better than {others} is {chance}."


def verdict_text(c: Comparison) -> str:
    """A verdict in words, with the items that would do."""
    return f"{c.verdict}{_needed(c, ': ', '')}"


class _Unit:
    """How differences are written: points where scores are shares, the metric's own otherwise."""

    def __init__(self, points: bool) -> None:
        self.points = points
        self.name = "points" if points else "the metrics' units"

    def signed(self, value: float) -> str:
        return f"{100 * value:+.1f}" if self.points else f"{value:+.4f}"

    def words(self, value: float) -> str:
        return f"{self.signed(value)} points" if self.points else self.signed(value)

    def plain(self, value: float) -> str:
        if not self.points:
            return f"{value:g}"
        return "1 point" if value == 0.01 else f"{100 * value:g} points"


def _print_tasks(console: Console, cards: Mapping[str, Scorecard], verdicts: Verdicts) -> None:
    """Benchmarks down, references across."""
    pairs = list(dict.fromkeys((c.candidate, c.reference) for c in verdicts.tasks))
    several = len({candidate for candidate, _ in pairs}) > 1
    table = _table("By task: gain, and its 95% interval below")
    table.add_column("task")
    for ours, theirs in pairs:
        head = f"{ours}\n{theirs}" if several else theirs.replace(" ", "\n")
        table.add_column(escape(head), justify="right", vertical="bottom")
    for task in dict.fromkeys(c.task for c in verdicts.tasks):
        assert task is not None
        unit = _Unit(in_points(cards.values(), task))
        row = (c for c in verdicts.tasks if c.task == task)
        table.add_row(_stacked(task), *(_task_cell(c, unit) for c in row))
    console.print(table)
    margin = _Unit(in_points(cards.values())).plain(verdicts.margin)
    _say(
        console,
        f"▲ better  ▼ worse  = equivalent, within {margin}  ? not enough items; "
        f"p corrected for all {len(verdicts.tasks)} (Holm)",
    )


def _task_cell(c: Comparison, unit: _Unit) -> str:
    head = _coloured(c, f"{_MARKS[c.verdict]} {unit.signed(c.gain.value)}")
    return f"{head}\n[dim]{unit.signed(c.gain.low)} {unit.signed(c.gain.high)}[/]"


def _path_lines(trial: int, path: Path, unit: _Unit) -> Iterable[str]:
    """The winner's curse in plain words."""
    yield (
        f"Chosen among {path.candidates} candidates, it (trial {trial}) scored {path.search:.4f} "
        f"on the search items, worth {path.shrunk:.4f} once shrunk for having been chosen; "
        f"{path.select:.4f} on the select items; {path.holdout:.4f} here."
    )
    before = path.search - path.rival_search
    after = path.holdout - path.rival_holdout
    line = (
        f"Its lead over {path.rival}, the best parent on the search items, was "
        f"{unit.words(before)} there and is {unit.words(after)} here: "
    )
    if path.luck > 0:
        curse = unit.words(path.luck).lstrip("+")
        yield line + f"{curse} were the luck of having been chosen (the winner's curse)."
    else:
        yield line + "no luck of having been chosen shows."


def _needed(c: Comparison, before: str, noun: str) -> str:
    if c.needed is None:
        return ""
    end = ")" if "(" in before else ""
    return f"{before}about {_rounded(c.needed):,}{noun} would do{end}"


def _rounded(count: int) -> int:
    """Two digits: more would claim to know the discordance better than it is known."""
    return round(count, 2 - len(str(count)))


def _p_text(p: float) -> str:
    return "< .0001" if p < 1e-4 else f"{p:.4f}".removeprefix("0")


def _chance_text(chance: float) -> str:
    if chance > 0.999:
        return "above 99.9%"
    return "below 0.1%" if chance < 0.001 else f"{chance:.1%}"


def _in_turn(flips: Sequence[Flip]) -> list[Flip]:
    """The first of every benchmark, then the second of each."""
    by_task: dict[str, list[Flip]] = {}
    for flip in flips:
        by_task.setdefault(flip.task, []).append(flip)
    rounds = zip_longest(*by_task.values())
    return [flip for found in rounds for flip in found if flip is not None]


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _stacked(name: str) -> str:
    """A long name on several lines, as rich would break it anywhere."""
    return escape(name.replace("_", "_\n") if len(name) > _LONG_NAME else name)


def _coloured(c: Comparison, text: str) -> str:
    return f"[{_COLOURS[c.verdict]}]{text}[/]"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, highlight=False, markup=False)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
