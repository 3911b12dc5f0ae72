"""A genome file of mergekit-evolve, read as a study.

The keys are those of mergekit 0.1.5's `EvolMergeConfiguration` and `ModelGenomeDefinition`. What
differs is told in `Genome.notes`: chiefly that a genome has no bounds (mergekit folds it with abs
and a clamp) and that here a claim is made on items that no search has seen. Sections of a study
(`items`, `search`, `storage`, ...) may stand beside `genome` and `tasks`; mergekit ignores them.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from merge_core.chat_templates import template_of
from merge_core.companions import companions
from merge_core.errors import RecipeError
from merge_core.keys import nearest, read_model
from search.models import open_models

_GENES = {
    "linear": ("weight",),
    "task_arithmetic": ("weight",),
    "ties": ("weight", "density"),
    "dare_ties": ("weight", "density"),
    "slerp": ("t",),
}
_NORMALIZED = ("linear", "ties", "dare_ties")  # unless the genome says otherwise
_GENOME_KEYS = (
    *("models", "merge_method", "base_model", "tokenizer_source", "layer_granularity"),
    *("normalize", "allow_negative_weights", "filters", "smooth"),
)
_FILE_KEYS = (
    *("genome", "tasks", "limit", "num_fewshot", "shuffle", "random_init"),
    *("apply_chat_template", "fewshot_as_multiturn"),
)
_STUDY_KEYS = ("name", "items", "search", "evaluation", "compare", "dtype", "device", "storage")
_BOUND = 1.5  # of the methods' declared ranges the widest


@dataclass(frozen=True, slots=True)
class Genome:
    """A genome file in a study's words.

    Attributes:
        study: What a study file would say.
        notes: What it does otherwise than mergekit-evolve, a sentence each.
    """

    study: dict[str, Any]
    notes: tuple[str, ...]


def is_genome(data: Mapping[str, Any]) -> bool:
    """Whether a file is mergekit-evolve's and not a study."""
    return "genome" in data and "recipe" not in data


def read_genome(data: Mapping[str, Any], path: Path, mistakes: list[str]) -> Genome:
    """Translate a genome file into a study.

    Args:
        data: The file.
        path: Where it is: paths of models are relative to its folder, its name is the study's.
        mistakes: What is wrong is added here, each with its YAML path.
    """
    reader = _Reader(dict(data), path, mistakes, [])
    study = reader.read()
    return Genome(study, tuple(reader.notes))


@dataclass(slots=True)
class _Reader:
    data: dict[str, Any]
    path: Path
    mistakes: list[str]
    notes: list[str]

    def read(self) -> dict[str, Any]:
        self._check_keys(self.data, (*_FILE_KEYS, *_STUDY_KEYS), "")
        genome: Any = self.data["genome"]
        if not isinstance(genome, Mapping):
            self.mistakes.append("genome: expected a mapping of keys")
            genome = {}
        known = dict(cast("Mapping[str, Any]", genome))
        self._check_keys(known, _GENOME_KEYS, "genome.")
        models = self._models(known)
        study = {key: self.data[key] for key in _STUDY_KEYS if key in self.data}
        study.setdefault("name", self.path.stem)
        study.setdefault("dtype", "bfloat16")
        study["models"] = {alias: name for name, alias in models.items()}
        study["objectives"] = self._objectives()
        study["items"] = self._items() | study.get("items", {})
        study["evaluation"] = self._evaluation() | study.get("evaluation", {})
        if not self.mistakes:
            self._check_template(study["evaluation"].get("apply_chat_template"), models)
            study["recipe"] = self._recipe(known, models)
        self._tell_differences(known)
        return study

    # The genome.

    def _models(self, genome: Mapping[str, Any]) -> dict[str, str]:
        """An alias for each model, the base too: the last part of its path."""
        stated: Any = genome.get("models")
        if not isinstance(stated, list) or not stated:
            self.mistakes.append("genome.models: expected a list of models")
            return {}
        base = genome.get("base_model")
        named = [(f"genome.models[{i}]", one) for i, one in enumerate(cast("list[Any]", stated))]
        named += [("genome.base_model", base)] if base is not None else []
        aliases: dict[str, str] = {}
        for where, model in named:
            try:
                text = read_model(model, where)
            except RecipeError as error:
                self.mistakes.append(str(error))
                continue
            stem = text.rstrip("/").rpartition("/")[2]
            taken = set(aliases.values())
            count = itertools.count(2)
            alias = stem
            while text not in aliases and alias in taken:
                alias = f"{stem}-{next(count)}"
            aliases.setdefault(text, alias)
        return aliases

    def _recipe(self, genome: Mapping[str, Any], models: Mapping[str, str]) -> dict[str, Any]:
        method, base = genome.get("merge_method"), genome.get("base_model")
        if method not in _GENES:
            self.mistakes.append(
                f"genome.merge_method: mergekit-evolve has {', '.join(_GENES)}, got {method!r}; "
                "a study's recipe takes every method"
            )
            return {}
        listed = [models[read_model(one, "genome.models")] for one in genome["models"]]
        alias = None if base is None else models[read_model(base, "genome.base_model")]
        self._check_method(str(method), genome, listed, alias)
        recipe: dict[str, Any] = {"merge_method": method}
        if alias:
            recipe["base_model"] = alias
        if genome.get("tokenizer_source") is not None:
            source = str(genome["tokenizer_source"])
            recipe["tokenizer_source"] = models.get(source, source)
        if self.mistakes:
            return recipe
        if method == "slerp":
            return recipe | self._slerp(genome, listed, models)
        normalize = genome.get("normalize")
        flag = method in _NORMALIZED if normalize is None else normalize
        recipe["parameters"] = {"normalize": flag}
        return recipe | self._weighted(str(method), genome, listed, alias, models)

    def _check_method(
        self, method: str, genome: Mapping[str, Any], listed: list[str], base: str | None
    ) -> None:
        if method in ("task_arithmetic", "ties", "dare_ties") and base is None:
            self.mistakes.append(f"genome.base_model: {method} needs one")
        for key in ("smooth", "filters"):
            if method == "slerp" and genome.get(key):
                self.mistakes.append(f"genome.{key}: slerp has none in mergekit-evolve; leave out")
        if method == "slerp" and len(set(listed)) < 2:
            self.mistakes.append("genome.models: slerp needs two models or more")
        if method == "slerp" and base is not None and base not in listed:
            self.mistakes.append(
                "genome.base_model: slerp takes two of the models; list it among them or leave it"
            )
        grain: Any = genome.get("layer_granularity", 0)
        if isinstance(grain, bool) or not isinstance(grain, int):
            self.mistakes.append(f"genome.layer_granularity: expected a number, got {grain!r}")

    def _weighted(
        self,
        method: str,
        genome: Mapping[str, Any],
        listed: list[str],
        base: str | None,
        models: Mapping[str, str],
    ) -> dict[str, Any]:
        """Models with their weights and densities, as a gradient or slice by slice."""
        spans = self._spans(genome, models)
        smooth = bool(genome.get("smooth")) and len(spans) > 1
        share = None if self.data.get("random_init") else 1 / len(listed)
        parameters = _holes(method, genome, share, knots=len(spans) if smooth else 1)
        apart = method != "linear"

        def source(alias: str) -> dict[str, Any]:
            own = {} if alias == base and apart else {"parameters": parameters}
            return {"model": alias} | own

        every = [*listed, *([base] if base and base not in listed else [])]
        if smooth or len(spans) < 2:
            return {"models": [source(alias) for alias in every]}
        return {
            "slices": [
                {"sources": [source(alias) | {"layer_range": list(span)} for alias in every]}
                for span in spans
            ]
        }

    def _slerp(
        self, genome: Mapping[str, Any], listed: list[str], models: Mapping[str, str]
    ) -> dict[str, Any]:
        """Two of the models in each group of layers, and how far between them."""
        spans = self._spans(genome, models, always=len(set(listed)) > 2)
        pairs = list(itertools.combinations(dict.fromkeys(listed), 2))
        t = {"t": {"range": [0.0, 1.0]}}
        if len(pairs) == 1 and len(spans) < 2:
            return {"models": list(pairs[0]), "base_model": pairs[0][0], "parameters": t}

        def part(pair: tuple[str, str], span: tuple[int, int]) -> dict[str, Any]:
            sources = [{"model": alias, "layer_range": list(span)} for alias in pair]
            return {"sources": sources, "base_model": pair[0], "parameters": t}

        def either(span: tuple[int, int]) -> dict[str, Any]:
            options = {f"{a}-{b}": part((a, b), span) for a, b in pairs}
            return options[next(iter(options))] if len(options) == 1 else {"choice": options}

        return {"slices": [either(span) for span in spans]}

    def _spans(
        self, genome: Mapping[str, Any], models: Mapping[str, str], *, always: bool = False
    ) -> list[tuple[int, int]]:
        """Groups of layers that have numbers of their own; one of all needs no count."""
        grain = int(genome.get("layer_granularity", 0))
        if grain < 1 and not always:
            return [(0, 0)]
        first = next(iter(models.items()))
        opened = open_models({first[1]: first[0]}, self.path.resolve().parent, self.mistakes)
        if not opened:
            return [(0, 0)]
        depth = opened[first[1]].layout.depth
        size = grain if grain > 0 else depth
        if depth % size:
            self.mistakes.append(
                f"genome.layer_granularity: {depth} layers are no multiple of {size}"
            )
        return [(at, at + size) for at in range(0, depth, size)]

    # The tasks and how they are evaluated.

    def _objectives(self) -> list[dict[str, Any]]:
        tasks: Any = self.data.get("tasks")
        if not isinstance(tasks, list) or not tasks:
            self.mistakes.append("tasks: expected a list of tasks")
            return []
        found = [self._objective(task, i) for i, task in enumerate(cast("list[Any]", tasks))]
        return [objective for objective in found if objective]

    def _objective(self, task: Any, at: int) -> dict[str, Any]:
        where = f"tasks[{at}]"
        entry = {"name": task} if isinstance(task, str) else task
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):  # pyright: ignore
            self.mistakes.append(f"{where}: expected a task's name, or name, weight and metric")
            return {}
        known = cast("Mapping[str, Any]", entry)
        self._check_keys(known, ("name", "weight", "metric"), f"{where}.")
        weight: Any = known.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight == 0:
            self.mistakes.append(f"{where}.weight: expected a number that isn't 0, got {weight!r}")
            return {}
        objective: dict[str, Any] = {"task": known["name"], "weight": abs(float(weight))}
        objective["metric"] = str(known.get("metric", "acc,none"))
        if weight < 0:
            objective["direction"] = "minimize"
        if self.data.get("num_fewshot") is not None:
            objective["num_fewshot"] = self.data["num_fewshot"]
        return objective

    def _items(self) -> dict[str, Any]:
        limit = self.data.get("limit")
        return {"search": "rest" if limit is None else limit}

    def _evaluation(self) -> dict[str, Any]:
        return {
            "apply_chat_template": self.data.get("apply_chat_template", True),
            "fewshot_as_multiturn": self.data.get("fewshot_as_multiturn", True),
        }

    def _check_template(self, wanted: Any, models: Mapping[str, str]) -> None:
        """Refuse a template that no model has: the default of the file, which few write down."""
        names = {alias: name for name, alias in models.items()}
        opened = open_models(names, self.path.resolve().parent, []) if wanted is True else {}
        if opened and not any(template_of(companions(one)) for one in opened.values()):
            self.mistakes.append(
                "apply_chat_template: is true, mergekit-evolve's default, and none of "
                f"{', '.join(opened)} has a chat template; write apply_chat_template: false"
            )

    def _tell_differences(self, genome: Mapping[str, Any]) -> None:
        method = genome.get("merge_method")
        if method == "slerp":
            self.notes.append(
                "genome: slerp's t is searched from 0 to 1 for each pair of models; "
                "mergekit-evolve takes the two largest genes and the softmax of them"
            )
        else:
            low = -_BOUND if genome.get("allow_negative_weights") else 0.0
            self.notes.append(
                f"genome: weights are searched from {low:g} to {_BOUND:g} and densities from 0.05 "
                "to 1; mergekit-evolve has no bounds, it folds genes with abs and a clamp"
            )
        self.notes.append(
            "genome: arithmetic is in float32 and rounded to bfloat16 once; mergekit-evolve "
            "computes in bfloat16"
        )
        if self.data.get("random_init"):
            self.notes.append("random_init: known recipes are tried first here all the same")
        if self.data.get("shuffle") or self.data.get("limit") is not None:
            self.notes.append(
                "limit: the items are a random sample, the same for every candidate; mergekit-"
                "evolve takes the first rows, or shuffles anew without a seed"
            )

    def _check_keys(self, data: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
        for key in data:
            if key not in known:
                self.mistakes.append(f"{where}{key}: unknown key; {nearest(str(key), known)}")


def _holes(
    method: str, genome: Mapping[str, Any], start: float | None, knots: int
) -> dict[str, Any]:
    """What is searched of each model, from mergekit-evolve's start: weight `start`, all kept."""
    filters: list[str] = genome.get("filters") or []
    spread: dict[str, Any] = {"by": [*filters, "*"]} if filters else {}
    spread |= {"knots": knots} if knots > 1 else {}
    low = -_BOUND if genome.get("allow_negative_weights") else 0.0
    weight = {"range": [low, _BOUND]} | ({} if start is None else {"start": start}) | spread
    holes: dict[str, Any] = {"weight": weight}
    if "density" in _GENES[method]:
        begin = {} if start is None else {"start": 1.0}
        holes["density"] = {"range": [0.05, 1.0]} | begin | spread
    return holes
