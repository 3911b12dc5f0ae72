"""Models to compare without a study: folders, hub ids, or recipes that are merged in memory."""

import hashlib
import json
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from evals.clusters import item_clusters
from evals.errors import EvaluationError
from evals.guards import disproportion, ranges
from evals.harness import Benchmark, Harness
from evals.items import Counts, Role
from evals.loading import TaskRequest, local_names
from evals.resampling import Clusters
from evals.resident import build_resident
from evals.scorecard import Scorecard
from evals.settings import Settings
from evals.symptoms import failing, flags, worst_of
from evals.tasks import OpenTask, open_tasks
from merge_core.apply import Workbench
from merge_core.checkpoint import Checkpoint
from merge_core.companions import Companion, write_companions
from merge_core.errors import MergeError
from merge_core.keys import nearest
from merge_core.parents import Parents
from merge_core.plan import MergePlan, compile_plan
from merge_core.vocabulary import align_vocabularies
from search.baselines import parent_recipe
from search.devices import find_device
from search.errors import NothingFound, StudyError
from search.merging import plan_file
from search.models import open_model
from search.placing import misplaced
from search.templates import no_template
from search.trial import attempt

WHERE = "outcross compare"
_DTYPES = ("float32", "float16", "bfloat16")
_UNTOLD = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """How a list of models is compared.

    Attributes:
        tasks: Names or files of lm-eval tasks, each perhaps with `:metric`. What follows the last
            colon is the metric, unless a local task or a file has the whole text as its name.
        reference: Names of the models that the others are compared with; none: the first one.
        items: Items of each task; None: all.
        include: Folders with local task YAMLs.
        num_fewshot: Overrides the tasks' own number of examples.
        seed: Of the choice and order of items, of few-shot examples and random masks.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        dtype: Of every model; `auto`: each model's own.
        settings: How to score.
    """

    tasks: tuple[str, ...]
    reference: tuple[str, ...] = ()
    items: int | None = None
    include: tuple[Path, ...] = ()
    num_fewshot: int | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    settings: Settings = Settings()  # noqa: RUF009


@dataclass(frozen=True, slots=True)
class Entrant:
    """A model in the comparison, ready to be put into a live model.

    Attributes:
        name: What the tables call it.
        plan: How it is made.
        checkpoints: Of what, by the names in the plan.
        files: Its tokenizer and what else stands beside weights.
        dtype: That it is scored in.
        warnings: What to know of its recipe.
    """

    name: str
    plan: MergePlan
    checkpoints: Mapping[str, Checkpoint]
    files: Mapping[str, Companion]
    dtype: torch.dtype
    warnings: tuple[str, ...] = ()

    @property
    def frame(self) -> str:
        """Equal for models that one live model and one set of prompts serve."""
        config = {key: value for key, value in self.plan.config.items() if key not in _UNTOLD}
        files = {
            name: file if isinstance(file, str) else hashlib.sha256(file.read_bytes()).hexdigest()
            for name, file in sorted(self.files.items())
        }
        names = sorted(step.out for step in self.plan.steps)
        return json.dumps([config, files, names, str(self.dtype)], sort_keys=True, default=str)


@dataclass(frozen=True, slots=True)
class Lineup:
    """Everything checked; nothing scored yet.

    Attributes:
        entrants: The models, in the order given.
        pairs: Candidate and reference of every comparison.
        tasks: The opened benchmarks; all items that are scored have the role of search items.
        device: Where models run.
    """

    entrants: tuple[Entrant, ...]
    pairs: tuple[tuple[str, str], ...]
    tasks: tuple[OpenTask, ...]
    device: torch.device


def check_lineup(models: Sequence[str], options: CompareOptions) -> Lineup:
    """Open models and tasks.

    Raises:
        StudyError: With every mistake.
    """
    mistakes: list[str] = []
    if len(models) < 2:
        mistakes.append(f"two models or more are needed to compare, got {len(models)}")
    if options.dtype not in ("auto", *_DTYPES):
        mistakes.append(f"--dtype: '{options.dtype}' is unknown; give auto, {', '.join(_DTYPES)}")
    device = find_device(options.device, mistakes)
    names = _names(models, mistakes)
    pairs = _pairs(names, models, options.reference, mistakes)
    tasks = _open_tasks(options, mistakes)
    entrants: list[Entrant] = []
    for name, text in zip(names, models, strict=True):
        try:
            entrants.append(_entrant(name, text, options, mistakes))
        except (MergeError, StudyError) as error:
            mistakes.append(str(error))
    if mistakes:
        raise StudyError(mistakes, WHERE)
    return Lineup(tuple(entrants), pairs, tasks, device)


def score_lineup(
    lineup: Lineup, options: CompareOptions, report: Callable[[str, Scorecard], None]
) -> tuple[dict[str, Scorecard], tuple[Benchmark, ...], dict[str, tuple[str, ...]]]:
    """Score every model; those of one architecture share a live model, one at a time in memory.

    Args:
        lineup: What to score.
        options: How.
        report: Called with each model's name and scorecard.

    Returns:
        Scorecards by name, in the order of the lineup; the benchmarks with their items; and what
        is strange about a model beside its references, by name: such as it is, it was given to be
        compared, so it is told and not refused.

    Raises:
        StudyError: If a live model or a prompt can't be made.
        NothingFound: If a model can't be scored: it holds numbers that are none, for one.
    """
    norms: dict[str, dict[str, float]] = {}
    found: dict[str, Scorecard] = {}
    benchmarks: tuple[Benchmark, ...] = ()
    by_frame = sorted(lineup.entrants, key=lambda entrant: entrant.frame)
    for _, alike in groupby(by_frame, key=lambda entrant: entrant.frame):
        entrants = tuple(alike)
        harness, slots = _live(entrants[0], lineup, options)
        benchmarks = harness.benchmarks
        for entrant in entrants:
            name = entrant.name
            found[name], norms[name] = _score(entrant, harness, slots, lineup.device)
            report(name, found[name])
    cards = {entrant.name: found[entrant.name] for entrant in lineup.entrants}
    return cards, benchmarks, _strange(lineup, cards, norms)


def _strange(
    lineup: Lineup, cards: Mapping[str, Scorecard], norms: Mapping[str, Mapping[str, float]]
) -> dict[str, tuple[str, ...]]:
    """What of each candidate is beyond all its references: norms, and shares of bad generations.

    Of references too: layers that stand where they can't do what they learnt.
    """
    found: dict[str, tuple[str, ...]] = {}
    for entrant in lineup.entrants:
        if told := misplaced(entrant.plan, entrant.checkpoints):
            found[entrant.name] = (told,)
    for name in dict.fromkeys(ours for ours, _ in lineup.pairs):
        others = [theirs for ours, theirs in lineup.pairs if ours == name]
        worst = worst_of([cards[other] for other in others])
        normal = ranges([norms[other] for other in others])
        told = (
            disproportion(norms[name], normal, "reference"),
            failing(cards[name], worst, "reference"),
            *flags(cards[name], worst, "reference"),
        )
        if any(told):
            found[name] = (*found.get(name, ()), *(text for text in told if text))
    return found


def item_clusters_of(lineup: Lineup) -> tuple[Clusters | None, ...]:
    """For each benchmark the cluster of each item; None if all are independent."""
    return tuple(item_clusters(task.name, task.documents(Role.SEARCH)) for task in lineup.tasks)


def _live(
    entrant: Entrant, lineup: Lineup, options: CompareOptions
) -> tuple[Harness, dict[str, torch.Tensor]]:
    """A live model of an entrant's kind with the prompts for it, and the model's tensors."""
    names = [step.out for step in entrant.plan.steps]
    config, dtype = entrant.plan.config, entrant.dtype
    try:
        with _companion_folder(entrant) as folder:
            resident = build_resident(config, folder, names, dtype, lineup.device)
        roles = (Role.SEARCH,)
        harness = Harness(resident, lineup.tasks, roles, options.settings)
    except EvaluationError as error:
        raise StudyError([f"{entrant.name}: {error}"], WHERE) from None
    return harness, resident.slots


def _score(
    entrant: Entrant, harness: Harness, slots: dict[str, torch.Tensor], device: torch.device
) -> tuple[Scorecard, dict[str, float]]:
    """The scorecard of a model and the norms of its tensors."""
    bench = Workbench(Parents(entrant.checkpoints, device), slots)
    outcome = attempt(lambda: entrant.plan, bench, harness, Role.SEARCH, measure=True)
    for name in tuple(bench.lent):
        bench.own(name)  # the next model must not be written into this one's files
    if outcome.scorecard is None:
        raise NothingFound(f"'{entrant.name}' can't be scored: {outcome.failure}")
    return outcome.scorecard, dict(outcome.norms or {})


@contextmanager
def _companion_folder(entrant: Entrant) -> Generator[Path]:
    with TemporaryDirectory() as folder:
        write_companions(entrant.files, Path(folder))
        text = json.dumps(dict(entrant.plan.config))
        (Path(folder) / "config.json").write_text(text, "utf-8")
        yield Path(folder)


def _entrant(name: str, text: str, options: CompareOptions, mistakes: list[str]) -> Entrant:
    path = Path(text)
    warnings: tuple[str, ...] = ()
    if path.suffix in (".yaml", ".yml"):
        *stages, job = plan_file(path, options.seed)
        if stages:
            raise StudyError(
                ["has several documents; write it with 'outcross merge' and compare the folder"],
                text,
            )
        recipe, aligned, plan, warnings = job.stage.recipe, job.aligned, job.plan, job.warnings
    else:
        recipe = parent_recipe(name)
        aligned = align_vocabularies(recipe, {name: open_model(text, Path(), name)})
        plan = compile_plan(recipe, aligned.checkpoints)
    wanted = options.settings.apply_chat_template
    repair = "give it one, or compare all without"
    if reason := no_template(wanted, recipe, aligned.files, aligned.checkpoints, repair):
        mistakes.append(f"--apply-chat-template: {reason}")
    largest = max(plan.steps, key=lambda step: torch.Size(step.shape).numel())
    dtype = largest.dtype if options.dtype == "auto" else getattr(torch, options.dtype, None)
    return Entrant(name, plan, aligned.checkpoints, aligned.files, dtype or largest.dtype, warnings)


def _names(models: Sequence[str], mistakes: list[str]) -> list[str]:
    """The last part of each path; the whole text where that isn't enough to tell them apart."""
    short = [Path(text).name or text for text in models]
    pairs = zip(short, models, strict=True)
    names = [text if short.count(last) > 1 else last for last, text in pairs]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        mistakes.append(f"'{name}' is listed twice")
    return names


def _pairs(
    names: Sequence[str], models: Sequence[str], reference: Iterable[str], mistakes: list[str]
) -> tuple[tuple[str, str], ...]:
    """Every candidate with every reference; a reference is no candidate."""
    known = dict(zip(models, names, strict=True)) | {name: name for name in names}
    references: list[str] = []
    for text in reference:
        if text in known:
            references.append(known[text])
        else:
            mistakes.append(f"--reference: '{text}' is none of the models; {nearest(text, names)}")
    references = references or list(names[:1])
    candidates = [name for name in names if name not in references]
    if not candidates and len(names) > 1:
        mistakes.append("--reference: every model is a reference; leave one to be compared")
    return tuple((candidate, other) for candidate in candidates for other in references)


def _open_tasks(options: CompareOptions, mistakes: list[str]) -> tuple[OpenTask, ...]:
    for folder in options.include:
        if not folder.is_dir():
            mistakes.append(f"--include: {folder} is no folder")
    folders = [folder.resolve() for folder in options.include if folder.is_dir()]
    local = local_names(folders) if any(":" in text for text in options.tasks) else frozenset[str]()
    requests = [read_task(text, local, options.num_fewshot) for text in options.tasks]
    if len({request.task for request in requests}) < len(requests):
        mistakes.append("--tasks: a task is listed twice")
        return ()

    def report(_: int, text: str) -> None:
        told = text.replace("under 'items'", "with --items")
        mistakes.append(f"--tasks: {told}")

    counts = Counts(options.items, 0, 0)
    return open_tasks(requests, counts, options.seed, folders, report)


def read_task(text: str, local: Collection[str], num_fewshot: int | None = None) -> TaskRequest:
    """A task as it is typed, perhaps with `:metric`, or the path of its YAML file.

    A name with a colon in it is looked for as a whole first.

    Args:
        text: As typed; paths are relative to the working directory.
        local: Names of local tasks.
        num_fewshot: Overrides the task's own number of examples.
    """
    task, colon, metric = text.rpartition(":")
    if not colon or text in local or Path(text).is_file():
        task, metric = text, ""
    file = Path(task)
    return TaskRequest(
        file.stem if file.is_file() else task,
        metric or None,
        num_fewshot,
        file=file.resolve() if file.is_file() else None,
    )
