"""The recipe: what a person could write by hand, in mergekit's dictionary form, frozen.

Reads and writes the `models`, `slices` and `modules` forms of mergekit 0.1.5. Unknown keys are
errors.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from merge_core.chat_templates import read_chat_template
from merge_core.errors import RecipeError
from merge_core.keys import check_keys, read_model
from merge_core.keys import nearest as nearest  # its old home
from merge_core.token_sources import TokenizerBlock, read_tokenizer, tokenizer_dict

Scalar = bool | int | float | str
DTYPE_NAMES = ("float32", "float16", "bfloat16", "float64")
_NUMBERED = re.compile(r"(^|(?<!experts)\.)\d+(\.|$)")  # it is another one in a stage
_RECIPE_KEYS = (
    "merge_method",
    "base_model",
    "models",
    "slices",
    "modules",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "compat",
)


@dataclass(frozen=True, slots=True)
class Setting:
    """One value of a parameter, for the tensors whose name contains `filter` (None: for all).

    A tuple is a gradient over depth: numbers are interpolated, booleans and strings are picked.
    """

    filter: str | None
    value: Scalar | tuple[Scalar, ...]


Parameters = tuple[tuple[str, tuple[Setting, ...]], ...]
"""Settings by parameter name, sorted by name; the first setting that matches a tensor wins."""


@dataclass(frozen=True, slots=True)
class Source:
    """One parent in a slice. `layers` is the half-open range it gives, or None for all."""

    model: str
    layers: tuple[int, int] | None = None
    parameters: Parameters = ()


@dataclass(frozen=True, slots=True)
class Slice:
    """A run of output layers, merged from the same number of layers of each source.

    `method` is its own merge method, or None for the recipe's. `scale` multiplies what was merged:
    the first of its settings that matches an output tensor's name, else 1. mergekit knows one
    method for all slices and no such factor; `merge_core.staging` writes such a recipe for it.
    """

    sources: tuple[Source, ...]
    base: str | None = None
    parameters: Parameters = ()
    method: str | None = None
    scale: tuple[Setting, ...] = ()


@dataclass(frozen=True, slots=True)
class Module:
    """One stack of a model of several (encoder, decoder, vision tower) and how it is merged."""

    name: str
    slices: tuple[Slice, ...]
    parameters: Parameters = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole merge: method, parents, parameters.

    Attributes:
        method: Name of the merge method.
        slices: Output layers from bottom to top; one slice of all layers for `models` recipes;
            none where `modules` says it stack by stack.
        base: Alias of the base model.
        parameters: Settings that hold unless a slice or source says otherwise.
        dtype: Inputs are rounded to it before any arithmetic.
        out_dtype: What is stored; default `dtype`, else the inputs' own.
        tokenizer: Which vocabulary the output has; None: all parents' must be one already.
        chat_template: `auto`, a known name or a Jinja template; None: the donor's.
        compat: Whether to compute as mergekit does where the two differ.
        modules: The stacks of a model of several, each with slices of its own.
    """

    method: str
    slices: tuple[Slice, ...]
    base: str | None = None
    parameters: Parameters = ()
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: TokenizerBlock | None = None
    chat_template: str | None = None
    compat: bool = False
    modules: tuple[Module, ...] = ()

    @property
    def every_slice(self) -> tuple[Slice, ...]:
        """The slices of the recipe, or else of all its modules."""
        return self.slices or tuple(part for module in self.modules for part in module.slices)

    @property
    def methods(self) -> tuple[str, ...]:
        """The merge methods of its slices, each once."""
        return tuple(dict.fromkeys(part.method or self.method for part in self.every_slice))

    @property
    def models(self) -> tuple[str, ...]:
        """Aliases of all parents in order of appearance, the base last if it is not listed."""
        listed = [source.model for part in self.every_slice for source in part.sources]
        bases = [part.base for part in self.every_slice if part.base] + (
            [self.base] if self.base else []
        )
        return tuple(dict.fromkeys(listed + bases))

    @property
    def references(self) -> tuple[str, ...]:
        """All models that it names: the parents, and those that only its tokenizer names."""
        named = self.tokenizer.models if self.tokenizer else ()
        return tuple(dict.fromkeys([*self.models, *named]))

    @property
    def donor(self) -> str:
        """The parent that gives configuration and tokenizer: the base, or else the first one."""
        first = self.every_slice[0]
        return self.base or first.base or first.sources[0].model

    @property
    def fingerprint(self) -> str:
        """sha256 of the canonical JSON: equal for recipes that are written differently only."""
        text = json.dumps(to_dict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def renamed(self, names: Mapping[str, str]) -> "Recipe":
        """The same recipe with other aliases or paths for its parents."""

        def name(model: str) -> str:
            return names.get(model, model)

        modules = tuple(
            replace(module, slices=tuple(_renamed(part, name) for part in module.slices))
            for module in self.modules
        )
        return replace(
            self,
            slices=tuple(_renamed(part, name) for part in self.slices),
            modules=modules,
            base=name(self.base) if self.base else None,
            tokenizer=self.tokenizer.renamed(name) if self.tokenizer else None,
        )


def from_dict(data: Mapping[str, Any]) -> Recipe:
    """Read a recipe in mergekit's dictionary form.

    Raises:
        RecipeError: For an unknown or missing key or a value of the wrong kind.
    """
    check_keys(data, _RECIPE_KEYS, "recipe")
    method = data.get("merge_method")
    if not isinstance(method, str):
        raise RecipeError("recipe: merge_method is missing; name one, such as 'linear'")
    if sum(key in data for key in ("models", "slices", "modules")) != 1:
        raise RecipeError("recipe: give exactly one of 'models', 'slices' and 'modules'")
    return Recipe(
        method,
        () if "modules" in data else _body(data, ""),
        _model(data, "base_model", "recipe"),
        read_parameters(data.get("parameters"), "parameters"),
        _dtype(data, "dtype"),
        _dtype(data, "out_dtype"),
        read_tokenizer(data),
        read_chat_template(data.get("chat_template")),
        _compat(data.get("compat")),
        _modules(data["modules"]) if "modules" in data else (),
    )


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Write a recipe in mergekit's dictionary form; the inverse of `from_dict`."""
    body = (
        {"modules": {module.name: _module_dict(module) for module in recipe.modules}}
        if recipe.modules
        else _body_dict(recipe.slices)
    )
    head = {"merge_method": recipe.method, "base_model": recipe.base}
    tail = {
        "parameters": _parameters_dict(recipe.parameters),
        "dtype": recipe.dtype,
        "out_dtype": recipe.out_dtype,
        "tokenizer": tokenizer_dict(recipe.tokenizer),
        "chat_template": recipe.chat_template,
        "compat": "mergekit" if recipe.compat else None,
    }
    return {key: value for key, value in (head | body | tail).items() if value}


def read_parameters(data: object, where: str) -> Parameters:
    """Read a `parameters` mapping: scalars, gradients, `{value, filter}` and lists of those.

    Raises:
        RecipeError: If it is none of these.
    """
    if data is None:
        return ()
    if not isinstance(data, Mapping):
        raise RecipeError(f"{where}: expected a mapping of parameter names, got {data!r}")
    items = cast("Mapping[str, object]", data).items()
    return tuple(
        sorted((str(name), read_settings(value, f"{where}.{name}")) for name, value in items)
    )


def read_settings(value: object, where: str) -> tuple[Setting, ...]:
    """Read one parameter: see `read_parameters`.

    Raises:
        RecipeError: If it is none of these.
    """
    if isinstance(value, list):
        entries = cast("list[object]", value)
        if not entries:
            raise RecipeError(f"{where}: an empty list gives no value")
        if all(isinstance(entry, Mapping) for entry in entries):
            return tuple(_setting(entry, where) for entry in entries)
        return (Setting(None, tuple(_scalar(entry, where) for entry in entries)),)
    if isinstance(value, Mapping):
        return (_setting(cast("object", value), where),)
    return (Setting(None, _scalar(value, where)),)


def _setting(data: object, where: str) -> Setting:
    entry = cast("Mapping[str, object]", data)
    check_keys(entry, ("value", "filter"), where)
    if "value" not in entry:
        raise RecipeError(f"{where}: a filtered entry needs a 'value'")
    value, name = entry["value"], entry.get("filter")
    if value == []:
        raise RecipeError(f"{where}: an empty list gives no value")
    read = (
        tuple(_scalar(v, where) for v in cast("list[object]", value))
        if isinstance(value, list)
        else _scalar(value, where)
    )
    return Setting(None if name in (None, "*") else str(name), read)


def _scalar(value: object, where: str) -> Scalar:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:  # YAML reads 1e-5 as a string
            value = float(value)
        except ValueError:
            return value
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)  # 1 and 1.0 are one recipe
    raise RecipeError(f"{where}: expected a number, a boolean or a word, got {value!r}")


def _body(data: Mapping[str, Any], where: str) -> tuple[Slice, ...]:
    """The slices of a recipe or module that gives `models` or `slices`."""
    if "models" in data:
        return (Slice(_sources(data["models"], f"{where}models", ranged=False)),)
    return _slices(data["slices"], f"{where}slices")


def _modules(data: object) -> tuple[Module, ...]:
    if not isinstance(data, Mapping) or not data:
        raise RecipeError("modules: expected a mapping of module names")
    return tuple(
        _module(str(name), part) for name, part in cast("Mapping[str, object]", data).items()
    )


def _module(name: str, data: object) -> Module:
    where = f"modules.{name}"
    if not isinstance(data, Mapping) or ("models" in data) == ("slices" in data):
        raise RecipeError(f"{where}: expected a mapping with one of 'models' and 'slices'")
    part = cast("Mapping[str, Any]", data)
    check_keys(part, ("models", "slices", "parameters"), where)
    slices = _body(part, f"{where}.")
    return Module(name, slices, read_parameters(part.get("parameters"), f"{where}.parameters"))


def _slices(data: object, where: str) -> tuple[Slice, ...]:
    if not isinstance(data, list) or not data:
        raise RecipeError(f"{where}: expected a list of slices")
    return tuple(_slice(part, f"{where}[{i}]") for i, part in enumerate(cast("list[object]", data)))


def _slice(data: object, where: str) -> Slice:
    if not isinstance(data, Mapping):
        raise RecipeError(f"{where}: expected a mapping with 'sources'")
    part = cast("Mapping[str, Any]", data)
    check_keys(part, ("sources", "base_model", "parameters", "merge_method", "scale"), where)
    return Slice(
        _sources(part.get("sources"), f"{where}.sources", ranged=True),
        _model(part, "base_model", where),
        read_parameters(part.get("parameters"), f"{where}.parameters"),
        _text(part, "merge_method", where),
        _factors(part["scale"], f"{where}.scale") if "scale" in part else (),
    )


def _factors(value: object, where: str) -> tuple[Setting, ...]:
    """What a merged slice is multiplied by: numbers, each perhaps for some tensors."""
    settings = read_settings(value, where)
    for setting in settings:
        if isinstance(setting.value, tuple):
            raise RecipeError(f"{where}: a factor has no gradient; write a slice for each factor")
        if isinstance(setting.value, bool | str):
            raise RecipeError(f"{where}: expected a number, got {setting.value!r}")
        if setting.filter and _NUMBERED.search(setting.filter):
            raise RecipeError(
                f"{where}: filter '{setting.filter}' names a layer by its number; write a slice of "
                "that layer alone"
            )
    return settings


def _sources(data: object, where: str, *, ranged: bool) -> tuple[Source, ...]:
    if not isinstance(data, list) or not data:
        raise RecipeError(f"{where}: expected a list of models")
    entries = cast("list[object]", data)
    return tuple(_source(entry, f"{where}[{i}]", ranged) for i, entry in enumerate(entries))


def _source(data: object, where: str, ranged: bool) -> Source:
    if isinstance(data, str):
        data = {"model": data}
    if not isinstance(data, Mapping):
        raise RecipeError(f"{where}: expected a mapping with 'model'")
    entry = cast("Mapping[str, Any]", data)
    check_keys(entry, ("model", "parameters", *(("layer_range",) if ranged else ())), where)
    model = _model(entry, "model", where)
    if model is None:
        raise RecipeError(f"{where}: 'model' is missing")
    layers = _layer_range(entry.get("layer_range"), where) if ranged else None
    return Source(model, layers, read_parameters(entry.get("parameters"), f"{where}.parameters"))


def _layer_range(value: object, where: str) -> tuple[int, int]:
    pair = cast("list[object]", value) if isinstance(value, list) else []
    match pair:
        case [int(start), int(end)] if 0 <= start <= end:  # [8, 8] gives embeddings or head only
            return (start, end)
        case _:
            raise RecipeError(
                f"{where}.layer_range: expected [first, end) with 0 <= first <= end, got {value!r}"
            )


def _model(data: Mapping[str, Any], key: str, where: str) -> str | None:
    value = data.get(key)
    return None if value is None else read_model(value, f"{where}.{key}")


def _compat(value: object) -> bool:
    if value in (None, "mergekit"):
        return value is not None
    raise RecipeError(f"recipe.compat: expected 'mergekit' or no such key, got {value!r}")


def _text(data: Mapping[str, Any], key: str, where: str) -> str | None:
    value = data.get(key)
    if value is None or isinstance(value, str):
        return value
    raise RecipeError(f"{where}.{key}: expected a name, got {value!r}")


def _dtype(data: Mapping[str, Any], key: str) -> str | None:
    given = _text(data, key, "recipe")
    value = None if given is None else given.removeprefix("torch.")
    if value is not None and value not in DTYPE_NAMES:
        raise RecipeError(f"recipe.{key}: '{given}' is no dtype; known: {', '.join(DTYPE_NAMES)}")
    return value


def _renamed(part: Slice, name: Callable[[str], str]) -> Slice:
    sources = tuple(replace(source, model=name(source.model)) for source in part.sources)
    return replace(part, sources=sources, base=name(part.base) if part.base else None)


def _body_dict(slices: tuple[Slice, ...]) -> dict[str, Any]:
    first = slices[0]
    whole = len(slices) == 1 and all(source.layers is None for source in first.sources)
    if whole and first == Slice(first.sources):
        return {"models": [_source_dict(source) for source in first.sources]}
    return {"slices": [_slice_dict(part) for part in slices]}


def _module_dict(module: Module) -> dict[str, Any]:
    more = {"parameters": _parameters_dict(module.parameters)} if module.parameters else {}
    return _body_dict(module.slices) | more


def _source_dict(source: Source) -> dict[str, Any]:
    entry: dict[str, Any] = {"model": source.model}
    if source.layers is not None:
        entry["layer_range"] = list(source.layers)
    if source.parameters:
        entry["parameters"] = _parameters_dict(source.parameters)
    return entry


def _slice_dict(part: Slice) -> dict[str, Any]:
    entry: dict[str, Any] = {"sources": [_source_dict(source) for source in part.sources]}
    if part.method:
        entry["merge_method"] = part.method
    if part.base:
        entry["base_model"] = part.base
    if part.parameters:
        entry["parameters"] = _parameters_dict(part.parameters)
    if part.scale:
        entry["scale"] = _settings_list(part.scale)
    return entry


def _parameters_dict(parameters: Parameters) -> dict[str, Any]:
    return {name: _settings_list(settings) for name, settings in parameters}


def _settings_list(settings: tuple[Setting, ...]) -> Any:
    if len(settings) == 1 and settings[0].filter is None:
        return _plain(settings[0].value)
    return [
        {"value": _plain(s.value)} | ({} if s.filter is None else {"filter": s.filter})
        for s in settings
    ]


def _plain(value: Scalar | tuple[Scalar, ...]) -> Any:
    return list(value) if isinstance(value, tuple) else value
