# pyright: standard
"""Open lm-eval's tasks and deal their items; no model is needed for it."""

import contextlib
import difflib
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import TaskIndex
from transformers import GenerationConfig

from evals.errors import EvaluationError
from evals.items import Counts, Document, Role, Split, content_hash, likeness, split

logging.getLogger("lm_eval").setLevel(logging.ERROR)

# lm-eval's aggregations of texts and vectors: figures of the whole set without values per item.
_OF_THE_WHOLE = {"bleu", "chrf", "chrfpp", "ter", "brier_score", "bypass_agg"}
_FEW = 20  # right answers that are no more than this are kept in proportion
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
    home: Path | None = None


@dataclass(slots=True)
class Subtask:
    """One lm-eval task of a benchmark, with its documents until they are sealed."""

    task: ConfigurableTask
    documents: Sequence[Any]

    def seal(self) -> None:
        """Drop every document that no item holds: the data set is gone, not just out of sight."""
        self.documents = ()
        for name in ("dataset", "task_docs", "_training_docs", "_fewshot_docs", "_instances"):
            if hasattr(self.task, name):
                setattr(self.task, name, None)
        if getattr(self.task, "sampler", None) is not None:
            self.task.sampler.replace_df([])


@dataclass(frozen=True, slots=True)
class OpenTask:
    """A benchmark's lm-eval tasks and how its items are dealt.

    Attributes:
        name: As the study calls it.
        subtasks: One, or those of a group or tag.
        places: Of every document its subtask's number and its position there, `(documents, 2)`.
        hashes: Their content hashes.
        metric: lm-eval's key of the metric that the study looks at, such as `acc_norm,none`.
        higher_is_better: Direction of that metric in the study.
        turned: Whether that is against the metric's own.
        weight: What it counts in the objective.
        by_size: Whether a group's figure weighs its tasks by their sizes.
        signal: What the study asked for.
        split: Which documents play which role.
        notes: What to know of them: repeated documents, examples kept apart.
    """

    name: str
    subtasks: tuple[Subtask, ...]
    places: tuple[tuple[int, int], ...]
    hashes: tuple[str, ...]
    metric: str
    higher_is_better: bool
    turned: bool
    weight: float
    by_size: bool
    signal: str
    split: Split
    notes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """sha256 over the content of every role's items: changes when any of them does."""
        seen = hashlib.sha256()
        for role, places in self.split.roles.items():
            seen.update(role.encode())
            for place in places:
                seen.update(self.hashes[place].encode())
        return seen.hexdigest()


def open_tasks(
    requests: Sequence[TaskRequest],
    counts: Counts,
    seed: int,
    include: Sequence[Path],
    report: Callable[[int, str], None],
    metadata: Mapping[str, Any] | None = None,
) -> tuple[OpenTask, ...]:
    """Load the study's tasks and deal their items.

    Args:
        requests: The benchmarks.
        counts: Items per role.
        seed: Of the split.
        include: Folders with local task YAMLs.
        report: Called with the position and the message of each one that can't be used, so that
            all mistakes of a study come out at once.
        metadata: lm-eval's `metadata`, which some tasks make their documents from.
    """
    manager = _task_manager(requests, include, metadata)
    opened: list[OpenTask] = []
    taken: dict[str, Role] = {}
    for position, request in enumerate(requests):
        try:
            opened.append(_open_task(manager, request, counts, seed, taken))
        except EvaluationError as error:
            report(position, str(error))
    return tuple(opened)


def seal(tasks: Sequence[OpenTask]) -> None:
    """Leave no document in memory but those of the items that were built from these tasks.

    A search's process then holds no item of the holdout, so no mistake in it can read one.
    """
    for opened in tasks:
        for subtask in opened.subtasks:
            subtask.seal()


def examples_from_scored_split(task: ConfigurableTask) -> bool:
    """Whether a task takes its few-shot examples from the very set that it tests on."""
    config, shown = task.config, getattr(task, "fewshot_cfg", None)
    if shown is None:  # a task class of its own, which draws from its training documents
        return not task.has_training_docs()
    scored = config.test_split or config.validation_split
    if shown.split is not None:
        return shown.split == scored
    if shown.samples is not None:
        return False
    return (config.training_split or config.validation_split or config.test_split) == scored


def shots(task: ConfigurableTask) -> int:
    """How many few-shot examples a prompt of the task has."""
    return task.config.num_fewshot or 0


def _task_manager(
    requests: Sequence[TaskRequest], include: Sequence[Path], metadata: Mapping[str, Any] | None
) -> TaskManager:
    """Index the local tasks, and lm-eval's 14,000 files only if a name isn't among them."""
    paths: list[str | Path] = [str(path) for path in include]
    given: Any = dict(metadata) if metadata else None
    local = TaskManager(include_path=paths, include_defaults=False, metadata=given)
    known = set(local.all_tasks)
    if all(name in known for request in requests for name in _names(request)):
        return local
    return TaskManager(include_path=paths, include_defaults=True, metadata=given)


def _names(request: TaskRequest) -> list[str]:
    """The names that have to be looked up for a request."""
    members: Any = request.arguments.get("task")
    if isinstance(members, list):
        parts = [m.get("task", m.get("group")) if isinstance(m, dict) else m for m in members]
        return [part for part in parts if isinstance(part, str)]
    whole = any(key in request.arguments for key in ("dataset_path", "custom_dataset", "class"))
    return [] if request.file is not None or whole else [request.task]


def _open_task(
    manager: TaskManager,
    request: TaskRequest,
    counts: Counts,
    seed: int,
    taken: MutableMapping[str, Role],
) -> OpenTask:
    group, tasks = _load(manager, request)
    metric = _metric_key(request, group, tasks)
    base = metric.split(",")[0]
    kept = [task for task in tasks if base in task.aggregation()]
    own = bool(kept[0].higher_is_better().get(base, True))
    better = own if request.higher_is_better is None else request.higher_is_better
    subtasks = tuple(Subtask(task, _documents(task)) for task in kept)
    known = [_known(subtask) for subtask in subtasks]
    flat = [document for documents in known for document in documents]
    examples = {like for subtask in subtasks for like in _shown(subtask)}
    dealt = split(request.task, flat, counts, seed, examples=examples, taken=taken)
    opened = OpenTask(
        name=request.task,
        subtasks=subtasks,
        places=tuple((n, at) for n, documents in enumerate(known) for at in range(len(documents))),
        hashes=tuple(document.content for document in flat),
        metric=metric,
        higher_is_better=better,
        turned=better != own,
        weight=request.weight,
        by_size=_by_size(group, base),
        signal=request.signal,
        split=dealt,
        notes=tuple(_notes(request.task, dealt, tasks, subtasks, base)),
    )
    used = {flat[at].likeness for places in dealt.roles.values() for at in places}
    for subtask in subtasks:
        _keep_examples_apart(request.task, subtask.task, used)
    return opened


def _load(
    manager: TaskManager, request: TaskRequest
) -> tuple[Group | None, list[ConfigurableTask]]:
    """The lm-eval tasks that a study's name means, its arguments put over theirs."""
    try:
        with contextlib.chdir(_home(manager, request)):  # lm-eval takes relative paths from the cwd
            loaded = manager.load(_build(manager, request))
    except KeyError:
        close = difflib.get_close_matches(request.task, manager.all_tasks, n=3, cutoff=0.7)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise EvaluationError(
            f"task '{request.task}': lm-eval has no task of that name{hint}"
        ) from None
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


def _build(manager: TaskManager, request: TaskRequest) -> Any:
    """Build what `TaskManager.load` takes.

    It builds from a name or from a whole definition; with a name and overrides, as a group's list
    of tasks has them, it is its factory that builds.
    """
    entry = manager.task_index.get(request.task)
    if request.file is not None:
        entry = TaskIndex.entry_from_path(request.file)
    overrides: dict[str, Any] | None = dict(request.arguments) or None
    if entry is None and overrides:
        key = "group" if isinstance(overrides.get("task"), list) else "task"
        entry = TaskIndex.entry_from_config({key: request.task, **overrides})
        overrides = None
    if entry is None:
        raise KeyError(request.task)
    built = manager._factory.build(entry, overrides=overrides, registry=manager.task_index)
    return built if isinstance(built, list) else [built]


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


def _metric_key(
    request: TaskRequest, group: Group | None, tasks: Sequence[ConfigurableTask]
) -> str:
    """lm-eval's `metric,filter`; the first filter unless the study names one after a comma."""
    stated = (group.aggregate_metric_list or []) if group else []
    known = list(dict.fromkeys(name for task in tasks for name in task.aggregation()))
    first = stated[0].metric if stated and stated[0].metric in known else known[0]
    metric, _, chosen = (request.metric or first).partition(",")
    if metric not in known:
        raise EvaluationError(
            f"task '{request.task}': has no metric '{metric}'; it has {', '.join(known)}"
        )
    task = next(task for task in tasks if metric in task.aggregation())
    if (name := getattr(task.aggregation()[metric], "__name__", "")) in _OF_THE_WHOLE:
        raise EvaluationError(
            f"task '{request.task}': '{metric}' ({name}) is a figure of the whole set and has no "
            f"value per item, which a paired comparison needs; choose another of {', '.join(known)}"
        )
    filters = [ensemble.name for ensemble in task._filters]
    own = next((m.filter_list for m in stated if m.metric == metric and m.filter_list), filters)
    if chosen and chosen not in filters:
        raise EvaluationError(
            f"task '{request.task}': has no filter '{chosen}'; it has {', '.join(filters)}"
        )
    return f"{metric},{chosen or own[0]}"


def _by_size(group: Group | None, metric: str) -> bool:
    stated = (group.aggregate_metric_list or []) if group else []
    return next((bool(m.weight_by_size) for m in stated if m.metric == metric), True)


def _documents(task: ConfigurableTask) -> Sequence[Any]:
    kept = getattr(task, "task_docs", None)
    return cast("Sequence[Any]", kept if kept is not None else list(task.eval_docs))


def _known(subtask: Subtask) -> list[Document]:
    """What the ledger is told of each document."""
    name = str(subtask.task.task_name)
    labels = _labels(subtask)
    return [
        Document(
            content_hash({"task": name, "doc": document}),
            likeness(document),
            f"{name}/{label}",
            name,
        )
        for document, label in zip(subtask.documents, labels, strict=True)
    ]


def _labels(subtask: Subtask) -> list[str]:
    """Right answers, if there are few different ones; else nothing for each."""
    task, found = subtask.task, list[str]()
    of = task.doc_to_text if getattr(task, "multiple_input", 0) else task.doc_to_target
    seen: set[str] = set()
    for document in subtask.documents:
        try:
            found.append(str(of(document)))
        except Exception:  # a template may fail on a document; scoring will tell
            found.append("")
        seen.add(found[-1])
        if len(seen) > _FEW:
            return [""] * len(subtask.documents)
    return found


def _pool(task: ConfigurableTask) -> Sequence[Any]:
    sampler = getattr(task, "sampler", None)
    return () if sampler is None else sampler.df


def _shown(subtask: Subtask) -> Iterator[str]:
    """Likenesses of documents that are few-shot examples and so can't be items.

    Those of a split of examples, and the first documents if it's always these.
    """
    task, count = subtask.task, shots(subtask.task)
    if not count:
        return
    if not examples_from_scored_split(task):
        yield from map(likeness, _pool(task))
    elif _first_are_shown(task):
        yield from map(likeness, list(_pool(task))[: count + 1])


def _first_are_shown(task: ConfigurableTask) -> bool:
    shown = getattr(task, "fewshot_cfg", None)
    return shown is not None and shown.sampler == "first_n"


def _keep_examples_apart(name: str, task: ConfigurableTask, used: set[str]) -> None:
    """Few-shot examples may come from the scored split; never from an item with a role."""
    count = shots(task)
    if not count or getattr(task, "sampler", None) is None:
        return
    free = list(_pool(task))
    if examples_from_scored_split(task) and not _first_are_shown(task):
        free = [document for document in free if likeness(document) not in used]
        task.sampler.replace_df(free)
        count += 1  # lm-eval draws one more, in case the item itself is among them
    if len(free) < count:
        raise EvaluationError(
            f"task '{name}': {len(free)} documents are left for its {shots(task)} few-shot "
            "examples when the scored items are taken out; ask for fewer under 'items', or set "
            "num_fewshot lower"
        )


def _notes(
    name: str,
    dealt: Split,
    tasks: Sequence[ConfigurableTask],
    subtasks: Sequence[Subtask],
    metric: str,
) -> Iterator[str]:
    if dealt.duplicates:
        yield f"task '{name}': {dealt.duplicates} documents repeat others and are left out"
    if dealt.examples:
        yield f"task '{name}': {dealt.examples} documents are few-shot examples and are left out"
    if dealt.elsewhere:
        yield (
            f"task '{name}': {dealt.elsewhere} documents have another role in another task, or "
            "under another of its subtasks, and keep it"
        )
    if len(tasks) > len(subtasks):
        lost = [str(task.task_name) for task in tasks if metric not in task.aggregation()]
        yield f"task '{name}': has no {metric} for {', '.join(lost)}, which count for nothing"
    mixed = [s.task for s in subtasks if shots(s.task) and examples_from_scored_split(s.task)]
    if any(not _first_are_shown(task) for task in mixed):
        yield (
            f"task '{name}': takes its few-shot examples from the scored set; items are kept out "
            "of them, so prompts are not those of lm-eval"
        )
