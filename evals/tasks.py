# pyright: standard
"""Open a study's benchmarks and deal their items; no model is needed for it."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from evals.clusters import cluster_keys
from evals.errors import EvaluationError
from evals.items import Counts, Document, Role, Split, content_hash, likeness, split
from evals.loading import TaskRequest, by_size, load, metric_key, task_manager

_FEW = 20  # right answers that are no more than this are kept in proportion
_FEW_CLUSTERS = 20  # "few" begins at 20 to 50: Cameron and Miller 2015, section VI


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

    def documents(self, role: Role) -> tuple[Any, ...]:
        """A role's documents, in its order, until they are sealed."""
        places = (self.places[place] for place in self.split.roles[role])
        return tuple(self.subtasks[number].documents[at] for number, at in places)

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
    manager = task_manager(requests, include, metadata)
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


def _open_task(
    manager: TaskManager,
    request: TaskRequest,
    counts: Counts,
    seed: int,
    taken: MutableMapping[str, Role],
) -> OpenTask:
    group, tasks = load(manager, request)
    metric = metric_key(request, group, tasks)
    base = metric.split(",")[0]
    kept = [task for task in tasks if base in task.aggregation()]
    own = bool(kept[0].higher_is_better().get(base, True))
    better = own if request.higher_is_better is None else request.higher_is_better
    subtasks = tuple(Subtask(task, _documents(task)) for task in kept)
    known = [_known(subtask) for subtask in subtasks]
    flat = _clustered(request, subtasks, [document for part in known for document in part])
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
        by_size=by_size(group, base),
        signal=request.signal,
        split=dealt,
        notes=(
            *_notes(request.task, dealt, tasks, subtasks, base),
            *_cluster_notes(request.task, dealt, flat),
        ),
    )
    used = {flat[at].likeness for places in dealt.roles.values() for at in places}
    for subtask in subtasks:
        _keep_examples_apart(request.task, subtask.task, used)
    return opened


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


def _clustered(
    request: TaskRequest, subtasks: Sequence[Subtask], documents: Sequence[Document]
) -> list[Document]:
    """The same with their clusters, which may reach over subtasks."""
    contents = [document for subtask in subtasks for document in subtask.documents]
    keys = cluster_keys(request.task, contents, request.cluster)
    if keys is None:
        return list(documents)
    pairs = zip(documents, keys, strict=True)
    return [replace(document, cluster=f"cluster {key}" if key else "") for document, key in pairs]


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
    if dealt.apart:
        yield (
            f"task '{name}': {dealt.apart} documents are left out because others of their cluster "
            "have another role"
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


def _cluster_notes(name: str, dealt: Split, documents: Sequence[Document]) -> Iterator[str]:
    held = [documents[place] for place in dealt.roles[Role.HOLDOUT]]
    count = len({document.cluster or document.likeness for document in held})
    if any(document.cluster for document in held) and count < _FEW_CLUSTERS:
        yield (
            f"task '{name}': its {len(held)} holdout items come from {count} clusters; with fewer "
            f"than {_FEW_CLUSTERS} an interval is easily too narrow"
        )
