"""`outcross new`: from models and tasks to a study file that says why it is as it is."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

import yaml

from evals.clusters import cluster_keys
from evals.items import Counts
from evals.loading import TaskRequest, local_names
from evals.tasks import OpenTask, examples_from_scored_split, open_tasks, shots
from merge_core.errors import CheckpointError
from search.bench import CheckedStudy, check_study
from search.commented import render
from search.errors import StudyError
from search.inspection import WHERE, Inspection, inspect_models
from search.lineup import read_task
from search.models import read_reference
from search.proposal import Change, Space, changes, choose_space, default_trials
from search.sizes import counted
from search.study_text import Facts, Plan, study_lines

_ALIAS = re.compile(r"^[A-Za-z][\w.-]*$")
_FORBIDDEN = re.compile(r"[^A-Za-z0-9._-]+")
_MOST = {"search": 200, "select": 200, "holdout": 2000}  # items; more tell little for their time
_SHARE = {"search": 0.3, "select": 0.2}  # of few items; the holdout gets the rest
_FEWEST = 10  # items of a task, in all roles


@dataclass(frozen=True, slots=True)
class NewOptions:
    """What is asked for beside models.

    Attributes:
        tasks: Names or YAML files of lm-eval tasks, each perhaps with `:metric`.
        include: Folders with local tasks.
        out: The file to write.
        trials: The budget; None: by the number of dimensions.
        base: Alias of the base model; None: `base`, or a guess.
        force: Whether an existing file is replaced.
    """

    tasks: tuple[str, ...]
    include: tuple[Path, ...] = ()
    out: Path = Path("study.yaml")
    trials: int | None = None
    base: str | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class NewStudy:
    """What was written, and what it stands on."""

    path: Path
    inspection: Inspection
    changes: Mapping[str, Change]
    space: Space
    checked: CheckedStudy


def new_study(models: Sequence[str], options: NewOptions) -> NewStudy:
    """Write a study file for models and tasks; what is written has passed every check.

    Args:
        models: `alias=path`, a hub id or `model+adapter` each; paths are relative to the working
            directory.
        options: The rest.

    Raises:
        StudyError: With every mistake; nothing is written.
    """
    mistakes: list[str] = []
    out = _target(options, mistakes)
    references = _read_models(models, mistakes)
    requests = _read_tasks(options, mistakes)
    folders = [folder.resolve() for folder in options.include if folder.is_dir()]
    counted = _count(requests, folders, mistakes)
    found = inspect_models(references, options.base, mistakes) if references else None
    if mistakes or found is None:
        raise StudyError(mistakes, WHERE)
    seen = changes(found)
    space = choose_space(found, seen, options.trials)
    plan = _plan(found, seen, space, options, out, requests, counted)
    checked = _write(plan, out)
    return NewStudy(options.out, found, seen, space, checked)


def _target(options: NewOptions, mistakes: list[str]) -> Path:
    out = Path(os.path.realpath(options.out))
    if out.is_dir() or out.suffix not in (".yaml", ".yml"):
        mistakes.append(f"--out: {options.out} is no name of a YAML file; give study.yaml")
    elif out.exists() and not options.force:
        mistakes.append(f"--out: {options.out} exists; give another name, or --force")
    elif not out.parent.is_dir():
        mistakes.append(f"--out: there is no folder {options.out.parent}; make it first")
    return out


def _read_models(models: Sequence[str], mistakes: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in models:
        alias, given, reference = text.partition("=")
        if not given or not _ALIAS.match(alias):
            alias, reference = _alias_of(text), text
        if alias in found:
            mistakes.append(f"two models are called '{alias}'; give names, as in math={reference}")
        found[alias] = reference
        if not reference:
            mistakes.append(f"'{text}': expected name=path, a hub id or name=model+adapter")
    if len(found) < 2:
        mistakes.append(f"two models or more are needed for a merge, got {len(found)}")
    return found


def _alias_of(text: str) -> str:
    """What a model without a name is called: its folder, or that of its adapter."""
    last = Path(text.rpartition("+")[2].partition("@")[0]).name or "model"
    return _FORBIDDEN.sub("-", last).strip("-._") or "model"


def _read_tasks(options: NewOptions, mistakes: list[str]) -> list[TaskRequest]:
    for folder in options.include:
        if not folder.is_dir():
            mistakes.append(f"--include: {folder} is no folder")
    if not options.tasks:
        mistakes.append("--tasks: no task is named")
    folders = [folder.resolve() for folder in options.include if folder.is_dir()]
    local = local_names(folders) if any(":" in text for text in options.tasks) else frozenset[str]()
    requests = [read_task(text, local) for text in options.tasks]
    if len({request.task for request in requests}) < len(requests):
        mistakes.append("--tasks: a task is listed twice")
        return []
    return requests


def _count(
    requests: Sequence[TaskRequest], folders: Sequence[Path], mistakes: list[str]
) -> tuple[OpenTask, ...]:
    """The tasks, opened with one item in each role, which any of them can give."""

    def report(_: int, text: str) -> None:
        mistakes.append(f"--tasks: {text}")

    opened = open_tasks(requests, Counts(1, 1, 1), 0, folders, report)
    for task in opened:
        if (count := _usable(task)) < _FEWEST:
            mistakes.append(
                f"--tasks: '{task.name}' has {count} items; {_FEWEST} or more are needed to "
                "search, select and compare"
            )
    return opened


def _usable(task: OpenTask) -> int:
    """Items that may have a role: repeated ones may not, nor those kept for few-shot examples.

    Of the last cluster of holdout and select, what they don't need gets no role.
    """
    mixed = [s.task for s in task.subtasks if examples_from_scored_split(s.task)]
    kept = sum(shots(one) + 1 for one in mixed if shots(one))
    documents = [document for subtask in task.subtasks for document in subtask.documents]
    keys = cluster_keys(task.name, documents, None)
    largest = max(Counter(key for key in keys if key).values(), default=1) if keys else 1
    without_role = task.split.duplicates + task.split.examples + kept + 2 * (largest - 1)
    return len(task.places) - without_role


def _deal(usable: int) -> dict[str, int]:
    """How many of a task's items play each role."""
    counts = {role: min(_MOST[role], int(share * usable)) for role, share in _SHARE.items()}
    left = usable - sum(counts.values())
    return counts | {"holdout": min(_MOST["holdout"], left)}


def _plan(
    found: Inspection,
    seen: Mapping[str, Change],
    space: Space,
    options: NewOptions,
    out: Path,
    requests: Sequence[TaskRequest],
    tasks: Sequence[OpenTask],
) -> Plan:
    sizes = {task.name: _usable(task) for task in tasks}
    places = {alias: _placed(text, out.parent) for alias, text in found.references.items()}
    names = {
        request.task: _relative(request.file, out.parent) if request.file else request.task
        for request in requests
    }
    return Plan(
        name=_name(out, found),
        command=options.out,
        found=found,
        changes=seen,
        space=space,
        places=places,
        tasks=tuple(tasks),
        task_names=names,
        sizes=sizes,
        items=_deal(min(sizes.values())),
        include=tuple(_relative(folder, out.parent) for folder in options.include),
        trials=options.trials or default_trials(space.dimensions),
        asked=options.trials is not None,
    )


def _name(out: Path, found: Inspection) -> str:
    stem = "-".join(found.experts) if out.stem == "study" else out.stem
    return _FORBIDDEN.sub("-", stem)[:60].strip("-._") or "study"


def _placed(text: str, folder: Path) -> str:
    """A reference as a file in another folder writes it."""

    def place(part: str) -> str:
        typed = Path(part)
        if typed.is_absolute() or part.startswith("~") or not typed.exists():
            return part
        return _relative(typed, folder)

    try:
        read = read_reference(text, Path())
    except CheckpointError:
        return text
    return place(read.model) + (f"+{place(read.adapter)}" if read.adapter else "")


def _relative(path: Path, folder: Path) -> str:
    """Seen from a folder; never to be taken for a hub id or a task's name."""
    if not path.is_absolute():
        path = Path(os.path.realpath(".")) / path
    found = Path(os.path.relpath(path, folder)).as_posix()
    return found if found.startswith("../") else f"./{found}"


def _write(plan: Plan, out: Path) -> CheckedStudy:
    """Check what is to be written, say what the check told, and give it its name.

    Raises:
        StudyError: If the check finds a mistake; nothing is left of the draft.
    """
    with NamedTemporaryFile("w", dir=out.parent, suffix=".draft", delete=False) as handle:
        draft = Path(handle.name)
    try:
        first = render(study_lines(plan, None))
        draft.write_text(first, "utf-8")
        checked = check_study(draft)
        final = render(study_lines(plan, Facts.of(checked)))
        if yaml.safe_load(final) != yaml.safe_load(first):
            raise AssertionError("only comments may differ from what was checked")
        draft.write_text(final, "utf-8")
        draft.chmod(0o666 & ~_umask())
        os.replace(draft, out)
    except StudyError as error:
        where = f"{WHERE}: nothing was written; the study that it would have written has mistakes"
        raise StudyError(error.mistakes, where) from None
    finally:
        draft.unlink(missing_ok=True)
    return checked


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def summary(written: NewStudy) -> Iterator[str]:
    """What to know of a new study, a line each."""
    space, checked = written.space, written.checked
    for alias, change in written.changes.items():
        parts = sorted(change.shares.items(), key=lambda pair: -pair[1])
        told = ", ".join(f"{role} {share:.0%}" for role, share in parts if share >= 0.005)
        yield f"change of '{alias}': {change.relative:.2%} of the weights' norm; {told}"
    word, reason = checked.sampler()
    dimensions = counted(len(checked.space.dimensions), "dimension")
    yield (
        f"search: {dimensions}, {', '.join(space.methods)}; "
        f"{checked.config.search.trials} trials; sampler {word} ({reason})"
    )
    items = checked.config.items
    roles = f"{items.search} search, {items.select} select, {items.holdout} holdout"
    yield f"items of each task: {roles}"
