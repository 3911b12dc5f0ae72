# pyright: standard
"""The one file that touches lm-eval's dictionaries.

Tasks, prompts and token ids are made once per study; a candidate costs forward passes. The tasks,
filters and metrics are lm-eval's own.
"""

import contextlib
import difflib
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from evals.activations import Keys, used_after
from evals.answering import Answering, Asked
from evals.errors import EvaluationError
from evals.items import Counts, Role, Split, content_hash, split
from evals.prefixes import Window
from evals.resident import Resident
from evals.scorecard import Score, Scorecard, Value, mean_score

logging.getLogger("lm_eval").setLevel(logging.ERROR)

# lm-eval's aggregations that don't come down to one number per item.
_OF_THE_WHOLE = {
    "f1_score",
    "matthews_corrcoef",
    "bleu",
    "chrf",
    "chrfpp",
    "ter",
    "brier_score",
    "bypass_agg",
}


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """A benchmark that a study names.

    Attributes:
        task: Name of an installed or local lm-eval task or group, or the study's path of its file.
        metric: The metric that the study looks at, or None for the task's first.
        num_fewshot: Overrides the task's own number of examples.
        higher_is_better: Overrides the metric's own direction.
        weight: What it counts among the study's benchmarks.
        file: Where the task's YAML file is, if the study names one.
    """

    task: str
    metric: str | None = None
    num_fewshot: int | None = None
    higher_is_better: bool | None = None
    weight: float = 1.0
    file: Path | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that lm-eval lets a study choose about scoring.

    Attributes:
        batch_size: Sequences per forward pass; one for the whole study, since it moves results.
            `auto` begins high and is lowered for good when memory runs out.
        max_length: Longest sequence in tokens; None takes the model's.
        chat_template: Wrap prompts in the tokenizer's chat template.
        system_instruction: System prompt.
    """

    batch_size: int | Literal["auto"] = 32
    max_length: int | None = None
    chat_template: bool = False
    system_instruction: str | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One document of a benchmark, ready to be scored.

    Attributes:
        task: The lm-eval task that it belongs to.
        document: As the data set has it.
        requests: What the model is asked, in the task's order.
        windows: For each request its token ids: one window for a log-likelihood, several for a
            long text, none for a generation.
        digest: sha256 of the prompts.
    """

    task: ConfigurableTask
    document: Any
    requests: tuple[Instance, ...]
    windows: tuple[tuple[Window, ...], ...]
    digest: str


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A task (or a group's tasks, pooled) with its items by role.

    Attributes:
        name: As the study calls it.
        metric: lm-eval's key of the metric that the study looks at, such as `acc_norm,none`.
        higher_is_better: Direction of that metric.
        weight: What it counts in the objective.
        items: By role, in the ledger's order.
    """

    name: str
    metric: str
    higher_is_better: bool
    weight: float
    items: Mapping[Role, tuple[Item, ...]]

    def aggregate(self, values: Sequence[Value]) -> float:
        """The metric's own way from per-item values to one figure."""
        task = next(iter(self.items.values()))[0].task
        return float(task.aggregation()[self.metric.split(",")[0]](list(values)))

    @property
    def digest(self) -> str:
        """sha256 over the prompts of the search items: changes when anything about them does."""
        seen = hashlib.sha256(f"{self.name} {self.metric}".encode())
        for item in self.items.get(Role.SEARCH, ()):
            seen.update(item.digest.encode())
        return seen.hexdigest()


@dataclass(frozen=True, slots=True)
class OpenTask:
    """A benchmark's lm-eval tasks and how its items are dealt; no model is needed for it yet.

    Attributes:
        name: As the study calls it.
        documents: Every document with the task that it belongs to, `(documents,)`.
        hashes: Their content hashes.
        metric: lm-eval's key of the metric that the study looks at, such as `acc_norm,none`.
        higher_is_better: Direction of that metric.
        weight: What it counts in the objective.
        split: Which documents play which role.
    """

    name: str
    documents: tuple[tuple[ConfigurableTask, Any], ...]
    hashes: tuple[str, ...]
    metric: str
    higher_is_better: bool
    weight: float
    split: Split

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
) -> tuple[OpenTask, ...]:
    """Load the study's tasks and deal their items.

    Args:
        requests: The benchmarks.
        counts: Items per role.
        seed: Of the split.
        include: Folders with local task YAMLs.
        report: Called with the position and the message of each one that can't be used, so that
            all mistakes of a study come out at once.
    """
    manager = _task_manager(requests, include)
    opened: list[OpenTask] = []
    for position, request in enumerate(requests):
        try:
            opened.append(_open_task(manager, request, counts, seed))
        except EvaluationError as error:
            report(position, str(error))
    return tuple(opened)


class Harness:
    """Scores whatever a resident model currently is.

    Args:
        resident: The live model.
        tasks: The study's opened benchmarks.
        roles: Which items to make ready; a search never gets the holdout's.
        settings: How to score.
        seed: Of few-shot examples.
    """

    def __init__(
        self,
        resident: Resident,
        tasks: Sequence[OpenTask],
        roles: Sequence[Role],
        settings: Settings,
        seed: int,
    ) -> None:
        self.settings = settings
        self.lm = _language_model(resident, settings)
        self.answering = Answering(self.lm, settings.batch_size)
        self._slots = resident.slots
        self.benchmarks = tuple(_build_benchmark(self, task, roles, seed) for task in tasks)

    @cached_property
    def after(self) -> frozenset[str]:
        """Names of the tensors that only work on what the last layer gives."""
        late = {id(tensor) for tensor in used_after(self.lm.model)}
        return frozenset(name for name, slot in self._slots.items() if id(slot) in late)

    def prompt(self) -> list[int]:
        """Token ids of a real prompt, at most 32: for a look at a candidate's health."""
        first = next(iter(self.benchmarks[0].items.values()))[0].requests[0]
        return self.lm.tok_encode(first.args[0])[:32] or [self.lm.prefix_token_id]

    @torch.inference_mode()
    def score(self, role: Role, layers: Keys | None = None) -> Scorecard:
        """Score the model as it is now on the items of one role.

        A benchmark that gives no finite number is a missing score with its reason.

        Args:
            role: Which items.
            layers: What stands for the weights before the layers and in each layer; equal layers
                at the bottom of two candidates are run once.
        """
        start = time.perf_counter()
        chosen = {benchmark.name: benchmark.items[role] for benchmark in self.benchmarks}
        _answer(self.answering, [item for items in chosen.values() for item in items], layers)
        results = {name: _results(items) for name, items in chosen.items()}
        scores = tuple(_score(b, b.items[role], results[b.name]) for b in self.benchmarks)
        return Scorecard(scores, results, time.perf_counter() - start)


def _language_model(resident: Resident, settings: Settings) -> Any:
    model: Any = HFLM  # its decorator hides the constructor's signature
    return model(
        pretrained=resident.model,
        tokenizer=resident.tokenizer,
        batch_size=1,  # answering sets it
        max_length=settings.max_length,
        softmax_dtype="float32",  # bf16 log-softmax is off by up to 0.5 nat and makes exact ties
    )


def _task_manager(requests: Sequence[TaskRequest], include: Sequence[Path]) -> TaskManager:
    """Index the local tasks, and lm-eval's 14,000 files only if a name isn't among them."""
    paths: list[str | Path] = [str(path) for path in include]
    local = TaskManager(include_path=paths, include_defaults=False)
    known = set(local.all_tasks)
    if all(request.file or request.task in known for request in requests):
        return local
    return TaskManager(include_path=paths, include_defaults=True)


def _open_task(manager: TaskManager, request: TaskRequest, counts: Counts, seed: int) -> OpenTask:
    tasks = _load_tasks(manager, request)
    metric = _metric_key(request, tasks[0])
    better = request.higher_is_better
    if better is None:
        better = bool(tasks[0].higher_is_better().get(metric.split(",")[0], True))
    documents = tuple((task, doc) for task in tasks for doc in task.eval_docs)
    hashes = tuple(_document_hash(task, doc) for task, doc in documents)
    dealt = split(request.task, hashes, counts, seed)
    opened = OpenTask(request.task, documents, hashes, metric, better, request.weight, dealt)
    for task in tasks:
        _keep_examples_apart(task, opened)
    return opened


def _keep_examples_apart(task: ConfigurableTask, opened: OpenTask) -> None:
    """Few-shot examples may come from the scored split; never from an item with a role."""
    shots = task.config.num_fewshot or 0
    if not shots or getattr(task, "sampler", None) is None:
        return
    used = {opened.hashes[place] for places in opened.split.roles.values() for place in places}
    free = [doc for doc in task.sampler.df if _document_hash(task, doc) not in used]
    if len(free) < shots:
        raise EvaluationError(
            f"task '{opened.name}': {len(free)} documents are left for its {shots} few-shot "
            "examples when the scored items are taken out; ask for fewer under 'items', or set "
            "num_fewshot lower"
        )
    task.sampler.df = free


def _document_hash(task: ConfigurableTask, document: Any) -> str:
    return content_hash({"task": task.task_name, "doc": document})


def _build_benchmark(
    harness: Harness, task: OpenTask, roles: Sequence[Role], seed: int
) -> Benchmark:
    items = {
        role: tuple(
            _build_item(harness, *task.documents[at], task.hashes[at], at, seed)
            for at in task.split.roles[role]
        )
        for role in roles
    }
    return Benchmark(task.name, task.metric, task.higher_is_better, task.weight, items)


def _load_tasks(manager: TaskManager, request: TaskRequest) -> list[ConfigurableTask]:
    try:
        with contextlib.chdir(_home(manager, request)):  # lm-eval takes them from the cwd
            loaded = manager.load([str(request.file or request.task)])["tasks"]
    except KeyError:
        close = difflib.get_close_matches(request.task, manager.all_tasks, n=3, cutoff=0.7)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise EvaluationError(
            f"task '{request.task}': lm-eval has no task of that name{hint}"
        ) from None
    except Exception as error:  # a task's own code and data can fail in any way
        raise EvaluationError(f"task '{request.task}': can't be loaded: {error}") from None
    tasks = [cast("ConfigurableTask", task) for task in loaded.values()]
    for task in tasks:
        _refuse_unfit(task, request)
        if request.num_fewshot is not None:
            task.set_config("num_fewshot", request.num_fewshot)
    return tasks


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


def _home(manager: TaskManager, request: TaskRequest) -> Path:
    """Where a task's relative data paths begin: the folder of its YAML file."""
    entry = manager.task_index.get(request.task)
    path = request.file or (entry.yaml_path if entry else None)
    return path.resolve().parent if path else Path.cwd()


def _metric_key(request: TaskRequest, task: ConfigurableTask) -> str:
    """lm-eval's `metric,filter`; the first filter unless the study names one after a comma."""
    filters = [ensemble.name for ensemble in task._filters]
    known = list(task.aggregation())
    metric, _, chosen = (request.metric or known[0]).partition(",")
    if metric not in known:
        raise EvaluationError(
            f"task '{request.task}': has no metric '{metric}'; it has {', '.join(known)}"
        )
    if (name := getattr(task.aggregation()[metric], "__name__", "")) in _OF_THE_WHOLE:
        raise EvaluationError(
            f"task '{request.task}': '{metric}' ({name}) is a figure of the whole set and has no "
            f"value per item, which a paired comparison needs; choose another of {', '.join(known)}"
        )
    if chosen and chosen not in filters:
        raise EvaluationError(
            f"task '{request.task}': has no filter '{chosen}'; it has {', '.join(filters)}"
        )
    return f"{metric},{chosen or filters[0]}"


def _build_item(
    harness: Harness, task: ConfigurableTask, document: Any, digest: str, at: int, seed: int
) -> Item:
    """Make one document's requests.

    Few-shot examples are drawn from a generator of the item's own, so an item keeps its prompt in
    every subset; lm-eval's one running generator gives it others under a subset.
    """
    template = harness.lm.apply_chat_template if harness.settings.chat_template else None
    if getattr(task, "sampler", None) is not None:
        task.set_fewshot_seed(int(digest[:8], 16) ^ seed)
    try:
        context = task.fewshot_context(
            document,
            num_fewshot=task.config.num_fewshot or 0,
            system_instruction=harness.settings.system_instruction,
            apply_chat_template=template is not None,
            chat_template=template,
            gen_prefix=task.doc_to_prefix(document),
        )
        built = task.construct_requests(
            doc=document,
            ctx=context,
            metadata=(task.task_name, at, task.config.repeats or 1),
            apply_chat_template=template is not None,
            chat_template=template,
        )
    except Exception as error:  # templates and samplers fail in types of their own
        raise EvaluationError(f"task '{task.task_name}': no prompt can be made: {error}") from None
    requests = tuple(built) if isinstance(built, list) else (built,)
    windows = tuple(_windows(harness.lm, request) for request in requests)
    longest = max((len(answer) for parts in windows for _, answer in parts), default=0)
    if longest > harness.lm.max_length:
        raise EvaluationError(
            f"task '{task.task_name}': an answer has {longest} tokens, more than the "
            f"{harness.lm.max_length} that evaluation.max_length or the model allows"
        )
    prompts = hashlib.sha256(repr([request.args for request in requests]).encode()).hexdigest()
    return Item(task, document, requests, windows, prompts)


def _windows(lm: Any, request: Instance) -> tuple[Window, ...]:
    """The token ids of a request, split as HFLM itself does."""
    match request.request_type:
        case "loglikelihood":
            return (_pair(lm, *cast("tuple[str, str]", request.args)),)
        case "loglikelihood_rolling":
            rolling = get_rolling_token_windows(
                token_list=lm.tok_encode(request.args[0]),
                prefix_token=lm.prefix_token_id,
                max_seq_len=lm.max_length,
                context_len=1,
            )
            return tuple(make_disjoint_window(window) for window in rolling)
        case _:
            return ()


def _pair(lm: Any, context: str, continuation: str) -> Window:
    if context:
        return lm._encode_pair(context, continuation)
    ids: list[int] = lm.tok_encode(continuation, add_special_tokens=False)
    if ids and lm.prefix_token_id == ids[0]:
        return ids[:1], ids[1:]
    return [lm.prefix_token_id], ids


def _answer(answering: Answering, items: Iterable[Item], layers: Keys | None) -> None:
    """Run every request, each kind in one go, and put the responses into it."""
    kinds: dict[str, list[Asked]] = {}
    for item in items:
        for request, windows in zip(item.requests, item.windows, strict=True):
            request.resps, request.filtered_resps = [], {}
            copies = [(request, windows)] * (request.repeats or 1)
            kinds.setdefault(request.request_type, []).extend(copies)
    for kind, asked in kinds.items():
        responses = answering.respond(kind, asked, layers)
        for (request, _), response in zip(asked, responses, strict=True):
            request.resps.append(response)


def _results(items: Sequence[Item]) -> dict[str, list[Value]]:
    """Filter the responses and have each task judge its items: metric key → values."""
    for task in {id(item.task): item.task for item in items}.values():
        task._instances = [r for item in items if item.task is task for r in item.requests]
        task.apply_filters()
    values: dict[str, list[Value]] = {}
    for item in items:
        for name in item.requests[0].filtered_resps:
            responses = [request.filtered_resps[name] for request in item.requests]
            for metric, value in item.task.process_results(item.document, responses).items():
                if (plain := _plain(value)) is not None:
                    values.setdefault(f"{metric},{name}", []).append(plain)
    return values


def _plain(value: Any) -> Value | None:
    """A metric's per-item result as numbers, or None for those that keep texts."""
    if isinstance(value, tuple | list):
        parts = [_plain(part) for part in value]
        flat = tuple(part for part in parts if isinstance(part, float))
        return flat if len(flat) == len(parts) else None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _score(benchmark: Benchmark, items: Sequence[Item], results: dict[str, list[Value]]) -> Score:
    values = results.get(benchmark.metric, [])
    if len(values) < len(items):
        lost = len(items) - len(values)
        reason = f"{lost} of {len(items)} items gave no number for {benchmark.metric}"
        return Score(benchmark.name, benchmark.metric, None, None, len(items), reason)
    return mean_score(benchmark.name, benchmark.metric, values, benchmark.aggregate)
