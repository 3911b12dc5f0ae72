"""Results as tables for the terminal: numbers as they fall."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from search.finals import Finalist
from search.goals import Aim, missed_text


def print_finalists(
    console: Console, finalists: tuple[Finalist, ...], objectives: Sequence[Aim] = ()
) -> None:
    """The best trials by search and select items together; the first is the winner.

    Args:
        console: Where to print.
        finalists: The winner first.
        objectives: Whose values a Pareto front is of.
    """
    table = Table(title="Finalists", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in ("trial", "method", "search items", "shrunk", "select items", "search + select"):
        table.add_column(name, justify="left" if name == "method" else "right")
    limited = any(finalist.missed for finalist in finalists)
    if limited:
        table.add_column("misses")
    for finalist in finalists:
        record = finalist.record
        figures = (record.value, finalist.shrunk, finalist.chosen, finalist.pooled)
        cells = ("-" if figure is None else f"{figure:.4f}" for figure in figures)
        missing = (missed_text(finalist.missed) or "-",) if limited else ()
        table.add_row(str(record.number), record.recipe.method, *cells, *missing)
    console.print(table)
    told = ["Shrunk: what the search score is worth, since the best of many is also the luckiest."]
    if missing := missed_text(finalists[0].missed):
        told.append(
            f"No finalist keeps to every limit. The winner misses the least: {missing}. Lower a "
            "floor, search for longer, or widen the space."
        )
    console.print(*told, sep="\n", highlight=False, markup=False)
    if objectives:
        _print_front(console, finalists, objectives)


def _print_front(
    console: Console, finalists: tuple[Finalist, ...], objectives: Sequence[Aim]
) -> None:
    """The members that nobody beats in all objectives, each written as people know it."""
    members = [finalist for finalist in finalists if finalist.on_front]
    title = "Pareto front on search + select items"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("trial", justify="right")
    for aim in objectives:
        better = "lower" if aim.turned else "higher"
        table.add_column(f"{escape(aim.name)}\n{better} is better", justify="right")
    table.add_column("weighted mean\nhigher is better", justify="right")
    for one in members:
        pairs = zip(objectives, one.values or (), strict=True)
        cells = (aim.told(value) for aim, value in pairs)
        table.add_row(str(one.record.number), *cells, f"{one.pooled:.4f}")
    console.print(table)
    console.print(
        f"The winner has the best weighted mean of its {len(members)} members; compare or export "
        "another with --trial.",
        highlight=False,
    )
