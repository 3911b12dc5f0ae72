"""The spaces of the search benchmark, as studies write them, and what of the tasks each looks at.

The family is the quickstart's: a base that practised four tasks and three experts for one each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.holes import build_space
from search.space import Choice, SearchSpace, Values

TASKS = ("rev", "sort", "inc", "max")
EXPERTS = ("sort", "inc", "max")
MODELS = ("base", *EXPERTS)
LAYERS = 4
WEIGHT = {"range": [0.0, 1.5]}
_GROUPS = {**WEIGHT, "by": ["self_attn", "mlp", "*"], "knots": 1}
_DEPTH = {**_GROUPS, "knots": 2}
_DENSITY = {"range": [0.05, 1.0]}


@dataclass(frozen=True, slots=True)
class Space:
    """One space of the benchmark.

    Attributes:
        name: A word.
        recipe: In a study's form, or None where layers are taken whole from the models.
        objectives: Each a tuple of tasks whose mean it is; one tuple is a study of one objective.
        points: Recipes to evaluate for it; 0 takes the tables of `parts`.
        parts: For each method of a choice the space that was evaluated with it.
        about: What it is, for the report.
    """

    name: str
    recipe: Mapping[str, Any] | None
    objectives: tuple[tuple[str, ...], ...]
    points: int
    parts: Mapping[str, str]
    about: str


def recipe(method: object, experts: tuple[str, ...], parameters: Mapping[str, Any]) -> Any:
    """A study's recipe whose experts have these parameters."""
    models = [{"model": name, "parameters": dict(parameters)} for name in experts]
    return {"merge_method": method, "base_model": "base", "models": models}


ALL = (TASKS,)
_BOTH = {"weight": WEIGHT, "density": _DENSITY}
SPACES = {
    space.name: space
    for space in (
        Space(
            "weights",
            recipe("task_arithmetic", EXPERTS, {"weight": WEIGHT}),
            ALL,
            600,
            {},
            "task arithmetic, one weight for each of three experts",
        ),
        Space(
            "ties",
            recipe("ties", EXPERTS, _BOTH),
            ALL,
            1100,
            {},
            "TIES, a weight and a density for each of three experts",
        ),
        Space(
            "groups",
            recipe("task_arithmetic", EXPERTS, {"weight": _GROUPS}),
            ALL,
            1200,
            {},
            "task arithmetic, three experts x (attention, MLP, rest)",
        ),
        Space(
            "depth",
            recipe("task_arithmetic", ("sort", "max"), {"weight": _DEPTH}),
            ALL,
            1000,
            {},
            "task arithmetic, two experts x (attention, MLP, rest) x two knots over depth",
        ),
        Space(
            "dare",
            recipe("dare_linear", EXPERTS, _BOTH),
            ALL,
            500,
            {},
            "DARE, a weight and a density for each of three experts (a part of `methods`)",
        ),
        Space(
            "methods",
            recipe({"choice": ["task_arithmetic", "ties", "dare_linear"]}, EXPERTS, _BOTH),
            ALL,
            0,
            {"task_arithmetic": "weights", "ties": "ties", "dare_linear": "dare"},
            "the method is a choice; densities exist under two of the three",
        ),
        Space(
            "two",
            recipe("task_arithmetic", EXPERTS, {"weight": _GROUPS}),
            (("rev", "inc"), ("sort", "max")),
            0,
            {"task_arithmetic": "groups"},
            "the space of `groups`, two objectives: the tasks that the base knows, and the others",
        ),
        Space(
            "layers",
            None,
            ALL,
            0,
            {},
            "interleaving: which of four models gives each of four layers and the rest",
        ),
    )
}


def search_space(space: Space) -> SearchSpace:
    """What a sampler sees.

    Raises:
        ValueError: If the recipe is one that a study would refuse.
    """
    if space.recipe is None:
        names = ["rest.model", *(f"layer{at}.model" for at in range(LAYERS))]
        methods = ("linear",)
        dimensions = tuple(Choice(name, MODELS, methods, "model") for name in names)
        parents = tuple(dict.fromkeys(names, model) for model in MODELS)  # as a study starts
        return SearchSpace({"models": []}, methods, dimensions, parents)
    mistakes: list[str] = []
    built = build_space(space.recipe, MODELS, mistakes)
    if mistakes:
        raise ValueError(f"space '{space.name}': " + "; ".join(mistakes))
    return built


def features(space: Space, points: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What an emulator sees of points of the unit cube, `(recipes, dimensions)`.

    Normalised TIES depends on the weights' ratios only, with a jump where all are 0, which no
    smooth function of the weights shows; so it sees their shares. The ranges all begin at 0.
    """
    if not space.recipe or space.recipe["merge_method"] != "ties":
        return points
    weights = [d.parameter == "weight" for d in search_space(space).dimensions]  # pyright: ignore
    seen = points.copy()
    sums = seen[:, weights].sum(1, keepdims=True)
    seen[:, weights] /= np.where(sums > 0, sums, 1)
    return seen


def origins(values: Values) -> dict[str, Any]:
    """The recipe in which each layer comes from one model, whole: weights of 0 and 1."""
    parts = {f"layers.{at}.": values[f"layer{at}.model"] for at in range(LAYERS)}

    def weight(model: str) -> list[dict[str, Any]]:
        given = [{"filter": part, "value": float(m == model)} for part, m in parts.items()]
        return [*given, {"value": float(values["rest.model"] == model)}]

    models = [{"model": name, "parameters": {"weight": weight(name)}} for name in MODELS]
    return {"merge_method": "linear", "models": models}
