"""What each command does, apart from parsing its arguments."""

import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from optuna import Study
from optuna.trial import TrialState
from rich.console import Console

from evals.compare import MARGIN, Verdicts, compare
from evals.flips import flips
from evals.items import Role
from evals.objective import objective
from evals.scorecard import Scorecard
from search.bench import Bench, CheckedStudy, build_bench, check_study
from search.chain import stored_study
from search.claim_tables import (
    chance_sentence,
    conclusion,
    print_claim,
    print_flips,
    print_scores,
    print_verdicts,
)
from search.config import RayConfig
from search.errors import NothingFound, StudyError
from search.evaluators import Evaluators, InProcess
from search.finals import (
    WINNER,
    Claim,
    Finalist,
    chosen,
    claim,
    front_of,
    select_winner,
    stored_claim,
)
from search.foresight import foresee
from search.idle import idle_warning
from search.inspection import told
from search.lineup import CompareOptions, check_lineup, item_clusters_of, score_lineup
from search.merging import RECIPE
from search.new import NewOptions, NewStudy, new_study, summary
from search.outlook import announcement, print_outlook, proposing
from search.progress import watch
from search.ray_evaluators import on_ray
from search.record import best_of, ended, finished, load, samplers_of
from search.searching import Budget, run_search
from search.study import (
    foresee_protocol,
    keep_protocol,
    open_study,
    stop_on_interrupt,
)
from search.tables import print_finalists
from search.writing import export_winner

EXAMPLES = 3  # items fixed and broken that are shown
_PARTS = (86400, 3600, 60, 1)  # seconds in a day, an hour, a minute, a second


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a run may have otherwise than its study file says.

    Attributes:
        trials: The budget of the whole study; None: the file's.
        seconds: After which no candidate begins any more; None: no limit.
        workers: Ray actors; None: the file's, or this process.
        fork: Whether to begin a new study where the conditions have changed.
    """

    trials: int | None = None
    seconds: float | None = None
    workers: int | None = None
    fork: bool = False


def run_study(
    path: Path,
    console: Console,
    options: RunOptions | None = None,
    *,
    quiet: bool = False,
    verbose: bool = False,
) -> tuple[Finalist, ...] | None:
    """Search, or go on searching; then choose the winner.

    Returns:
        The finalists, the winner first, or None if it was interrupted before the budget was spent.
    """
    options = options or RunOptions()
    checked = check_study(path, options.trials)
    _announce(checked, console)
    workers = _workers(checked.config.ray, options.workers)
    # With workers the model of this process only says what the prompts are.
    device = checked.device if workers is None else torch.device("cpu")
    bench = build_bench(replace(checked, device=device), (Role.SEARCH, Role.SELECT))
    trials = checked.config.search.trials
    tell = _teller(console)
    aims = bench.goals.maximized if bench.goals.pareto else ()
    with open_study(checked) as stored:
        study = keep_protocol(stored, bench, fork=options.fork, tell=tell)
        used = samplers_of(study)
        tell(proposing(checked, used))
        if idle := idle_warning(checked, workers, bench.harness.shares, used):
            _warn(console, [idle])
        with (
            _evaluators(path, bench, workers, checked.device) as evaluators,
            stop_on_interrupt() as stop,
            watch(
                console, trials, ended(study), best_of(study), aims, quiet=quiet, verbose=verbose
            ) as watcher,
        ):
            run_search(study, bench, evaluators, watcher, stop, Budget(trials, options.seconds))
            if stop.asked:
                return None
            _require_scores(study, trials)
            finalists = select_winner(study, bench, evaluators)
    if not quiet:
        print_finalists(console, finalists, aims)
    return finalists


def _workers(config: RayConfig | None, count: int | None) -> RayConfig | None:
    if count is None:
        return config
    return (config or RayConfig()).model_copy(update={"workers": count})


def _evaluators(
    path: Path, bench: Bench, workers: RayConfig | None, device: torch.device
) -> AbstractContextManager[Evaluators]:
    if workers is None:
        return nullcontext(InProcess(bench))
    trials = bench.study.config.search.trials
    return on_ray(path, workers, str(device), bench.harness, trials)


def write_new_study(models: Sequence[str], options: NewOptions, console: Console) -> NewStudy:
    """Write a study file for models and tasks, and tell what it stands on."""
    written = new_study(models, options)
    warnings = (f"Warning: {warning}" for warning in written.checked.warnings)
    for line in (*told(written.inspection), *summary(written), *warnings):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return written


def check_file(path: Path, console: Console) -> CheckedStudy:
    """Check a study and tell what it will do and what its items can show.

    Raises:
        StudyError: If `run` would refuse the study, or what is stored of it.
    """
    checked = check_study(path)
    known = stored_study(checked.storage, checked.folder, checked.config.name)
    found = foresee(checked)
    if found.refused:
        raise StudyError(found.refused, str(path))
    print_outlook(console, checked)
    _warn(console, found.unknown)
    if known is not None:
        foresee_protocol(known, checked)
    return checked


def compare_study(
    path: Path,
    console: Console,
    *,
    margin: float | None = None,
    examples: int = EXAMPLES,
    quiet: bool = False,
    trial: int | None = None,
) -> Claim:
    """Compare the winner with parents and merges that need no search on the holdout.

    Args:
        path: The study file.
        console: For the tables.
        margin: Differences below it don't matter; None: as the study says.
        examples: Items fixed and broken to show.
        quiet: Print nothing.
        trial: A finalist to compare in the winner's place.
    """
    checked = check_study(path)
    _require_storage(checked)
    bench = build_bench(checked, (Role.SEARCH, Role.HOLDOUT))
    with open_study(checked) as stored:
        study = keep_protocol(stored, bench, tell=_teller(console))
        margin = checked.config.compare.margin if margin is None else margin
        found = claim(study, bench, margin, trial)
    if not quiet:
        rival = found.cards[found.path.rival]
        changed = flips(found.cards[WINNER], rival, bench.harness.benchmarks, Role.HOLDOUT)
        print_claim(console, found, changed, examples)
    return found


def compare_models(
    models: Sequence[str],
    options: CompareOptions,
    console: Console,
    *,
    margin: float | None = None,
    examples: int = EXAMPLES,
    quiet: bool = False,
) -> Verdicts:
    """Compare any models, without a study.

    Args:
        models: Folders, hub ids, or recipe files, which are merged in memory.
        options: On which tasks, and how.
        console: For the tables.
        margin: Differences below it don't matter; None: `MARGIN`.
        examples: Items fixed and broken to show.
        quiet: Print nothing.
    """
    margin = MARGIN if margin is None else margin
    lineup = check_lineup(models, options)
    if not quiet:
        _warn(console, (f"{one.name}: {text}" for one in lineup.entrants for text in one.warnings))

    def report(name: str, card: Scorecard) -> None:
        console.print(f"scored {name} in {card.seconds:.1f} s", highlight=False, markup=False)

    cards, benchmarks, strange = score_lineup(lineup, options, report)
    verdicts = compare(cards, lineup.pairs, benchmarks, item_clusters_of(lineup), margin)
    if quiet:
        return verdicts
    values = {name: objective([card], benchmarks) for name, card in cards.items()}
    items = sum(score.n for score in next(iter(cards.values())).scores)
    print_scores(console, f"{items:,} items", cards, values)
    for name, flag in ((name, flag) for name, found in strange.items() for flag in found):
        console.print(f"Warning: {name}: {flag}", highlight=False, markup=False, soft_wrap=True)
    print_verdicts(console, cards, verdicts)
    for candidate in verdicts.chances:
        told = conclusion(verdicts, candidate, candidate), chance_sentence(verdicts, candidate)
        console.print(*told, highlight=False, markup=False)
    for ours, theirs in lineup.pairs:
        changed = flips(cards[ours], cards[theirs], benchmarks, Role.SEARCH)
        print_flips(console, ours, theirs, changed, examples)
    return verdicts


def export_study(path: Path, folder: Path, console: Console, trial: int | None = None) -> None:
    """Write the winner, or the finalist of a number, as a model folder."""
    checked = check_study(path)
    _require_storage(checked)
    with open_study(checked) as study:
        best = chosen(study, trial)
        found, members = stored_claim(study, best.number), front_of(study)
    export_winner(checked, best, found, folder, members)
    console.print(
        f"Wrote trial {best.number} to {folder}, with {RECIPE}.", highlight=False, markup=False
    )


def run_options(
    trials: int | None, time: str | None, workers: int | None, fork: bool
) -> RunOptions:
    """The options of `outcross run` as they are typed.

    Raises:
        StudyError: If the time can't be read.
    """
    return RunOptions(trials, None if time is None else _seconds(time), workers, fork)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text.strip())
    seconds = 0.0
    if found is not None:
        seconds = sum(
            int(part or 0) * unit for part, unit in zip(found.groups(), _PARTS, strict=True)
        )
    if not seconds:
        raise StudyError([f"--time: expected a time such as 2h, 90m or 1h30m, got '{text}'"], "run")
    return float(seconds)


def drop_results(folder: Path) -> None:
    """Remove what a study's runs left beside its file, not its models or tasks."""
    for name in ("runs", "winner"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _announce(checked: CheckedStudy, console: Console) -> None:
    _teller(console)(announcement(checked))
    notes = [note for task in checked.tasks for note in task.notes]
    _warn(console, (*checked.warnings, *notes))


def _warn(console: Console, warnings: Iterable[str]) -> None:
    for warning in warnings:
        _teller(console)(f"Warning: {warning}")


def _teller(console: Console) -> Callable[[str], None]:
    return partial(console.print, highlight=False, markup=False, soft_wrap=True)


def _require_scores(study: Study, trials: int) -> None:
    if finished(study):
        return
    if (count := ended(study)) < trials:
        raise NothingFound(
            "the time was over before a first candidate was scored; the same command goes on "
            "where it stopped"
        )
    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    reason = load(failed[-1]).failure
    raise NothingFound(f"none of {count} trials could be scored; the last one: {reason}")


def _require_storage(checked: CheckedStudy) -> None:
    if "://" not in checked.storage and not (checked.folder / checked.storage).is_dir():
        raise NothingFound(f"study '{checked.config.name}' has not been run yet; run it first")
