"""The command `outcross`.

Exit codes: 0 done, 1 an unexpected error, 2 a mistake in what was given, 3 nothing could be
scored or there is nothing to compare yet, 130 interrupted (Ctrl-C or SIGTERM).
"""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

INTERRUPTED = 130

app = typer.Typer(
    name="outcross",
    help="Search for the best merge of fine-tuned language models, and know that it is better.",
    epilog="Start with: outcross quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

StudyFile = Annotated[
    Path, typer.Argument(metavar="STUDY.YAML", help="The study file.", show_default=False)
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="More detail; tracebacks of unexpected errors.")
]
Trial = Annotated[
    int | None,
    typer.Option(min=0, help="Another finalist than the winner.", show_default=False),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Only a tab-separated line for each result, for scripts."),
]


@app.command()
def quickstart(
    folder: Annotated[
        Path | None,
        typer.Argument(help="Where to work; a second time goes on from there.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the search and of the item split.")] = 0,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Another budget than the study's.", show_default=False)
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier results first.")] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """The whole product on tiny real models, in minutes and without a network.

    Trains a base model and experts that are fine-tuned from it (once; they are cached), searches
    for the best merge of them, compares the winner with every parent and every cheap merge on
    items that the search never saw, and writes it as a model folder with its recipe.
    """
    _prepare(verbose)
    from search.quickstart import run_quickstart

    name = "outcross-quickstart" + (f"-{seed}" if seed else "")
    target = folder or Path(name)
    if run_quickstart(target, _console(quiet), seed, trials, fresh, quiet, verbose) is None:
        raise typer.Exit(INTERRUPTED)


@app.command()
def new(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=MODEL...",
            help="Folders, hub ids or model+adapter, each with your name for it; 'base' is the "
            "base model.",
            show_default=False,
        ),
    ],
    tasks: Annotated[
        str,
        typer.Option(
            help="Names or files of lm-eval tasks, with commas between them; task:metric "
            "chooses a metric.",
            show_default=False,
        ),
    ],
    include: Annotated[
        list[Path] | None,
        typer.Option(help="A folder with local task YAMLs.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option(help="The study file to write.")] = Path("study.yaml"),
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Recipes to try; default by dimensions.", show_default=False),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="Name of the base model; default 'base', or a guess from the tensors.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write a study file for models and tasks, with a comment on every line.

    Opens the models, says which fit each other and which is the base, measures on a sample of
    tensors what each changed where, and puts 8 to 16 dimensions where the changes differ most.
    What is written has passed every check of outcross check; after a mistake nothing is written.
    """
    _prepare(verbose)
    from search.commands import write_new_study
    from search.new import NewOptions

    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    options = NewOptions(names, tuple(include or ()), out, trials, base, force)
    write_new_study(models, options, _console(quiet))
    if quiet:
        print(out)
    _say(f"Wrote {out}. Next: outcross run {out}", quiet)


@app.command()
def check(study: StudyFile, verbose: Verbose = False, quiet: Quiet = False) -> None:
    """Check a study before anything is spent, and tell what its items can show.

    Lists models, dimensions, memory and items, and the smallest gain that the holdout can show
    with 80% power. What `run` would refuse is refused here, every mistake at once.
    """
    _prepare(verbose)
    from search.commands import check_file
    from search.outlook import reach

    checked = check_file(study, _console(quiet))
    if quiet:
        for found in reach(checked):
            print(f"{found.discordance:g}\t{found.mean:.6f}\t{found.needed}")
    _say(f"No mistake found. Next: outcross run {study}", quiet)


@app.command()
def run(
    study: StudyFile,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Of the whole study; default the file's.", show_default=False),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(help="No candidate begins after it: 2h, 90m, 45s.", show_default=False),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Score candidates on so many Ray actors.", show_default=False),
    ] = None,
    fork: Annotated[
        bool,
        typer.Option(
            "--fork",
            help="Where the study file has changed: begin a new study with the old trials, "
            "re-scored without a model, where their results allow, else with the best candidates "
            "of the old one, which is kept.",
        ),
    ] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Search for the best merge. The same command again goes on where it stopped.

    Everything is checked before the first trial. Ctrl-C finishes the running trial and stops;
    a second one drops it, and it is tried again next time. No finished trial is ever lost, not
    even by kill -9.
    """
    _prepare(verbose)
    from search.commands import run_options, run_study

    options = run_options(trials, time, workers, fork)
    finalists = run_study(study, _console(quiet), options, quiet=quiet, verbose=verbose)
    if finalists is None:
        _say(f"Stopped. Go on with: outcross run {study}", quiet)
        raise typer.Exit(INTERRUPTED)
    best = finalists[0]
    if quiet:
        print(f"winner\t{best.record.number}\t{best.pooled:.6f}")
    _say(f"The winner is trial {best.record.number}. Next: outcross compare {study}", quiet)


@app.command()
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY.YAML | MODEL...",
            help="A study file; or, with --tasks, model folders, hub ids and recipe files.",
            show_default=False,
        ),
    ],
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Names or files of lm-eval tasks, with commas between them; task:metric "
            "chooses a metric, and a name with a colon in it may end in one more.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            help="A model that the others are compared with; default the first.",
            show_default=False,
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Differences below it don't matter; .01 is a point. Default the study's, or .01.",
            show_default=False,
        ),
    ] = None,
    flips: Annotated[int, typer.Option(min=0, help="Items fixed and broken to show.")] = 3,
    items: Annotated[
        int | None,
        typer.Option(min=2, help="Items of each task; default all.", show_default=False),
    ] = None,
    include: Annotated[
        list[Path] | None,
        typer.Option(help="A folder with local task YAMLs.", show_default=False),
    ] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, show_default=False)] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, show_default=False)] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="In tokens.", show_default=False)
    ] = None,
    apply_chat_template: Annotated[bool | None, typer.Option("--apply-chat-template")] = None,
    system_instruction: Annotated[str | None, typer.Option(show_default=False)] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of items and random masks.", show_default=False)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or auto.", show_default=False)
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of every model; default each model's own.", show_default=False),
    ] = None,
    trial: Trial = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Is it better? A study's winner on the sealed holdout, or any models on --tasks.

    Of a study: the winner against every parent, the plain average, task arithmetic and TIES. The
    holdout is read once for each winner, and every reading is counted. Of a list: every model
    against the first or those named by --reference; a recipe is merged in memory.

    Gains are paired, item by item, with 95% intervals and p-values that account for the number of
    comparisons. --quiet prints candidate, reference, gain, low, high, p, verdict and the items
    that would do, with tabs between them.
    """
    _prepare(verbose)
    from search.commands import compare_models, compare_study
    from search.compare_options import compare_options, study_file

    given = {
        "reference": tuple(reference) if reference else None,
        "items": items,
        "include": tuple(include) if include else None,
        "num_fewshot": num_fewshot,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "batch_size": batch_size,
        "max_length": max_length,
        "apply_chat_template": apply_chat_template,
        "system_instruction": system_instruction,
    }
    console = _console(quiet)
    if tasks is None:
        study = study_file(models, given)
        claim = compare_study(
            study, console, margin=margin, examples=flips, quiet=quiet, trial=trial
        )
        found = claim.verdicts
    else:
        options = compare_options(tasks, given)
        if trial is not None:
            raise typer.BadParameter(
                "is about a study's finalists; leave out --tasks", param_hint="--trial"
            )
        found = compare_models(models, options, console, margin=margin, examples=flips, quiet=quiet)
    if quiet:
        for c in found.overall:
            gain = f"{c.gain.value:.6f}\t{c.gain.low:.6f}\t{c.gain.high:.6f}"
            needed = "" if c.needed is None else c.needed
            print(f"{c.candidate}\t{c.reference}\t{gain}\t{c.p:.6g}\t{c.verdict}\t{needed}")
    if tasks is None:
        which = "" if trial is None else f" --trial {trial}"
        _say(f"Write it with: outcross export {models[0]} out/{which}", quiet)


@app.command()
def export(
    study: StudyFile,
    out: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    trial: Trial = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write the winner as a model folder that transformers loads, with its recipe and a card.

    The weights are merged straight from the parents with the search's own arithmetic, so the
    files hold what was scored, bit for bit. recipe.yaml is a mergekit recipe.
    """
    _prepare(verbose)
    from search.commands import export_study

    export_study(study, out, _console(quiet), trial)
    if quiet:
        print(out)


@app.command()
def dashboard(
    study: StudyFile,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 takes a free one.")
    ] = 8080,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    r"""Open Optuna's dashboard on a study, on this machine only, also while it runs.

    It is for reading: Optuna's dashboard could delete and rename studies, change trials and write
    notes without asking who you are; here what its buttons for that ask for is refused. From
    another machine: ssh -L 8080:127.0.0.1:8080. Ctrl-C ends it. Needs outcross\[dashboard].
    """
    _prepare(verbose)
    from search.dashboard import show_dashboard

    show_dashboard(study, port, lambda url: print(url) if quiet else _say(_serving(url), quiet))


@app.command()
def merge(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE.YAML", help="A mergekit recipe.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Argument(help="A new folder.", show_default=False)] = None,
    seed: Annotated[
        int, typer.Option("--seed", "--random-seed", min=0, help="Of random masks.")
    ] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    shard_size: Annotated[str, typer.Option(help="Largest size of a weight file.")] = "5GB",
    keep_stages: Annotated[
        Path | None,
        typer.Option(
            help="Keep the results of named documents here; unchanged ones are used again.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check everything, show the plan (-v: each tensor), write nothing."
        ),
    ] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Merge a recipe, without any search: streamed, in bounded memory, all or nothing.

    Reads mergekit's recipes: models, slices, gradients, filters, tokenizers, adapters
    (model+adapter) and files of several documents. Everything is checked before anything is
    written, and what was written is checked again before it gets its name.
    """
    _prepare(verbose)
    from search.merge_command import merge_options, merge_recipe

    options = merge_options(seed, device, shard_size, keep_stages)
    merge_recipe(recipe, out, _console(quiet), options, dry_run=dry_run, verbose=verbose)
    if quiet and not dry_run:
        print(out)


def main() -> None:
    """Run the command; every expected error is one message and an exit code."""
    # As Ctrl-C: batch systems and containers end a program so, and drafts must not stay behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except KeyboardInterrupt:
        _fail("interrupted; nothing that was finished is lost", INTERRUPTED)
    except Exception as error:  # the last line of defence: the user gets a sentence
        code = _exit_code(error)
        if code == 1 and {"-v", "--verbose"} & set(sys.argv):
            raise
        hint = "" if code > 1 else f" ({type(error).__name__}; run again with -v for the traceback)"
        _fail(f"{error}{hint}", code)


def _exit_code(error: Exception) -> int:
    from evals.errors import EvaluationError
    from merge_core.errors import MergeError
    from search.errors import NothingFound, StudyError

    if isinstance(error, StudyError | MergeError | EvaluationError):
        return 2
    return 3 if isinstance(error, NothingFound) else 1


def _prepare(verbose: bool) -> None:
    from evals.quiet import quiet
    from search.clash import refuse_clashes

    refuse_clashes()
    quiet(verbose)


def _console(quiet: bool) -> Console:
    """Where tables and progress go; a pipe gets plain text as wide as it needs."""
    if quiet:
        return Console(file=open(os.devnull, "w", encoding="utf-8"))
    return Console() if sys.stdout.isatty() else Console(width=200)


def _serving(url: str) -> str:
    return f"The study is shown at {url} (for reading only; Ctrl-C ends it)"


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        print(text)


def _fail(text: str, code: int) -> None:
    print(f"outcross: {text}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
