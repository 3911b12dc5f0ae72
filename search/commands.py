"""What each command does, apart from parsing its arguments."""

import re
import shutil
from pathlib import Path

import torch
from rich.console import Console

from evals.items import Role
from search.bench import CheckedStudy, build_bench, check_study, find_device
from search.errors import NothingFound, StudyError
from search.finals import Claim, Finalist, claim, select_winner, stored_claim, winner
from search.merging import MergeOptions, merge_file, plan_file
from search.progress import watch
from search.record import finished
from search.study import keep_protocol, open_study, run_search, stop_on_interrupt
from search.tables import print_claim, print_finalists, print_job
from search.writing import RECIPE, export_winner

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def run_study(
    path: Path, console: Console, *, quiet: bool = False, verbose: bool = False
) -> tuple[Finalist, ...] | None:
    """Search, or go on searching; then choose the winner.

    Returns:
        The finalists, the winner first, or None if it was interrupted before the budget was spent.
    """
    checked = check_study(path)
    _announce(checked, console)
    bench = build_bench(checked, (Role.SEARCH, Role.SELECT))
    trials = checked.config.search.trials
    with open_study(checked) as study:
        keep_protocol(study, bench)
        with (
            stop_on_interrupt() as stop,
            watch(console, trials, len(finished(study)), quiet=quiet, verbose=verbose) as watcher,
        ):
            run_search(study, bench, watcher, stop)
        if stop.asked:
            return None
        finalists = select_winner(study, bench)
    if not quiet:
        print_finalists(console, finalists)
    return finalists


def compare_study(path: Path, console: Console, *, quiet: bool = False) -> Claim:
    """Compare the winner with parents and plain average on the holdout."""
    checked = check_study(path)
    _require_storage(checked)
    bench = build_bench(checked, (Role.SEARCH, Role.HOLDOUT))
    with open_study(checked) as study:
        keep_protocol(study, bench)
        found = claim(study, bench)
    if not quiet:
        print_claim(console, found)
    return found


def export_study(path: Path, folder: Path, console: Console) -> None:
    """Write the winner as a model folder."""
    checked = check_study(path)
    _require_storage(checked)
    with open_study(checked) as study:
        best = winner(study)
        found = stored_claim(study, best.number)
    export_winner(checked, best.recipe, found, folder)
    console.print(f"Wrote trial {best.number} to {folder}, with {RECIPE}.", highlight=False)


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
        print_job(console, job, options.device, verbose=dry_run and verbose)
    if dry_run:
        return
    if folder is None:
        raise StudyError(["give the folder to write to, or --dry-run"], "outcross merge")
    merge_file(path, jobs, folder, options)
    console.print(f"Wrote {folder}.", highlight=False)


def merge_options(seed: int, device: str, shard_size: str, stages: Path | None) -> MergeOptions:
    """The options of `outcross merge` as they are typed.

    Raises:
        StudyError: If a device or a size can't be read.
    """
    return MergeOptions(seed, _merge_device(device), _bytes(shard_size), stages)


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


def drop_results(folder: Path) -> None:
    """Remove what a study's runs left beside its file, not its models or tasks."""
    for name in ("runs", "winner"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _announce(checked: CheckedStudy, console: Console) -> None:
    word, reason = checked.sampler
    space = checked.space
    items = checked.config.items
    console.print(
        f"Study '{checked.config.name}': {len(space.dimensions)} dimensions, "
        f"{', '.join(space.methods)}; sampler {word} ({reason}); "
        f"{len(checked.tasks)} benchmarks with {items.search} search items each; "
        f"{str(checked.dtype).removeprefix('torch.')} on {checked.device}",
        highlight=False,
        soft_wrap=True,
    )
    notes = [note for task in checked.tasks for note in task.notes]
    for warning in (*checked.warnings, *notes):
        console.print(f"Warning: {warning}", highlight=False, markup=False, soft_wrap=True)


def _require_storage(checked: CheckedStudy) -> None:
    if "://" not in checked.storage and not (checked.folder / checked.storage).is_dir():
        raise NothingFound(f"study '{checked.config.name}' has not been run yet; run it first")
