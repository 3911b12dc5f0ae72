"""The study file: read, checked, every mistake named with its place."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from merge_core.errors import RecipeError
from merge_core.keys import nearest, read_model
from search.dimensions import is_number
from search.errors import StudyError

_MERGE = "tag:yaml.org,2002:merge"

Positive = Annotated[int, Field(gt=0)]
Name = Annotated[str, Field(min_length=1)]


def _as_text(value: object) -> object:
    """A model's dictionary form as text; anything else is left for pydantic to judge."""
    try:
        return read_model(cast("object", value), "models") if isinstance(value, dict) else value
    except RecipeError as error:
        raise ValueError(str(error)) from None


ModelName = Annotated[Name, BeforeValidator(_as_text)]


def _named(value: object) -> object:
    """A task is a name, or keys that say which task they are of."""
    name: object = value
    if isinstance(value, dict):
        entries = cast("dict[str, Any]", value)
        name = entries.get("group", entries.get("task"))
    if not isinstance(name, str) or not name:
        raise ValueError(
            f"expected a task's name, or its keys with the name as 'task' or 'group', got {value!r}"
        )
    return cast("object", value)


def _template(value: object) -> object:
    if not isinstance(value, bool | str) or value == "":
        raise ValueError(f"expected true, false or a template's name, got {value!r}")
    return value


def _generation(value: object) -> object:
    """Arguments of a generation whose meaning is known are checked here, others by their users."""
    if not isinstance(value, dict):
        return value
    entries = cast("dict[str, Any]", value)
    tokens, until = entries.get("max_gen_toks", 1), entries.get("until", [])
    if type(tokens) is not int or tokens < 1:
        raise ValueError(f"max_gen_toks is a number of tokens from 1 on, not {tokens!r}")
    if isinstance(until, str):
        return _generation({**entries, "until": [until]})
    if not isinstance(until, list) or not all(isinstance(text, str) for text in until):  # pyright: ignore
        raise ValueError(f"until is a text or a list of texts, not {until!r}")
    warm: object = entries.get("temperature") or 0
    if isinstance(warm, bool) or not isinstance(warm, int | float) or warm < 0:
        raise ValueError(f"temperature is a number from 0 on, not {warm!r}")
    if warm and entries.get("do_sample") is False:
        raise ValueError("temperature has no meaning with do_sample: false; leave one out")
    return entries


def _floor(value: object) -> object:
    """`parents`, by how much one may be better, or a number; pydantic would blame all three."""
    if value == "parents" or is_number(value):
        return {"parents": 0.0} if value == "parents" else value
    if isinstance(value, dict):
        entries = cast("dict[object, object]", value)
        slack = entries.get("parents")
        if list(entries) == ["parents"] and is_number(slack) and cast("float", slack) >= 0:
            return entries
    raise ValueError(
        "expected parents (no worse than the best parent), {parents: 0.02} (by no more than .02, "
        f"in the metric's own units) or a number of the metric itself, got {value!r}"
    )


Task = Annotated[str | dict[str, Any], BeforeValidator(_named)]
Floor = Annotated[float | dict[str, float], BeforeValidator(_floor)]
Template = Annotated[bool | str, BeforeValidator(_template)]
GenerationKeys = Annotated[dict[str, Any], BeforeValidator(_generation)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


# Arguments of lm-eval that a study has no use for, and what to write instead.
_NOT_HERE = {
    "limit": "say how many items under 'items'; lm-eval's limit takes the first rows, not a sample",
    "samples": "say how many items under 'items'; which ones follows from its seed",
    "predict_only": "would leave nothing to search for: without metrics there is no score",
    "use_cache": "lm-eval's cache answers for another model; results are kept with the study",
    "cache_requests": "prompts are made once per study anyway; lm-eval's cache may hold others",
    "softmax_dtype": "the softmax is always float32; in bfloat16 options tie",
    "confirm_run_unsafe_code": "outcross never runs the code that a model writes",
    "trust_remote_code": "outcross never runs a repository's code",
    "chat_template": "is called apply_chat_template, as in lm-eval",
    "include_path": "is called tasks here",
}


# What an objective may be, and which of its keys have a meaning there.
_BENCHMARK = ("metric", "weight", "direction", "cluster", "floor")
KINDS: Mapping[str, tuple[str, ...]] = {
    "task": (*_BENCHMARK, "signal", "num_fewshot", "gen_kwargs"),
    "text": (*_BENCHMARK, "chars"),
    "model": ("floor", "at_most"),
    "function": ("weight", "direction", "floor"),
}


class ObjectiveConfig(_Section):
    """What the search shall do well on: one of task, text, model and function.

    `task` is a name, a YAML file, or a mapping of a task's YAML keys: those of a known task are
    put over its own, others make a task of their own. `text` is a file whose pieces are items.
    `model` is a property of the merged model, fewer being better. `function` is the user's own.
    """

    task: Task | None = None
    text: Name | None = None
    model: Literal["depth", "parameters"] | None = None
    function: Annotated[str, Field(pattern=r"^.+\.py:[A-Za-z_]\w*$")] | None = None
    metric: Name | None = None
    signal: Literal["auto", "metric", "soft_accuracy", "probability", "margin", "bits_per_byte"] = (
        "auto"
    )
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    gen_kwargs: GenerationKeys = Field(default_factory=dict)
    weight: Annotated[float, Field(gt=0)] = 1.0
    direction: Literal["maximize", "minimize"] | None = None
    cluster: Name | None = None
    chars: Annotated[int, Field(ge=100)] | None = None
    floor: Floor | None = None
    at_most: Positive | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "ObjectiveConfig":
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            found = f"and {' and '.join(given)} are" if given else "and none is"
            raise ValueError(f"is one of task, text, model and function, {found} given")
        others = self.model_fields_set - {*KINDS, *KINDS[given[0]]}
        if others:
            known = ", ".join(KINDS[given[0]])
            raise ValueError(f"{given[0]} has no '{min(others)}'; it has {known}")
        if self.floor is not None and self.at_most is not None:
            raise ValueError("floor and at_most both say the limit; give one")
        return self

    @property
    def name(self) -> str:
        """What the objective is called in tables and storage."""
        if self.text is not None:
            return self.text.removeprefix("./")
        if isinstance(self.task, dict):
            return str(self.task["group"] if "group" in self.task else self.task["task"])
        named = self.task or self.model or str(self.function).rpartition(":")[2]
        return str(named)

    @property
    def kind(self) -> str:
        """`task`, `text`, `model` or `function`."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def has_items(self) -> bool:
        """Whether it is a benchmark, whose items are dealt to roles."""
        return self.kind in ("task", "text")

    @property
    def rises(self) -> bool:
        """Whether a higher figure is better, of an objective that has no metric to say so."""
        return self.kind != "model" and self.direction != "minimize"

    @property
    def limit(self) -> float | dict[str, float] | None:
        """What it must keep to, if anything: a number of its own, or `parents` and by how much."""
        return self.floor if self.at_most is None else self.at_most

    @property
    def maximized(self) -> bool:
        """Whether it is a value of its own under `goal: pareto`.

        A property of the model that has a limit is a constraint alone.
        """
        return self.kind != "model" or self.limit is None

    @property
    def arguments(self) -> dict[str, Any]:
        """The task's YAML keys that the study gives itself."""
        if not isinstance(self.task, dict):
            return {}
        names = ("group",) if "group" in self.task else ("task",)
        return {key: value for key, value in self.task.items() if key not in names}


class ItemsConfig(_Section):
    """How many items of each benchmark play which role."""

    search: Positive | Literal["rest"] = 200
    select: Positive = 200
    holdout: Annotated[int, Field(ge=2)] = 400
    seed: int = 0


class SearchConfig(_Section):
    """How to search.

    Attributes:
        batch: Candidates that are proposed before the first of them is told; at least as many as
            there are workers keeps all of them busy. Part of what makes a study the same again.
        asynchronous: `async` in a file: nobody waits for a batch, and the result depends on who
            ended first.
    """

    sampler: Literal[
        "auto",
        "composite",
        "tpe",
        "cmaes",
        "catcma",
        "gp",
        "nsgaii",
        "evolution",
        "qmc",
        "random",
    ] = "auto"
    goal: Literal["mean", "pareto"] = "mean"
    trials: Positive = 100
    batch: Positive = 4
    racing: bool | Literal["always"] = True
    finalists: Positive = 8
    seed: Annotated[int, Field(ge=0)] = 0
    asynchronous: bool = Field(default=False, alias="async")


class EvaluationConfig(_Section):
    """How to score: lm-eval's arguments under its names; see `evals.settings.Settings`."""

    tasks: tuple[str, ...] = Field(default=(), strict=False)
    batch_size: Positive | Literal["auto"] = 32
    max_length: Positive | None = None
    apply_chat_template: Template = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = True
    fewshot_seed: Annotated[int, Field(ge=0)] = 1234
    fewshot_draws: Literal["lm_eval", "per_item"] = "lm_eval"
    gen_kwargs: GenerationKeys = Field(default_factory=dict)
    add_bos_token: bool | None = None
    prefix_token_id: Annotated[int, Field(ge=0)] | None = None
    truncation: bool = False
    think_end_token: Name | Annotated[int, Field(ge=0)] | None = None
    enable_thinking: bool | None = None
    chat_template_args: dict[str, Any] = Field(default_factory=dict)
    torch_seed: Annotated[int, Field(ge=0)] = 1234
    metadata: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _meant(self) -> "EvaluationConfig":
        """Refuse what has no effect without something else."""
        if self.enable_thinking and self.think_end_token is None:
            raise ValueError("enable_thinking: true needs a think_end_token, where answers begin")
        if not self.apply_chat_template:
            for key in ("enable_thinking", "chat_template_args"):
                if getattr(self, key):
                    raise ValueError(f"{key} has no effect without apply_chat_template")
        return self


class RayConfig(_Section):
    """Where candidates are scored: actors of Ray, one model each.

    Attributes:
        workers: How many.
        address: Of a cluster that is there (`auto`, `ray://…`); None starts one on this machine.
        cpus: Of each worker; it has as many threads, so fix it where results shall not depend on
            the number of workers.
        gpus: Of each worker where the study runs on accelerators.
    """

    workers: Positive = 1
    address: Name | None = None
    cpus: Positive = 1
    gpus: Annotated[float, Field(gt=0)] = 1.0


class CompareConfig(_Section):
    """What a claim is about."""

    margin: Annotated[float, Field(ge=0)] = 0.01


class StudyConfig(_Section):
    """A whole study file. Paths are relative to the file's folder."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    models: Annotated[dict[str, ModelName], Field(min_length=1)]
    recipe: dict[str, Any]
    objectives: Annotated[tuple[ObjectiveConfig, ...], Field(min_length=1, strict=False)]
    items: ItemsConfig = ItemsConfig()
    search: SearchConfig = SearchConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    compare: CompareConfig = CompareConfig()
    ray: RayConfig | None = None
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    storage: str | None = None

    @property
    def location(self) -> str:
        """Folder or URL of the storage."""
        return self.storage or f"runs/{self.name}"

    @property
    def benchmarks(self) -> tuple[ObjectiveConfig, ...]:
        """The objectives that have items."""
        return tuple(objective for objective in self.objectives if objective.has_items)

    @property
    def values(self) -> int:
        """How many values a trial has."""
        pareto = self.search.goal == "pareto"
        return sum(objective.maximized for objective in self.objectives) if pareto else 1


_SECTIONS: Mapping[str, type[BaseModel]] = {
    "items": ItemsConfig,
    "search": SearchConfig,
    "evaluation": EvaluationConfig,
    "compare": CompareConfig,
    "ray": RayConfig,
}


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, of which YAML's own takes the last."""

    def compose_mapping_node(self, anchor: dict[Any, Any]) -> yaml.MappingNode:
        """See `yaml.composer.Composer`: here, before anything of another mapping is merged in."""
        node = super().compose_mapping_node(anchor)
        known: dict[tuple[str, str], yaml.ScalarNode] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                first = known.setdefault((key.tag, key.value), key)
                if first is not key:
                    line = first.start_mark.line + 1
                    told = f"key '{key.value}' stands in line {line} already; give it once"
                    raise yaml.MarkedYAMLError(problem=told, problem_mark=key.start_mark)
        return node


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises:
        StudyError: If it can't be read; names the line.
    """
    documents = read_documents(path)
    if len(documents) != 1:
        raise StudyError([f"has {len(documents)} documents; one is expected"], str(path))
    return documents[0]


def read_documents(path: Path) -> list[dict[str, Any]]:
    """Read a YAML file of one or more mappings, with --- between them; empty ones are left out.

    Raises:
        StudyError: If it can't be read; names the line.
    """
    try:
        text = path.read_text("utf-8")
        documents: list[object] = list(yaml.load_all(text, _Loader))
    except FileNotFoundError:
        raise StudyError(["there is no such file"], str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError([f"can't be read: {error}"], str(path)) from None
    except yaml.YAMLError as error:
        raise StudyError([f"is not valid YAML: {_yaml_place(error)}"], str(path)) from None
    found = [document for document in documents if document is not None]
    if not found or not all(isinstance(document, dict) for document in found):
        raise StudyError(["expected a mapping of keys at the top"], str(path))
    return cast("list[dict[str, Any]]", found)


def parse(data: Mapping[str, Any], mistakes: list[str]) -> StudyConfig | None:
    """Check the shape of a study file; adds what is wrong to `mistakes`.

    Returns:
        The study, or None if it could not be read.
    """
    try:
        config = StudyConfig.model_validate(dict(data))
    except ValidationError as error:
        mistakes += _explain_all(error.errors())
        return None
    mistakes += _clashes(config)
    return config


def _clashes(config: StudyConfig) -> list[str]:
    """What is wrong with the objectives together."""
    found: list[str] = []
    seen: set[str] = set()
    mean = config.search.goal == "mean"
    for i, objective in enumerate(config.objectives):
        if objective.name in seen:
            found.append(f"objectives[{i}].{objective.kind}: '{objective.name}' is listed twice")
        seen.add(objective.name)
        if mean and objective.kind == "model" and objective.limit is None:
            found.append(
                f"objectives[{i}].model: {objective.name} can't be averaged with scores; give "
                "at_most, or search: {goal: pareto}"
            )
    if not config.benchmarks:
        found.append("objectives: none of them is a task or a text; a claim needs items")
    elif config.values < 2 and not mean:
        found.append(
            "search.goal: pareto needs two objectives or more, and there is one; leave it out"
        )
    return found


def _explain_all(details: list[ErrorDetails]) -> list[str]:
    """One line for each place: pydantic also blames what contains it, and every union's branch."""
    lines: dict[str, str] = {}
    places = [_place(detail["loc"]) for detail in details]
    for place, detail in zip(places, details, strict=True):
        if not any(other != place and other.startswith(f"{place}[") for other in places):
            lines.setdefault(place, _explain(detail))
    return list(lines.values())


def _explain(detail: ErrorDetails) -> str:
    place = _place(detail["loc"])
    given = detail.get("input")
    match detail["type"]:
        case "extra_forbidden":
            *parents, key = detail["loc"]
            if parents and str(key) in _NOT_HERE:
                return f"{place}: {_NOT_HERE[str(key)]}"
            inside = [] if parents else [n for n, s in _SECTIONS.items() if str(key) in _keys(s)]
            if inside:
                where = " or ".join(f"'{name}: {{{key}: ...}}'" for name in inside)
                return f"{place}: unknown key here; write {where}"
            known = _known_keys(parents)
            return f"{place}: unknown key; {nearest(str(key), known)}"
        case "missing":
            return f"{place}: is missing"
        case "string_pattern_mismatch" if detail["loc"][-1] == "function":
            return f"{place}: expected a file and a name in it, ./scorer.py:name, got {given!r}"
        case "string_pattern_mismatch":
            return f"{place}: {given!r} has a form that is not allowed"
        case "value_error":
            return f"{place}: {detail['msg'].removeprefix('Value error, ')}"
        case _:
            return f"{place}: {detail['msg'][0].lower()}{detail['msg'][1:]}, got {given!r}"


def _known_keys(parents: list[int | str]) -> tuple[str, ...]:
    found = {**_SECTIONS, "objectives": ObjectiveConfig}
    return _keys(found.get(str(parents[0]), StudyConfig) if parents else StudyConfig)


def _keys(section: type[BaseModel]) -> tuple[str, ...]:
    return tuple(field.alias or name for name, field in section.model_fields.items())


def _place(parts: tuple[int | str, ...]) -> str:
    """The YAML path of a mistake: `objectives[0].metric`."""
    internal = ("constrained", "literal")  # pydantic's names for the branches of a union
    kept = [p for p in parts if not str(p).startswith(internal)]
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in kept)
    return text.removeprefix(".")


def _yaml_place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else str(problem)
