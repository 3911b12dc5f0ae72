"""A study made ready: every check done, the parents open, the model resident, the items built."""

import json
from collections.abc import Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from evals.answering import Practice
from evals.clusters import item_clusters
from evals.errors import EvaluationError
from evals.folding import refusal as unfoldable
from evals.guards import Range
from evals.harness import Harness
from evals.items import Counts, Role
from evals.loading import TaskRequest
from evals.objective import Reading, reading
from evals.racing import Rule
from evals.resampling import Clusters
from evals.resident import Resident, build_resident
from evals.rungs import affordable
from evals.settings import Settings
from evals.signals import SHARES
from evals.tasks import OpenTask, open_tasks, seal
from evals.texts import CHARS, text_task
from merge_core.alignment import Aligned
from merge_core.apply import Workbench, apply
from merge_core.chat_templates import AUTO, NAMED
from merge_core.checkpoint import Checkpoint, digest
from merge_core.companions import Companion, companions, write_companions
from merge_core.errors import MergeError
from merge_core.heads import with_heads
from merge_core.packs import Pack
from merge_core.parents import Parents
from merge_core.plan import MergePlan, MergeStep, compile_plan
from merge_core.recipe import DTYPE_NAMES, Recipe
from merge_core.vocabulary import align_vocabularies
from merge_core.writers import powers
from search.baselines import baselines, parent_recipe
from search.chain import all_of, stored_study
from search.config import ObjectiveConfig, StudyConfig, parse, read_yaml
from search.devices import find_device
from search.errors import ScorerError, StudyError
from search.functions import Scorer, load_scorer
from search.genome import is_genome, read_genome
from search.goals import Goals, goals_of
from search.holes import build_space
from search.models import open_models
from search.placing import names_layers, orders, refuse_moves, scaled_origins, unfolded
from search.probing import Planned, hopeless, unmatched
from search.samplers import Used, choose_sampler, refusal
from search.space import SearchSpace, plain, tensor_groups
from search.templates import no_template

_FEWEST_FOR_RACES = 100  # items; an eighth of fewer fills no batch


@dataclass(frozen=True, slots=True)
class CheckedStudy:
    """A study file without mistakes; no model has been built yet.

    Attributes:
        config: The file.
        folder: The folder that its paths are relative to.
        space: What is searched.
        checkpoints: The opened parents by alias, their rows in the output's vocabulary.
        files: What stands beside the output's weights: its tokenizer, for one.
        warnings: What to know of the parents' vocabularies, and of a genome file's reading.
        tasks: The opened benchmarks.
        dtype: Of the resident model and of what is written.
        device: Where it runs.
        scorers: The user's own functions by objective.
    """

    config: StudyConfig
    folder: Path
    space: SearchSpace
    checkpoints: Mapping[str, Checkpoint]
    files: Mapping[str, Companion]
    warnings: tuple[str, ...]
    tasks: tuple[OpenTask, ...]
    dtype: torch.dtype
    device: torch.device
    scorers: Mapping[str, Scorer] = field(default_factory=dict[str, Scorer])

    @property
    def storage(self) -> str:
        """Folder or URL of the storage."""
        return self.config.location

    @property
    def scratch(self) -> Path | None:
        """Where tensors are laid down that no file holds: a disk, which /tmp may not be."""
        folder = self.folder / self.storage
        return folder if "://" not in self.storage and folder.is_dir() else None

    def sampler(self, used: Used = ()) -> tuple[str, str]:
        """The sampler's word and why it was chosen.

        Args:
            used: What proposed in the study so far.
        """
        search, values = self.config.search, self.config.values
        return choose_sampler(search.sampler, self.space, search.trials, values, used)

    def plan(self, recipe: Recipe, *, judge: bool = True) -> MergePlan:
        """The plan of a recipe in the study's dtype: float32 arithmetic, rounded once at the end.

        Args:
            recipe: A candidate's, or a parent's.
            judge: See `compile_plan`.

        Raises:
            RecipeError: If the recipe doesn't fit the parents.
        """
        seed = self.config.search.seed
        return compile_plan(self.exact(recipe), self.checkpoints, seed, judge=judge)

    def exact(self, recipe: Recipe) -> Recipe:
        """The recipe with the dtypes that make mergekit compute what we do."""
        return _exact(recipe, self.dtype)

    def clusters(self, role: Role) -> tuple[Clusters | None, ...]:
        """For each benchmark the cluster of each of a role's items; None if all are independent.

        Only before a bench is built, which seals the documents.

        Raises:
            EvaluationError: If the items lack the field that the study names.
        """
        pairs = zip(self.config.benchmarks, self.tasks, strict=True)
        return tuple(
            item_clusters(task.name, task.documents(role), objective.cluster)
            for objective, task in pairs
        )


@dataclass(frozen=True, slots=True)
class Reference:
    """What is normal, learnt from the parents once they are scored.

    Attributes:
        norms: The parents' norms by tensor.
        worst: The parents' largest share of each symptom by benchmark.
        practice: How requests came to be answered in this study; None if that wasn't kept.
    """

    norms: Mapping[str, Range]
    worst: Mapping[str, Mapping[str, float]]
    practice: Practice | None = None


@dataclass(slots=True)
class Bench:
    """Everything that scoring a candidate needs, built once.

    Attributes:
        study: The checked study.
        workbench: Parents and live tensors.
        harness: Scores the live model.
        norms: The parents' norms by tensor, once they are known.
        worst: The parents' largest share of each symptom by benchmark, once they are scored.
        looked: The step that made each tensor that was last found healthy.
        normal: The norms that a tensor made of these should have, as far as they were asked for.
        rooted: Why layers must keep their places; None if a recipe may move them, or none could.
        readings: How the benchmarks' results are read, in the order of the study.
        goals: What the study wants.
    """

    study: CheckedStudy
    workbench: Workbench
    harness: Harness
    norms: Mapping[str, Range] = field(default_factory=dict[str, Range])
    worst: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])
    looked: dict[str, MergeStep] = field(default_factory=dict[str, MergeStep])
    normal: dict[Hashable, Range | None] = field(default_factory=dict[Hashable, "Range | None"])
    rooted: str | None = None
    readings: tuple[Reading, ...] = field(init=False)
    goals: Goals = field(init=False)

    def __post_init__(self) -> None:
        benchmarks = self.harness.benchmarks
        self.readings = tuple(reading(benchmark) for benchmark in benchmarks)
        self.goals = goals_of(self.study.config, benchmarks, self.readings)

    def learn(self, reference: Reference) -> None:
        """Hold every later candidate against the parents; what was looked at before was not."""
        self.norms, self.worst = reference.norms, reference.worst
        if reference.practice is not None:
            self.harness.answering.adopt(reference.practice)
        self.looked.clear()
        self.normal.clear()

    def plan(self, recipe: Recipe, *, judge: bool = True) -> MergePlan:
        """The plan of a candidate.

        Args:
            recipe: The candidate.
            judge: See `compile_plan`.

        Raises:
            RecipeError: If the recipe doesn't fit the parents.
            EvaluationError: If it moves layers that must keep their places.
        """
        made = self.study.plan(recipe, judge=judge)
        if self.rooted is not None:
            refuse_moves(made, self.study.checkpoints, self.rooted)
        return made

    def scaled(self, scales: Sequence[float]) -> None:
        """Read soft accuracies by these scales, in the order of the benchmarks."""
        pairs = zip(self.readings, scales, strict=True)
        self.readings = tuple(replace(one, scale=scale) for one, scale in pairs)
        self.goals = goals_of(self.study.config, self.harness.benchmarks, self.readings)

    def clusters(self, role: Role) -> tuple[Clusters | None, ...]:
        """For each benchmark the cluster of each of a role's items; None if all are independent."""
        pairs = zip(self.study.config.benchmarks, self.harness.benchmarks, strict=True)
        return tuple(
            item_clusters(b.name, [item.document for item in b.items[role]], objective.cluster)
            for objective, b in pairs
        )


def check_study(path: Path, trials: int | None = None) -> CheckedStudy:
    """Read a study file and check all of it before anything is spent.

    Args:
        path: The file.
        trials: Another budget than the file's.

    Raises:
        StudyError: With every mistake, each with its YAML path.
    """
    data = read_yaml(path)
    folder = path.resolve().parent
    mistakes: list[str] = []
    notes: tuple[str, ...] = ()
    entries = "tasks" if is_genome(data) else "objectives"  # as the file calls them
    if is_genome(data):
        genome = read_genome(data, path, mistakes)
        data, notes = genome.study, genome.notes
        if mistakes:
            raise StudyError(mistakes, str(path))
    config = parse(data, mistakes)
    if config is None:
        _check_recipe_alone(data, mistakes)
        raise StudyError(mistakes, str(path))
    if trials is not None:
        search = config.search.model_copy(update={"trials": trials})
        config = config.model_copy(update={"search": search})
    unopened: list[str] = []
    checkpoints = open_models(config.models, folder, unopened)
    space = _space(config, folder, checkpoints, mistakes)
    mistakes += unopened
    aligned = Aligned(checkpoints, {}, ())
    if fits := not mistakes:
        aligned = _aligned(space, checkpoints, mistakes)
        fits = not mistakes
    tasks = _open_tasks(config, folder, mistakes, entries)
    mistakes += _beyond_reach(config, tasks)
    scorers = _load_scorers(config, folder, mistakes)
    device = find_device(config.device, mistakes)
    if not fits:  # whatever else is wrong would only follow from that
        raise StudyError(mistakes, str(path))
    models, files = aligned.checkpoints, aligned.files
    dtype = _dtype(config.dtype, space, models)
    planned = partial(_planned, dtype=dtype, checkpoints=models)
    mistakes += (
        *_misfits(config, space, models, planned),
        *_unprompted(config, space, aligned),
    )
    if mistakes:
        raise StudyError(mistakes, str(path))
    plan = planned(space.decode(space.starts()[0]), judge=False)
    silent = unmatched(space, models, planned)
    warnings = tuple(dict.fromkeys((*notes, *aligned.warnings, *plan.warnings, *silent)))
    opened = (config, folder, space, models, files, warnings, tasks, dtype, device)
    return CheckedStudy(*opened, scorers)


def _space(
    config: StudyConfig,
    folder: Path,
    checkpoints: Mapping[str, Checkpoint],
    mistakes: list[str],
) -> SearchSpace:
    """The space as the study's sampler wants it: orders of layers can be choices or numbers.

    Under `auto` a study that has been run keeps the form that it has: another budget might want the
    other one, and it would no longer be the same study.
    """

    def built(found: list[str], *, numbers: bool) -> SearchSpace:
        return build_space(config.recipe, config.models, found, checkpoints, numbers=numbers)

    search = config.search
    space = built(mistakes, numbers=search.sampler == "cmaes")
    if search.sampler != "auto" or mistakes:
        return space
    other = built([], numbers=True)
    if other.describe() == space.describe():
        return space
    study = stored_study(config.location, folder, config.name)
    known = () if study is None else (study, *reversed(all_of(study)))  # one may be gone back to
    for one in known:
        stated = json.dumps(one.user_attrs.get("protocol", {}).get("space"))
        for form in (space, other):
            if json.dumps(form.describe()) == stated:
                return form
    word, _ = choose_sampler("auto", space, search.trials, config.values)
    return other if word == "cmaes" else space


def build_bench(study: CheckedStudy, roles: Sequence[Role]) -> Bench:
    """Build the resident model and the items of the given roles; then seal the tasks.

    No document of another role stays in memory: a bench that was built for a search can't read the
    holdout, whatever it is asked.

    Raises:
        StudyError: If the model can't be built.
    """
    plan = deepest(study)
    names = [step.out for step in plan.steps]
    evaluation = study.config.evaluation
    settings = Settings(**evaluation.model_dump(exclude={"tasks", "gen_kwargs", "metadata"}))
    try:
        with _tokenizer_folder(study, plan.donor) as folder:
            resident = build_resident(plan.config, folder, names, study.dtype, study.device)
        harness = Harness(resident, study.tasks, roles, settings)
        if Role.SEARCH in roles:
            harness.shares = _foreseen_rungs(study) or affordable(harness)
        parents = Parents(study.checkpoints, study.device, study.scratch)
        packs = [Pack(*pack) for pack in resident.packs]
        bench = Bench(study, Workbench(parents, resident.slots, packs), harness)
        _check_places(bench)
    except EvaluationError as error:
        raise StudyError([str(error)]) from None
    seal(study.tasks)
    if refusals := tuple(_unscalable(bench, resident)):
        raise StudyError(refusals)
    return bench


def _unscalable(bench: Bench, resident: Resident) -> Iterator[str]:
    """Why the scales that the study searches can't be folded into the weights, if they can't."""
    study = bench.study
    for name, writers in scaled_origins(study.space).items():
        plan = study.plan(parent_recipe(name))
        bench.harness.rewire(plan.config)
        apply(plan, bench.workbench)
        if reason := unfoldable(resident, powers(study.checkpoints[name], writers)):
            yield unfolded(name, reason)


def deepest(study: CheckedStudy) -> MergePlan:
    """Of all that the live model will hold, parents and candidates, the plan with most layers."""
    space = study.space
    candidates = map(space.decode, chain(space.starts()[:1], space.probes()))
    recipes = chain(candidates, baselines(space).values())
    plans = (study.plan(recipe, judge=False) for recipe in recipes)
    return max(plans, key=lambda plan: plan.depth)


def _check_places(bench: Bench) -> None:
    """Find out whether layers may be moved, if any recipe could."""
    recipes = list(orders(bench.study.space))
    bench.rooted = bench.harness.rooted if names_layers(recipes) else None
    for recipe in recipes if bench.rooted else ():
        bench.plan(recipe, judge=False)


def _foreseen_rungs(study: CheckedStudy) -> tuple[float, ...] | None:
    """After which shares of the search items a candidate may be stopped; all: it may not.

    None where that depends on how long the prompts are.
    """
    wanted = study.config.search.racing
    items = sum(len(task.split.roles[Role.SEARCH]) for task in study.tasks)
    if wanted == "always":
        return Rule().rungs
    return None if wanted and items >= _FEWEST_FOR_RACES else (1.0,)


def protocol(bench: Bench) -> dict[str, Any]:
    """Everything that makes two trials comparable; a study is resumed only under the same."""
    return {
        **foreseen_protocol(bench.study),
        "prompts": {b.name: b.digest for b in bench.harness.benchmarks},
        "rungs": list(bench.harness.shares),  # they decide the batches in which items are scored
    }


def foreseen_protocol(study: CheckedStudy) -> dict[str, Any]:
    """What of a study's protocol is known without a model: no prompts, and rungs not always."""
    config, rungs = study.config, _foreseen_rungs(study)
    clusters = {o.name: o.cluster for o in config.objectives if o.cluster}
    functions = {name: scorer.digest for name, scorer in study.scorers.items()}
    found: dict[str, Any] = {
        "space": study.space.describe(),
        "recipe": plain(study.space.template),
        "models": {alias: digest(parent) for alias, parent in study.checkpoints.items()},
        "objectives": [_stated(objective) for objective in config.objectives],
        **({"functions": functions} if functions else {}),
        **({"goal": config.search.goal} if config.search.goal != "mean" else {}),
        "contents": {task.name: task.digest for task in study.tasks},
        "items": config.items.model_dump(),
        **({"clusters": clusters} if clusters else {}),  # its roles are dealt by them
        "evaluation": config.evaluation.model_dump(exclude={"tasks"}),
        "seed": config.search.seed,
        **({} if rungs is None else {"rungs": list(rungs)}),
        "dtype": str(study.dtype).removeprefix("torch."),
        "lm_eval": version("lm_eval"),
    }
    return json.loads(json.dumps(found))  # as it is read back


def _stated(objective: ObjectiveConfig) -> dict[str, Any]:
    """An objective as its protocol; keys that came later are left out where they say nothing."""
    later = {"text", "model", "function", "chars", "floor", "at_most"}
    silent = {key for key in later if getattr(objective, key) is None}
    return objective.model_dump(exclude={"cluster", *silent})


def _aligned(
    space: SearchSpace, checkpoints: Mapping[str, Checkpoint], mistakes: list[str]
) -> Aligned:
    """One vocabulary and one kind of head for all parents.

    No hole changes them, so any candidate speaks for all.
    """
    try:
        recipe = space.everyone()
        aligned = align_vocabularies(recipe, checkpoints)
        parents = {model: aligned.checkpoints[model] for model in recipe.models}
        return replace(aligned, checkpoints={**aligned.checkpoints, **with_heads(parents)})
    except MergeError as error:
        mistakes.append(f"recipe: {error}" if not str(error).startswith("recipe") else str(error))
        return Aligned(checkpoints, {}, ())


@contextmanager
def _tokenizer_folder(study: CheckedStudy, donor: str) -> Generator[Path]:
    """Where the output's tokenizer can be loaded from: the donor's folder if it is the donor's."""
    checkpoint = study.checkpoints[donor]
    if study.files == companions(checkpoint):
        yield checkpoint.folder
        return
    with TemporaryDirectory() as folder:
        write_companions(study.files, Path(folder))
        (Path(folder) / "config.json").write_text(json.dumps(dict(checkpoint.config)), "utf-8")
        yield Path(folder)


def _check_recipe_alone(data: Mapping[str, Any], mistakes: list[str]) -> None:
    """Name the recipe's mistakes too where the rest of the file couldn't be read."""
    recipe, models = data.get("recipe"), data.get("models")
    if isinstance(recipe, dict) and isinstance(models, dict):
        build_space(recipe, models, mistakes, {})  # pyright: ignore[reportUnknownArgumentType]


def _open_tasks(
    config: StudyConfig, folder: Path, mistakes: list[str], entries: str
) -> tuple[OpenTask, ...]:
    include = [folder / path for path in config.evaluation.tasks]
    for i, path in enumerate(include):
        if not path.is_dir():
            mistakes.append(f"evaluation.tasks[{i}]: {path} is no folder")
    items = config.items
    counts = Counts(None if items.search == "rest" else items.search, items.select, items.holdout)
    common = config.evaluation.gen_kwargs
    requests: dict[int, TaskRequest] = {}
    for at, objective in enumerate(config.objectives):
        try:
            if objective.has_items:
                requests[at] = _request(objective, folder, common)
        except EvaluationError as error:
            mistakes.append(f"{entries}[{at}]: {error}")
    places = list(requests)

    def report(at: int, text: str) -> None:
        objective = config.objectives[places[at]]
        if objective.text is not None:
            text = text.replace("task '", "text '", 1)
            if "too few" in text:
                chars = objective.chars or CHARS
                text += f"; or give a longer text, or fewer chars than {chars:,} to a piece"
        if "no task of that name" in text and not include:
            evolve = " (mergekit-evolve's --task-search-path)" if entries == "tasks" else ""
            text += "" if text.endswith("?") else ";"
            text += (
                f" tasks of your own need their folder{evolve}: evaluation: {{tasks: [./folder]}}"
            )
        mistakes.append(f"{entries}[{places[at]}]: {text}")

    return open_tasks(
        list(requests.values()),
        counts,
        items.seed,
        [path for path in include if path.is_dir()],
        report,
        config.evaluation.metadata,
    )


def _beyond_reach(config: StudyConfig, tasks: Sequence[OpenTask]) -> Iterator[str]:
    """Floors of accuracies that are no shares: everybody would miss them, or nobody."""
    metrics = {task.name: task.metric.split(",")[0] for task in tasks}
    for at, objective in enumerate(config.objectives):
        limit, metric = objective.floor, metrics.get(objective.name, "")
        figure = limit["parents"] if isinstance(limit, dict) else limit
        if metric in SHARES and figure is not None and not 0 <= figure <= 1:
            yield (
                f"objectives[{at}].floor: {metric} is a share from 0 to 1 (0.6 is 60%), "
                f"got {figure:g}"
            )


def _load_scorers(config: StudyConfig, folder: Path, mistakes: list[str]) -> dict[str, Scorer]:
    found: dict[str, Scorer] = {}
    for at, objective in enumerate(config.objectives):
        if objective.function is not None:
            try:
                found[objective.name] = load_scorer(objective.function, folder)
            except ScorerError as error:
                mistakes.append(f"objectives[{at}].function: {error}")
    return found


def _request(objective: ObjectiveConfig, folder: Path, common: Mapping[str, Any]) -> TaskRequest:
    file = folder / objective.name
    arguments = objective.arguments
    if objective.text is not None:
        path = (folder / Path(objective.text).expanduser()).resolve()
        arguments = text_task(objective.name, path, objective.chars or CHARS)
    return TaskRequest(
        task=objective.name,
        metric=objective.metric,
        num_fewshot=objective.num_fewshot,
        higher_is_better=(
            None if objective.direction is None else objective.direction == "maximize"
        ),
        weight=objective.weight,
        file=file if objective.text is None and file.is_file() else None,
        arguments=arguments,
        gen_kwargs=objective.gen_kwargs,
        common_gen_kwargs=common,
        signal=objective.signal,
        cluster=objective.cluster,
        home=folder,
    )


def _exact(recipe: Recipe, dtype: torch.dtype) -> Recipe:
    name = str(dtype).removeprefix("torch.")
    return replace(recipe, dtype=recipe.dtype or "float32", out_dtype=recipe.out_dtype or name)


def _planned(
    recipe: Recipe,
    dtype: torch.dtype,
    checkpoints: Mapping[str, Checkpoint],
    *,
    judge: bool = True,
) -> MergePlan:
    """As `CheckedStudy.plan`, before there is one."""
    return compile_plan(_exact(recipe, dtype), checkpoints, judge=judge)


def _misfits(
    config: StudyConfig,
    space: SearchSpace,
    checkpoints: Mapping[str, Checkpoint],
    planned: Planned,
) -> list[str]:
    """What only shows when everything is open: plans, groups that match nothing, samplers."""
    mistakes: list[str] = []
    tensors = [name for parent in checkpoints.values() for name in parent.tensors]
    for group in dict.fromkeys(tensor_groups(space)):
        if not any(group in name for name in tensors):
            mistakes.append(f"recipe: by: '{group}' is part of no tensor's name")
    for values in space.probes():
        layout = space.layout(values)
        try:
            if layout is not None and layout.merges:  # errors then name what the file has
                planned(space.merged(values), judge=False)
            planned(space.decode(values), judge=False)
        except MergeError as error:
            mistakes.append(f"recipe ({space.method(values)}): {error}")
    if not mistakes:
        mistakes += hopeless(space, planned)
    search = config.search
    if reason := refusal(search.sampler, space, search.trials, config.values):
        mistakes.append(reason)
    return list(dict.fromkeys(mistakes))


def _unprompted(config: StudyConfig, space: SearchSpace, aligned: Aligned) -> Iterator[str]:
    """Why no prompt can be a chat, if the study wants them to be."""
    wanted = config.evaluation.apply_chat_template
    names = ", ".join((AUTO, *NAMED))
    repair = (
        f"set it to false, or give the output one with recipe.chat_template: {names}, or a text"
    )
    recipe, models = space.everyone(), aligned.checkpoints
    if reason := no_template(wanted, recipe, aligned.files, models, repair):
        yield f"evaluation.apply_chat_template: {reason}"


def _dtype(word: str, space: SearchSpace, checkpoints: Mapping[str, Checkpoint]) -> torch.dtype:
    if word != "auto":
        return getattr(torch, word)
    stated = space.template.get("out_dtype") or space.template.get("dtype")
    name = str(stated).removeprefix("torch.")
    if name in DTYPE_NAMES:
        return getattr(torch, name)
    first = next(iter(checkpoints.values()))
    return max(first.tensors.values(), key=lambda spec: spec.numel).dtype
