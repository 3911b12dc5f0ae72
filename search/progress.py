"""What a person sees while a search runs: a live panel on a terminal, plain lines elsewhere."""

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from evals.scorecard import Scorecard
from search.goals import Aim, missed_text
from search.record import Record


class Silent:
    """Says nothing; scripts read the final line."""

    def baseline(self, name: str, card: Scorecard, value: float) -> None:
        """See `Watcher`."""

    def scored(self, ways: Sequence[str]) -> None:
        """See `Watcher`."""

    def trial(self, record: Record, done: int) -> None:
        """See `Watcher`."""


class Lines:
    """One line for each event: for files, pipes and continuous integration.

    Args:
        console: Where to write.
        trials: The study's budget.
        verbose: Also tell each candidate's recipe.
        best: The best trial of earlier runs, if there was one.
        aims: Whose values a Pareto front is of.
    """

    def __init__(
        self,
        console: Console,
        trials: int,
        verbose: bool,
        best: Record | None = None,
        aims: Sequence[Aim] = (),
    ) -> None:
        self.console, self.trials, self.verbose = console, trials, verbose
        self.best, self.aims = best, aims
        self.failures = 0
        self.clock = _Clock()

    def baseline(self, name: str, card: Scorecard, value: float) -> None:
        """See `Watcher`."""
        self._print(f"baseline {name}: {value:.4f} ({scores_text(card)})")
        self.clock = _Clock()  # trials are timed from here on

    def scored(self, ways: Sequence[str]) -> None:
        """See `Watcher`."""
        for way in ways:
            self._print(f"log-likelihoods: {way}")

    def trial(self, record: Record, done: int) -> None:
        """See `Watcher`."""
        self.clock.tick()
        self.failures += record.value is None
        self.best = better(self.best, record)
        left = self.clock.left(self.trials - done)
        self._print(
            f"trial {record.number} ({done}/{self.trials}): {outcome_text(record, self.aims)}; "
            f"{self.best_text()}; {left} left"
        )
        for flag in record.flags:
            self._print(f"  {flag}")
        if self.verbose:
            self._print(f"  {record.recipe}")

    def best_text(self) -> str:
        """The best trial so far in words."""
        if self.best is None:
            return "nothing scored yet"
        missing = missed_text(self.best.missed)
        warning = f"; it misses {missing}, as no trial keeps to every limit" if missing else ""
        return f"best {self.best.value:.4f} (trial {self.best.number}{warning})"

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)


class Panel(Lines):
    """A live panel: progress, best so far, baselines, failures, time left."""

    def __init__(
        self,
        console: Console,
        trials: int,
        verbose: bool,
        done: int,
        best: Record | None = None,
        aims: Sequence[Aim] = (),
    ) -> None:
        super().__init__(console, trials, verbose, best, aims)
        self.bar = Progress(
            TextColumn("searching"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("time left"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.bar.add_task("trials", total=trials, completed=done)
        self.baselines: list[tuple[str, float]] = []
        self.last = ""
        self.live = Live(self.view(), console=console, refresh_per_second=4)

    def baseline(self, name: str, card: Scorecard, value: float) -> None:  # noqa: ARG002
        """See `Watcher`."""
        self.baselines.append((name, value))
        self.live.update(self.view())

    def trial(self, record: Record, done: int) -> None:
        """See `Watcher`."""
        self.failures += record.value is None
        self.best = better(self.best, record)
        self.last = f"trial {record.number}: {outcome_text(record, self.aims)}"
        self.bar.update(self.task, completed=done)
        self.live.update(self.view())
        if self.verbose:
            self._print(f"{self.last}\n  {record.recipe}")

    def view(self) -> Group:
        """What the panel shows now."""
        best = Text(f"  best      {self.best_text().removeprefix('best ')}", style="bold")
        if self.best and self.best.scorecard:
            best.append(f"  {scores_text(self.best.scorecard)}", style="dim")
        known = "   ".join(f"{name} {value:.4f}" for name, value in self.baselines)
        return Group(
            self.bar,
            best,
            Text(f"  baselines {known or 'being scored'}"),
            Text(f"  last      {self.last}", style="dim"),
            Text(f"  failed    {self.failures}", style="red" if self.failures else "dim"),
        )


@contextmanager
def watch(
    console: Console,
    trials: int,
    done: int,
    best: Record | None = None,
    aims: Sequence[Aim] = (),
    *,
    quiet: bool,
    verbose: bool,
) -> Generator[Silent | Lines]:
    """The watcher that fits where the output goes.

    Args:
        console: Where to write.
        trials: The study's budget.
        done: Trials that ended in earlier runs.
        best: The best of them.
        aims: Whose values a Pareto front is of.
        quiet: Whether to say nothing.
        verbose: Whether to tell each candidate's recipe.
    """
    if quiet:
        yield Silent()
    elif console.is_terminal:
        panel = Panel(console, trials, verbose, done, best, aims)
        with panel.live:
            yield panel
    else:
        yield Lines(console, trials, verbose, best, aims)


def better(best: Record | None, record: Record) -> Record | None:
    """The better of two trials; the earlier of equals. Who misses limits is behind who doesn't."""
    if record.value is None or record.stopped is not None:
        return best
    if best is None or best.value is None or record.rank < best.rank:
        return record
    return best


def outcome_text(record: Record, aims: Sequence[Aim] = ()) -> str:
    """One trial's result in words; its values by objective where they are several."""
    if record.value is None:
        return f"failed: {record.failure}"
    missing = missed_text(record.missed)
    shown = f"{record.value:.4f}" + (f", misses {missing}" if missing else "")
    if record.values is not None and aims:
        told = (f"{aim.name} {aim.told(v)}" for aim, v in zip(aims, record.values, strict=True))
        shown += f" ({', '.join(told)})"
    if record.reused is not None:
        name = record.reused if isinstance(record.reused, str) else f"trial {record.reused}"
        return f"{shown} (the same model as {name})"
    if record.stopped is not None:
        return f"lost after {record.stopped.items} items; about {record.value:.4f}"
    seconds = record.merge_seconds + (record.scorecard.seconds if record.scorecard else 0.0)
    return f"{shown} in {seconds:.1f} s"


def scores_text(card: Scorecard) -> str:
    """Each benchmark's score."""
    return "  ".join(f"{score.task} {score.value:.3f}" for score in card.scores)


class _Clock:
    """Time left from the mean time of the trials seen so far."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.ticks = 0

    def tick(self) -> None:
        self.ticks += 1

    def left(self, trials: int) -> str:
        seconds = (time.monotonic() - self.start) / max(1, self.ticks) * trials
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
