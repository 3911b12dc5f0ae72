# pyright: standard
"""Score a live model on a study's items.

Tasks, prompts and token ids are made once per study; a candidate costs forward passes. The tasks,
filters and metrics are lm-eval's own.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from itertools import accumulate
from typing import Any, cast

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import aggregate_subtask_metrics, mean
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from evals.activations import Keys, used_after
from evals.answering import Answering, Asked, Part
from evals.errors import EvaluationError
from evals.figures import FIGURES, figure_name, keep, whole
from evals.guards import disagreement
from evals.items import Role
from evals.pieces import Piece, joined
from evals.places import rooted
from evals.prefixes import Window
from evals.prompts import Requests, build_requests
from evals.racing import rung_ends
from evals.resident import Resident
from evals.rewiring import Kind
from evals.scorecard import Score, Scorecard, Value, mean_score
from evals.settings import Settings
from evals.signals import choose_signal, signal_of
from evals.symptoms import shares_of, symptoms
from evals.tasks import OpenTask


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
        subtask: Number of its task in the benchmark.
    """

    task: ConfigurableTask = field(repr=False)
    document: Any
    requests: tuple[Instance, ...] = field(repr=False)
    windows: tuple[tuple[Window, ...], ...] = field(repr=False)
    digest: str
    subtask: int = 0


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A task, or a group's tasks, with its items by role.

    Attributes:
        name: As the study calls it.
        metric: lm-eval's key of the metric that the study looks at, such as `acc_norm,none`.
        higher_is_better: Direction of that metric.
        weight: What it counts in the objective.
        items: By role, in the ledger's order.
        signal: What the search looks at, as a scorecard calls it; None for the metric.
        turned: Whether the study wants the metric against its own direction.
        by_size: Whether a group's figure weighs its tasks by their sizes, as lm-eval's default is.
        soft: Whether the search reads the signal, a margin, as a soft accuracy.
    """

    name: str
    metric: str
    higher_is_better: bool
    weight: float
    items: Mapping[Role, tuple[Item, ...]]
    signal: str | None = None
    turned: bool = False
    by_size: bool = True
    soft: bool = False

    def aggregate(self, values: Sequence[Value]) -> float:
        """The metric's own way from what is kept of one task's items to one figure."""
        return whole(self.aggregations[self.metric.split(",")[0]], values)

    @property
    def aggregations(self) -> Mapping[str, Callable[[list[Any]], float]]:
        """lm-eval's aggregation of each metric that the task has, by lm-eval's name."""
        task = self._task
        return {self.metric.split(",")[0]: mean} if task is None else task.aggregation()

    @property
    def nats(self) -> str | None:
        """Under what name a scorecard has log-likelihoods of right-or-wrong items, if it has."""
        task = self._task
        continued = task is not None and task.OUTPUT_TYPE == "loglikelihood"
        counted = self.signal is None and self.metric.startswith("acc,")
        return "nats" if continued and counted else None

    @property
    def keys(self) -> tuple[str, ...]:
        """Every metric of the task under each of its filters, as a scorecard calls them."""
        task = self._task
        names = [ensemble.name for ensemble in task._filters] if task else []
        every = [f"{metric},{name}" for metric in self.aggregations for name in names]
        return tuple(dict.fromkeys((self.metric, *every)))

    def better(self, metric: str) -> bool:
        """Whether a higher figure of a metric is better by the task's own word."""
        task = self._task
        return True if task is None else bool(task.higher_is_better().get(metric, True))

    @property
    def _task(self) -> ConfigurableTask | None:
        return next((items[0].task for items in self.items.values() if items), None)

    def figure(self, values: Sequence[Value], role: Role) -> float:
        """The benchmark's figure as lm-eval gives it: of its tasks, then of the group.

        Args:
            values: Of all the role's items, or of the first.
            role: Whose items they are.
        """
        return self.pooled({role: values})

    def pooled(self, found: Mapping[Role, Sequence[Value]]) -> float:
        """The same of the items of several roles together, each role's values as in `figure`."""
        parts: dict[int, list[Value]] = {}
        for role, values in found.items():
            for item, value in zip(self.items[role][: len(values)], values, strict=True):
                parts.setdefault(item.subtask, []).append(value)
        figures = [self.aggregate(part) for part in parts.values()]
        if len(figures) == 1:
            return figures[0]
        sizes = [len(part) for part in parts.values()]
        return float(aggregate_subtask_metrics(figures, sizes, self.by_size))

    def members(self, role: Role) -> tuple[int, ...]:
        """The number of each item's task in its group, in the ledger's order."""
        return tuple(item.subtask for item in self.items.get(role, ()))

    @property
    def digest(self) -> str:
        """sha256 over the prompts of the search items: changes when anything about them does."""
        seen = hashlib.sha256(f"{self.name} {self.metric}".encode())
        for item in self.items.get(Role.SEARCH, ()):
            seen.update(item.digest.encode())
        return seen.hexdigest()


class Harness:
    """Scores whatever a resident model currently is.

    Args:
        resident: The live model.
        tasks: The study's opened benchmarks.
        roles: Which items to make ready; a search never gets the holdout's.
        settings: How to score.
        rungs: Shares of the search items after which a caller may look; each rung has batches of
            its own, the same for every candidate. Other roles' items are scored in one go.

    Raises:
        EvaluationError: If a prompt can't be made, or model and tokenizer don't fit each other.
    """

    def __init__(
        self,
        resident: Resident,
        tasks: Sequence[OpenTask],
        roles: Sequence[Role],
        settings: Settings,
        rungs: Sequence[float] = (1.0,),
    ) -> None:
        self.settings = settings
        self.shares = tuple(rungs)
        if reason := disagreement(resident.model, resident.tokenizer):
            raise EvaluationError(reason)
        self.lm = _language_model(resident, settings)
        self.answering = Answering(self.lm, settings.batch_size)
        self._slots = resident.slots
        self._wiring = resident.wiring
        self.benchmarks = tuple(_build_benchmark(self, task, roles) for task in tasks)

    def rewire(self, config: Mapping[str, Any]) -> None:
        """Give the live model the layers that a plan's `config.json` describes.

        Raises:
            EvaluationError: If it can't have them.
        """
        if self._wiring is not None:
            self._wiring.rewire(config)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What the configuration says of each layer that the live model has now."""
        return () if self._wiring is None else self._wiring.kinds

    @cached_property
    def rooted(self) -> str | None:
        """Why the live model's layers must keep their places; None if a plan may move them."""
        return None if self._wiring is None else rooted(self.lm.model, self._wiring)

    @cached_property
    def after(self) -> frozenset[str]:
        """Names of the tensors that only work on what the last layer gives."""
        late = {id(tensor) for tensor in used_after(self.lm.model)}
        return frozenset(name for name, slot in self._slots.items() if id(slot) in late)

    @cached_property
    def prompt(self) -> list[int]:
        """Token ids of a real prompt, at most 32: for a look at a candidate's health."""
        first = next(iter(self.benchmarks[0].items.values()))[0].requests[0]
        return self.lm.tok_encode(first.args[0])[:32] or [self.lm.prefix_token_id]

    def score(self, role: Role, layers: Keys | None = None) -> Scorecard:
        """Score the model as it is now on the items of one role.

        A benchmark that gives no finite number is a missing score with its reason.

        Args:
            role: Which items.
            layers: What stands for the weights before the layers and in each layer; equal layers
                at the bottom of two candidates are run once.

        Raises:
            EvaluationError: If the harness was built without that role's items.
        """
        return self.card(role, reduce(joined, self.pieces(role, layers)))

    def score_rungs(self, role: Role, layers: Keys | None = None) -> Iterator[Scorecard]:
        """Score rung by rung; a caller that has seen enough takes no further card.

        Args:
            role: Which items.
            layers: As in `score`.

        Returns:
            A scorecard of the items so far after each rung. The last is that of `score`, to the
            bit: that runs the same batches.

        Raises:
            EvaluationError: If the harness was built without that role's items.
        """
        pieces = self.pieces(role, layers)
        return (self.card(role, piece) for piece in accumulate(pieces, joined))

    def pieces(
        self, role: Role, layers: Keys | None = None, rungs: range | None = None
    ) -> Iterator[Piece]:
        """Answer rung by rung; `card` makes scores of the pieces once they are joined.

        Args:
            role: Which items.
            layers: As in `score`.
            rungs: Which of `rungs(role)`; None for all.

        Returns:
            The results of each rung's own items, the same whichever rungs are answered beside it.

        Raises:
            EvaluationError: If the harness was built without that role's items.
        """
        if any(role not in benchmark.items for benchmark in self.benchmarks):
            raise EvaluationError(f"the {role} items are sealed: this process was built without")
        ends = self.rungs(role)
        spans = [*zip(((0,) * len(self.benchmarks), *ends), ends, strict=False)]
        chosen = spans if rungs is None else [spans[at] for at in rungs]
        return (self._piece(role, layers, *span) for span in chosen)

    def card(self, role: Role, piece: Piece) -> Scorecard:
        """The scorecard of a role's first items, by what they gave.

        Args:
            role: Whose items they are.
            piece: From the first rung on.
        """
        pairs = zip(self.benchmarks, piece.results, strict=True)
        known = {one.name: {key: list(values) for key, values in got.items()} for one, got in pairs}
        counted = zip(self.benchmarks, piece.counts, strict=True)
        scores = tuple(score_of(one, role, known[one.name], count) for one, count in counted)
        found = zip(self.benchmarks, piece.symptoms, strict=True)
        told = {one.name: shares_of(tallies) for one, tallies in found if tallies}
        return Scorecard(scores, known, piece.seconds, role, told)

    def rungs(self, role: Role) -> tuple[tuple[int, ...], ...]:
        """How many items of each benchmark have been scored after each rung, `(benchmarks,)` each.

        They are the first in the ledger's order, so each rung holds those before it.
        """
        counts = [len(benchmark.items[role]) for benchmark in self.benchmarks]
        return rung_ends(counts, self.shares if role is Role.SEARCH else (1.0,))

    def _piece(
        self, role: Role, layers: Keys | None, starts: Sequence[int], ends: Sequence[int]
    ) -> Piece:
        """What the items between two rungs give."""
        begun = time.perf_counter()
        every = [benchmark.items[role] for benchmark in self.benchmarks]
        fresh = [items[a:b] for items, a, b in zip(every, starts, ends, strict=True)]
        self._answer([item for items in fresh for item in items], role, layers)
        pairs = zip(self.benchmarks, fresh, strict=True)
        results = tuple(_results(benchmark, items) for benchmark, items in pairs)
        found = tuple(symptoms(self.lm, items) for items in fresh)
        counts = tuple(len(items) for items in fresh)
        return Piece(counts, results, found, time.perf_counter() - begun)

    @torch.inference_mode()
    def _answer(self, items: Sequence[Item], role: Role, layers: Keys | None) -> None:
        """Run every request, each kind in one go, and put the responses into it."""
        torch.manual_seed(self.settings.torch_seed)  # sampled generations: common random numbers
        share = len(items) / sum(len(benchmark.items[role]) for benchmark in self.benchmarks)
        kinds: dict[str, list[Asked]] = {}
        for item in items:
            for request, windows in zip(item.requests, item.windows, strict=True):
                request.resps, request.filtered_resps = [], {}
                copies = [(request, windows)] * (request.repeats or 1)
                kinds.setdefault(request.request_type, []).extend(copies)
        for kind, asked in kinds.items():
            responses = self.answering.respond(kind, asked, layers, Part(role, share))
            for (request, _), response in zip(asked, responses, strict=True):
                request.resps.append(response)


def score_of(
    benchmark: Benchmark, role: Role, results: Mapping[str, Sequence[Value]], count: int
) -> Score:
    """A benchmark's figure by its metric; a missing one with its reason.

    Args:
        benchmark: With the role's items.
        role: Whose items they are.
        results: Per-item results by metric, of the first items.
        count: How many items those are.
    """
    values = results.get(benchmark.metric, [])
    if len(values) < count:
        reason = f"{count - len(values)} of {count} items gave no number for {benchmark.metric}"
        return Score(benchmark.name, benchmark.metric, None, None, count, reason)
    found = mean_score(
        benchmark.name, benchmark.metric, values, lambda given: benchmark.figure(given, role)
    )
    figure = figure_name(benchmark.aggregations[benchmark.metric.split(",")[0]])
    # The plain standard error is of a mean over items, which an equal vote of tasks is not.
    error = found.stderr if benchmark.by_size else None
    return replace(found, stderr=error, unit=FIGURES[figure].unit if figure else 1.0)


def _language_model(resident: Resident, settings: Settings) -> Any:
    model: Any = HFLM  # its decorator hides the constructor's signature
    return model(
        pretrained=resident.model,
        tokenizer=resident.tokenizer,
        batch_size=1,  # answering sets it
        max_length=settings.max_length,
        softmax_dtype="float32",  # bf16 log-softmax is off by up to 0.5 nat and makes exact ties
        **settings.model_arguments,
    )


def _build_benchmark(harness: Harness, opened: OpenTask, roles: Sequence[Role]) -> Benchmark:
    built: dict[tuple[int, int], Item] = {}
    for number, subtask in enumerate(opened.subtasks):
        wanted = {
            at: opened.hashes[place]
            for role in roles
            for place in opened.split.roles[role]
            for part, at in [opened.places[place]]
            if part == number
        }
        if wanted and not subtask.documents:
            raise EvaluationError(f"task '{opened.name}': its documents are sealed; open it again")
        made = build_requests(subtask, wanted, harness.lm, harness.settings)
        for at, requests in made.items():
            document = subtask.documents[at]
            built[number, at] = _build_item(harness, subtask.task, document, requests, number)
    items = {
        role: tuple(built[opened.places[place]] for place in opened.split.roles[role])
        for role in roles
    }
    every = list(built.values())
    signal = choose_signal(
        opened.signal,
        opened.metric.split(",")[0],
        opened.name,
        [item.task for item in every],
        [item.document for item in every],
    )
    return Benchmark(
        opened.name,
        opened.metric,
        opened.higher_is_better,
        opened.weight,
        items,
        "margin" if signal == "soft_accuracy" else signal,
        opened.turned,
        opened.by_size,
        signal == "soft_accuracy",
    )


def _build_item(
    harness: Harness, task: ConfigurableTask, document: Any, requests: Requests, number: int
) -> Item:
    lm, settings = harness.lm, harness.settings
    windows = tuple(_windows(lm, request) for request in requests)
    longest = max((len(answer) for parts in windows for _, answer in parts), default=0)
    if longest > lm.max_length:
        raise EvaluationError(
            f"task '{task.task_name}': an answer has {longest} tokens, more than the "
            f"{lm.max_length} that evaluation.max_length or the model allows"
        )
    if settings.enable_thinking and any(r.request_type != "generate_until" for r in requests):
        raise EvaluationError(
            f"task '{task.task_name}': enable_thinking has a meaning for generations only"
        )
    prompts = hashlib.sha256(repr([request.args for request in requests]).encode()).hexdigest()
    return Item(task, document, requests, windows, prompts, number)


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


def _results(benchmark: Benchmark, items: Sequence[Item]) -> dict[str, list[Value]]:
    """Filter the responses and have each task judge its items: metric key → values.

    A search signal stands beside the metrics under its own name, or what is known of exact
    continuations beyond right and wrong.
    """
    for task in {id(item.task): item.task for item in items}.values():
        task._instances = [r for item in items if item.task is task for r in item.requests]
        task.apply_filters()
        task._instances = None
    found: dict[str, list[tuple[Item, Any]]] = {}
    signals: list[Value] = []
    metric, signal = benchmark.metric.split(",")[0], benchmark.signal
    beside = signal or benchmark.nats
    for item in items:
        for name in item.requests[0].filtered_resps:
            responses = [request.filtered_resps[name] for request in item.requests]
            for key, value in item.task.process_results(item.document, responses).items():
                found.setdefault(f"{key},{name}", []).append((item, value))
        answers = [request.resps[0] for request in item.requests] if beside else []
        if signal is not None:
            signals.append(signal_of(signal, metric, item.task, item.document, answers))
        elif beside is not None:
            signals.append(float(answers[0][0]))
    values = {key: _kept(key.split(",")[0], results) for key, results in found.items()}
    if beside is not None:
        values[beside] = signals
    return {key: kept for key, kept in values.items() if kept}


def _kept(metric: str, results: Sequence[tuple[Item, Any]]) -> list[Value]:
    """What is kept of each item's result, task by task; an item without a number is left out."""
    kept: list[Value | None] = [None] * len(results)
    for number in dict.fromkeys(item.subtask for item, _ in results):
        places = [at for at, (item, _) in enumerate(results) if item.subtask == number]
        aggregate = results[places[0]][0].task.aggregation().get(metric)
        values = keep(aggregate, [results[at][1] for at in places])
        for at, value in zip(places, values, strict=True):
            kept[at] = value
    return [value for value in kept if value is not None]
