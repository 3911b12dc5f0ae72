"""`outcross quickstart`: parents from the cache or made now, then search, compare, export."""

import hashlib
import os
import shutil
from importlib.resources import files
from pathlib import Path

import yaml
from rich.console import Console

from search.commands import compare_study, drop_results, export_study, run_study
from search.finals import Claim
from studies.quickstart.parents import make_parents

_PARTS = ("models", "tasks", "data")


def run_quickstart(
    folder: Path,
    console: Console,
    seed: int,
    trials: int | None,
    fresh: bool,
    quiet: bool,
    verbose: bool,
) -> Claim | None:
    """The main job on tiny models.

    Args:
        folder: Where to work: study file, models, storage and winner lie there.
        console: For messages.
        seed: Of search and items.
        trials: Budget, or None for the study's own.
        fresh: Forget earlier results.
        quiet: Print nothing but the result's line.
        verbose: Tell each candidate.

    Returns:
        What the comparison found, or None if it was interrupted.
    """
    family = cached_family(console)
    if fresh:
        drop_results(folder)
    study = write_study(family, folder, seed, trials)
    if run_study(study, console, quiet=quiet, verbose=verbose) is None:
        console.print("Stopped. Run the same command again to go on.")
        return None
    found = compare_study(study, console, quiet=quiet)
    out = folder / "winner"
    shutil.rmtree(out, ignore_errors=True)
    export_study(study, out, console)
    console.print(_next_steps(folder), highlight=False, markup=False)
    if quiet:
        print(f"winner\t{found.trial}\t{found.path.holdout:.6f}")
    return found


def cached_family(console: Console) -> Path:
    """The folder with the tiny models, their tasks and data; made if it isn't there."""
    folder = cache_folder() / f"quickstart-{_source_digest()}"
    if not folder.is_dir():
        console.print("Training the tiny parents, once (about a minute on two cores)")
        make_parents(folder, progress=lambda text: console.print(f"  {text}", highlight=False))
    return folder


def cache_folder() -> Path:
    """Where things are kept that can be made again: $OUTCROSS_CACHE, or the user's cache."""
    if own := os.environ.get("OUTCROSS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "outcross"


def write_study(family: Path, folder: Path, seed: int, trials: int | None) -> Path:
    """Copy the family and the study file to where the user can look at them and change them."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in _PARTS:
        if not (folder / part).exists():
            shutil.copytree(family / part, folder / part)
    target = folder / "study.yaml"
    text = files("studies.quickstart").joinpath("study.yaml").read_text("utf-8")
    if seed or trials:
        data = yaml.safe_load(text)
        data["items"]["seed"] = data["search"]["seed"] = seed
        data["search"]["trials"] = trials or data["search"]["trials"]
        text = yaml.safe_dump(data, sort_keys=False)
    if not target.exists() or seed or trials:
        target.write_text(text, "utf-8")
    return target


def _source_digest() -> str:
    """Changes when the recipe of the family does, so that a new version makes new parents."""
    source = files("studies.quickstart").joinpath("parents.py").read_bytes()
    return hashlib.sha256(source).hexdigest()[:12]


def _next_steps(folder: Path) -> str:
    return (
        f"Look around: {folder}/study.yaml is the study, {folder}/winner the merged model.\n"
        f"  Load it:         AutoModelForCausalLM.from_pretrained('{folder}/winner')\n"
        f"  Merge it again:  outcross merge {folder}/winner/recipe.yaml merged/\n"
        f"  Search on:       raise 'trials' in it, then outcross run {folder}/study.yaml"
    )
