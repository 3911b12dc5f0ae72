# pyright: standard
"""From a study's word for a benchmark to lm-eval's tasks, its arguments put over theirs."""

import contextlib
import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from lm_eval.api.group import Group
from lm_eval.api.metrics import bypass_agg
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, TaskIndex
from transformers import GenerationConfig

from evals.errors import EvaluationError

logging.getLogger("lm_eval").setLevel(logging.ERROR)

_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """A benchmark that a study names.

    Attributes:
        task: Name of an installed or local lm-eval task, group or tag, or the study's path of its
            file.
        metric: The metric that the study looks at, or None for the task's first.
        num_fewshot: Overrides the task's own number of examples.
        higher_is_better: Overrides the metric's own direction.
        weight: What it counts among the study's benchmarks.
        file: Where the task's YAML file is, if the study names one.
        arguments: Further keys of the task's YAML that the study sets, or all of them.
        home: Where relative paths begin in a task that the study itself writes.
        gen_kwargs: Put over the task's `generation_kwargs`.
        common_gen_kwargs: Those of the whole study, under these; a task that generates nothing
            has no use for them.
        signal: What the search looks at: `auto`, `metric` or one of `signals.SIGNALS`.
        cluster: The field whose equal values make items belong together; None looks for a passage.
    """

    task: str
    metric: str | None = None
    num_fewshot: int | None = None
    higher_is_better: bool | None = None
    weight: float = 1.0
    file: Path | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    common_gen_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    signal: str = "auto"
    cluster: str | None = None
    home: Path | None = None


def task_manager(
    requests: Sequence[TaskRequest], include: Sequence[Path], metadata: Mapping[str, Any] | None
) -> TaskManager:
    """Index the local tasks, and lm-eval's 14,000 files only if a name isn't among them.

    Args:
        requests: The benchmarks, whose names have to be found.
        include: Folders with local task YAMLs.
        metadata: lm-eval's `metadata`, which some tasks make their documents from.
    """
    paths: list[str | Path] = [str(path) for path in include]
    given: Any = dict(metadata) if metadata else None
    local = TaskManager(include_path=paths, include_defaults=False, metadata=given)
    known = set(local.all_tasks)
    if all(name in known for request in requests for name in _names(request)):
        return local
    return TaskManager(include_path=paths, include_defaults=True, metadata=given)


def local_names(include: Sequence[Path]) -> frozenset[str]:
    """Names of the tasks, groups and tags under some folders."""
    paths: list[str | Path] = [str(path) for path in include]
    return frozenset(TaskManager(include_path=paths, include_defaults=False).all_tasks)


def load(manager: TaskManager, request: TaskRequest) -> tuple[Group | None, list[ConfigurableTask]]:
    """Load the lm-eval tasks that a study's name means, its arguments put over theirs.

    Returns:
        The group, if it is one, and its tasks at any depth, or a tag's, or the one.

    Raises:
        EvaluationError: If there is none, it can't be loaded, or the arguments don't suit it.
    """
    entry, overrides = _entry(manager, request)
    try:
        with contextlib.chdir(_home(manager, request)):  # lm-eval takes relative paths from the cwd
            # `TaskManager.load` builds from a name or a whole definition; with a name and keys to
            # put over its own, as a group's list of tasks has them, it is its factory that builds.
            built = manager._factory.build(entry, overrides=overrides, registry=manager.task_index)
            loaded = manager.load(cast("Any", built if isinstance(built, list) else [built]))
    except Exception as error:  # a task's own code and data can fail in any way
        raise EvaluationError(f"task '{request.task}': can't be loaded: {error}") from None
    tasks = [cast("ConfigurableTask", task) for task in loaded["tasks"].values()]
    if not tasks:
        raise EvaluationError(f"task '{request.task}': is a group without tasks")
    for task in tasks:
        _refuse_unfit(task, request)
        if request.num_fewshot is not None:
            task.set_config("num_fewshot", request.num_fewshot)
    _set_generation(tasks, request)
    root = next(iter(loaded.get("groups", {}).values()), None)
    return cast("Group | None", root), tasks


def metric_key(request: TaskRequest, group: Group | None, tasks: Sequence[ConfigurableTask]) -> str:
    """lm-eval's `metric,filter`; the first filter unless the study names one after a comma.

    Raises:
        EvaluationError: If there is no such metric or filter, or it measures nothing.
    """
    stated = (group.aggregate_metric_list or []) if group else []
    known = list(dict.fromkeys(name for task in tasks for name in task.aggregation()))
    first = stated[0].metric if stated and stated[0].metric in known else known[0]
    metric, _, chosen = (request.metric or first).partition(",")
    if metric not in known:
        raise EvaluationError(
            f"task '{request.task}': has no metric '{metric}'; it has {', '.join(known)}"
        )
    task = next(task for task in tasks if metric in task.aggregation())
    if task.aggregation()[metric] is bypass_agg:
        raise EvaluationError(
            f"task '{request.task}': '{metric}' measures nothing, lm-eval gives 999 for it; choose "
            f"another of {', '.join(known)}"
        )
    filters = [ensemble.name for ensemble in task._filters]
    own = next((m.filter_list for m in stated if m.metric == metric and m.filter_list), filters)
    if chosen and chosen not in filters:
        raise EvaluationError(
            f"task '{request.task}': has no filter '{chosen}'; it has {', '.join(filters)}"
        )
    return f"{metric},{chosen or own[0]}"


def by_size(group: Group | None, metric: str) -> bool:
    """Whether a group's figure weighs its tasks by their sizes: lm-eval's `weight_by_size`."""
    stated = (group.aggregate_metric_list or []) if group else []
    return next((bool(m.weight_by_size) for m in stated if m.metric == metric), True)


def _names(request: TaskRequest) -> list[str]:
    """The names that have to be looked up for a request."""
    members: Any = request.arguments.get("task")
    if isinstance(members, list):
        parts = [m.get("task", m.get("group")) if isinstance(m, dict) else m for m in members]
        return [part for part in parts if isinstance(part, str)]
    whole = any(key in request.arguments for key in ("dataset_path", "custom_dataset", "class"))
    return [] if request.file is not None or whole else [request.task]


def _entry(manager: TaskManager, request: TaskRequest) -> tuple[Entry, dict[str, Any] | None]:
    """Where a benchmark is defined, and what is put over that."""
    overrides: dict[str, Any] | None = dict(request.arguments) or None
    known = manager.task_index.get(request.task)
    if request.file is not None:
        known = TaskIndex.entry_from_path(request.file)
    if known is not None:
        return known, overrides
    if overrides:
        key = "group" if isinstance(overrides.get("task"), list) else "task"
        if written := TaskIndex.entry_from_config({key: request.task, **overrides}):
            return written, None
    close = difflib.get_close_matches(request.task, manager.all_tasks, n=3, cutoff=0.7)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise EvaluationError(f"task '{request.task}': lm-eval has no task of that name{hint}")


def _home(manager: TaskManager, request: TaskRequest) -> Path:
    """Where relative data paths begin: the folder of a task's YAML file, or of a tag's first."""
    if request.file is not None:
        return request.file.resolve().parent
    entry, members = manager.task_index.get(request.task), request.arguments.get("task")
    names = [request.task, *sorted(entry.tags if entry else ())]
    names += [name for name in members or () if isinstance(name, str)]
    known = [manager.task_index[name].yaml_path for name in names if name in manager.task_index]
    paths = [path.resolve().parent for path in known if path is not None]
    return paths[0] if paths else request.home or Path.cwd()


def _refuse_unfit(task: ConfigurableTask, request: TaskRequest) -> None:
    """lm-eval's own entry point refuses these as well; here it is not passed through."""
    if getattr(task, "UNSAFE_CODE", False):
        raise EvaluationError(
            f"task '{request.task}': runs the code that a model writes, which outcross never does"
        )
    if getattr(task, "MULTIMODAL", False):
        raise EvaluationError(
            f"task '{request.task}': needs images or sound; models read text here"
        )


def _set_generation(tasks: Sequence[ConfigurableTask], request: TaskRequest) -> None:
    """Put a study's generation arguments over the tasks' own, each known to somebody."""
    own_limit = any(key in request.gen_kwargs for key in _LIMITS)
    common = request.common_gen_kwargs.items()
    given = {key: value for key, value in common if not (own_limit and key in _LIMITS)}
    given |= request.gen_kwargs
    if not given:
        return
    known = {*GenerationConfig().to_dict(), "until", *_LIMITS}
    if unknown := [key for key in given if key not in known]:
        close = difflib.get_close_matches(unknown[0], sorted(known), n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise EvaluationError(
            f"task '{request.task}': gen_kwargs: a generation has no argument '{unknown[0]}'{hint}"
        )
    limits = [key for key in _LIMITS if key in given]
    if len(limits) > 1:
        raise EvaluationError(f"task '{request.task}': gen_kwargs: {' and '.join(limits)} are one")
    generating = [task for task in tasks if task.OUTPUT_TYPE == "generate_until"]
    if request.gen_kwargs and not generating:
        raise EvaluationError(f"task '{request.task}': gen_kwargs: it generates nothing")
    for task in generating:
        own = task.config.generation_kwargs or {}
        if limits:  # lm-eval would let the task's `max_gen_toks` win over another name of it
            own = {key: value for key, value in own.items() if key not in _LIMITS}
        task.set_config("generation_kwargs", {**own, **given})
