"""The study file: read, checked, every mistake named with its place."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from merge_core.errors import RecipeError
from merge_core.keys import nearest, read_model
from search.errors import StudyError

Positive = Annotated[int, Field(gt=0)]
Name = Annotated[str, Field(min_length=1)]


def _as_text(value: object) -> object:
    """A model's dictionary form as text; anything else is left for pydantic to judge."""
    try:
        return read_model(cast("object", value), "models") if isinstance(value, dict) else value
    except RecipeError as error:
        raise ValueError(str(error)) from None


ModelName = Annotated[Name, BeforeValidator(_as_text)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ObjectiveConfig(_Section):
    """A benchmark that the search shall do well on."""

    task: Name
    metric: Name | None = None
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    weight: Annotated[float, Field(gt=0)] = 1.0
    direction: Literal["maximize", "minimize"] | None = None
    cluster: Name | None = None


class ItemsConfig(_Section):
    """How many items of each benchmark play which role."""

    search: Positive | Literal["rest"] = 200
    select: Positive = 200
    holdout: Annotated[int, Field(ge=2)] = 400
    seed: int = 0


class SearchConfig(_Section):
    """How to search."""

    sampler: Literal["auto", "tpe", "cmaes", "gp", "qmc", "random"] = "auto"
    trials: Positive = 100
    finalists: Positive = 8
    seed: Annotated[int, Field(ge=0)] = 0


class EvaluationConfig(_Section):
    """How to score."""

    tasks: tuple[str, ...] = Field(default=(), strict=False)
    batch_size: Positive = 32
    max_length: Positive | None = None
    chat_template: bool = False
    system_instruction: str | None = None


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
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    storage: str | None = None


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
        documents: list[object] = list(yaml.safe_load_all(path.read_text("utf-8")))
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
    seen: set[tuple[str, str | None]] = set()
    for i, objective in enumerate(config.objectives):
        if (objective.task, None) in seen:
            mistakes.append(f"objectives[{i}].task: '{objective.task}' is listed twice")
        seen.add((objective.task, None))
    return config


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
            known = _known_keys(parents)
            return f"{place}: unknown key; {nearest(str(key), known)}"
        case "missing":
            return f"{place}: is missing"
        case "string_pattern_mismatch":
            return f"{place}: {given!r} has a form that is not allowed"
        case _:
            return f"{place}: {detail['msg'][0].lower()}{detail['msg'][1:]}, got {given!r}"


def _known_keys(parents: list[int | str]) -> tuple[str, ...]:
    sections: dict[str, type[BaseModel]] = {
        "objectives": ObjectiveConfig,
        "items": ItemsConfig,
        "search": SearchConfig,
        "evaluation": EvaluationConfig,
        "compare": CompareConfig,
    }
    section = sections.get(str(parents[0]), StudyConfig) if parents else StudyConfig
    return tuple(section.model_fields)


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
