"""Read a recipe with holes: what may be searched, and every mistake in it.

A hole stands where a recipe has a number or a word:

    {range: [0.0, 1.5]}                                 a number
    {range: auto}                                       a number in the method's own range
    {range: [1e-3, 1], log: true}                       on a logarithmic scale
    {range: [0, 1], by: [self_attn, mlp, "*"]}          one number per group of tensors
    {range: [0, 1], knots: 3}                           a gradient over depth through 3 numbers
    {choice: [a, b]}                                    one of the given
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from merge_core.chat_templates import read_chat_template
from merge_core.errors import RecipeError
from merge_core.keys import nearest
from merge_core.recipe import Scalar
from merge_core.registry import MergeMethod, Parameter, Range, find_method
from merge_core.token_sources import read_tokenizer
from search.space import METHOD, Choice, Hole, Real, SearchSpace, holes, sources

_HOLE_KEYS = ("range", "by", "knots", "log", "choice")
_TOKENIZER_KEYS = ("tokenizer_source", "tokenizer")
_RECIPE_KEYS = (
    *(METHOD, "base_model", "models", "slices", "modules", "parameters", "dtype", "out_dtype"),
    *(*_TOKENIZER_KEYS, "chat_template", "compat"),
)
_MOST_KNOTS = 64


def build_space(
    recipe: Mapping[str, Any], aliases: Iterable[str], mistakes: list[str]
) -> SearchSpace:
    """Read a recipe with holes.

    Args:
        recipe: The study's `recipe` section.
        aliases: Names that its models may have.
        mistakes: What is wrong is added here, each with its YAML path.

    Returns:
        The space; only to be used if no mistake was added.
    """
    reader = _Reader(dict(recipe), tuple(aliases), mistakes)
    return reader.read()


@dataclass(slots=True)
class _Reader:
    recipe: dict[str, Any]
    aliases: tuple[str, ...]
    mistakes: list[str]
    methods: tuple[MergeMethod, ...] = ()

    def read(self) -> SearchSpace:
        self._check_keys(self.recipe, _RECIPE_KEYS, "recipe")
        self.methods = self._read_methods()
        template = dict(self.recipe)
        template["parameters"] = self._parameters(template.get("parameters"), "recipe", "", False)
        if sum(key in template for key in ("models", "slices", "modules")) != 1:
            self.mistakes.append("recipe: give exactly one of 'models', 'slices' and 'modules'")
        self._read_body(template, "recipe", "")
        if "modules" in template:
            template["modules"] = self._modules(template["modules"])
        if (base := template.get("base_model")) is not None:
            self._alias(base, "recipe.base_model")
        self._check_vocabulary()
        if not self.mistakes:
            self._plant_required(template)
        names = tuple(method.name for method in self.methods)
        dimensions = [d for hole in holes(template) for d in hole.dimensions]
        if len(names) > 1:
            dimensions.insert(0, Choice(METHOD, names, names, METHOD))
        if not dimensions and not self.mistakes:
            self.mistakes.append("recipe: has no hole, so there is nothing to search")
        return SearchSpace(template, names, tuple(dimensions))

    def _check_vocabulary(self) -> None:
        """The output's tokenizer is the same for every candidate: it takes no holes."""
        try:
            read_chat_template(self.recipe.get("chat_template"))
            block = read_tokenizer(self.recipe)
        except RecipeError as error:
            self.mistakes.append(str(error))
            return
        for model in block.models if block else ():
            self._alias(model, "recipe.tokenizer")

    def _read_methods(self) -> tuple[MergeMethod, ...]:
        stated: Any = self.recipe.get(METHOD)
        if isinstance(stated, Mapping):
            self._check_keys(cast("Mapping[str, Any]", stated), ("choice",), f"recipe.{METHOD}")
            stated = cast("Any", stated).get("choice")
        names: list[Any] = [stated] if isinstance(stated, str) else stated or []  # pyright: ignore
        if not isinstance(names, list) or not names:  # pyright: ignore[reportUnnecessaryIsInstance]
            self.mistakes.append(f"recipe.{METHOD}: name one, or {{choice: [...]}} of several")
            return ()
        found: list[MergeMethod] = []
        for name in names:
            try:
                found.append(find_method(str(name)))
            except RecipeError as error:
                self.mistakes.append(f"recipe.{error}")
        return tuple(dict.fromkeys(found))

    def _modules(self, data: object) -> dict[str, dict[str, Any]]:
        if not isinstance(data, Mapping) or not data:
            self.mistakes.append("recipe.modules: expected a mapping of module names")
            return {}
        modules = cast("Mapping[Any, Any]", data).items()
        return {str(name): self._module(str(name), part) for name, part in modules}

    def _module(self, name: str, data: object) -> dict[str, Any]:
        where, prefix = f"recipe.modules.{name}", f"{name}."
        if not isinstance(data, Mapping) or ("models" in data) == ("slices" in data):
            self.mistakes.append(f"{where}: expected a mapping with one of 'models' and 'slices'")
            return {}
        module = dict(cast("Mapping[str, Any]", data))
        self._check_keys(module, ("models", "slices", "parameters"), where)
        module["parameters"] = self._parameters(module.get("parameters"), where, prefix, False)
        self._read_body(module, where, prefix)
        return module

    def _read_body(self, body: dict[str, Any], where: str, prefix: str) -> None:
        """The models or slices of a recipe or module; `prefix` begins its dimensions' names."""
        for key in ("models", "slices"):
            if key in body:
                body[key] = self._list(body[key], f"{where}.{key}", prefix)

    def _list(self, data: object, where: str, prefix: str) -> list[dict[str, Any]]:
        if not isinstance(data, list) or not data:
            self.mistakes.append(f"{where}: expected a list")
            return []
        entries = cast("list[Any]", data)
        if where.endswith("models"):
            return [self._source(one, f"{where}[{i}]", prefix) for i, one in enumerate(entries)]
        return [
            self._slice(one, f"{where}[{i}]", f"{prefix}slice{i}.") for i, one in enumerate(entries)
        ]

    def _slice(self, data: Any, where: str, prefix: str) -> dict[str, Any]:
        if not isinstance(data, Mapping):
            self.mistakes.append(f"{where}: expected a mapping with 'sources'")
            return {}
        part = dict(cast("Mapping[str, Any]", data))
        self._check_keys(part, ("sources", "base_model", "parameters"), where)
        part["parameters"] = self._parameters(part.get("parameters"), where, prefix, False)
        sources = part.get("sources")
        if not isinstance(sources, list) or not sources:
            self.mistakes.append(f"{where}.sources: expected a list of models")
            return part
        part["sources"] = [
            self._source(source, f"{where}.sources[{i}]", prefix)
            for i, source in enumerate(cast("list[Any]", sources))
        ]
        return part

    def _source(self, data: Any, where: str, prefix: str) -> dict[str, Any]:
        if isinstance(data, str):
            data = {"model": data}
        if not isinstance(data, Mapping):
            self.mistakes.append(f"{where}: expected a mapping with 'model', got {data!r}")
            return {"model": None, "parameters": {}}
        entry = {str(key): value for key, value in cast("Mapping[Any, Any]", data).items()}
        self._check_keys(entry, ("model", "layer_range", "parameters"), where)
        self._alias(entry.get("model"), f"{where}.model")
        prefix = f"{prefix}{entry.get('model')}."
        entry["parameters"] = self._parameters(entry.get("parameters"), where, prefix, True)
        return entry

    def _alias(self, name: object, where: str) -> None:
        if name is None:
            self.mistakes.append(f"{where}: is missing")
        elif name not in self.aliases:
            hint = nearest(str(name), self.aliases)
            self.mistakes.append(f"{where}: '{name}' is not under 'models'; {hint}")

    def _parameters(self, data: Any, where: str, prefix: str, in_source: bool) -> dict[str, Any]:
        if data is None:
            return {}
        if not isinstance(data, Mapping):
            self.mistakes.append(f"{where}.parameters: expected a mapping of parameter names")
            return {}
        read: dict[str, Any] = {}
        for key, value in cast("Mapping[Any, Any]", data).items():
            name = str(key)
            place = f"{where}.parameters.{name}"
            owners = [m for m in self.methods if m.parameter(name)]
            self._check_owners(name, owners, place, in_source)
            read[name] = self._value(value, place, prefix + name, name, owners)
        return read

    def _check_owners(
        self, name: str, owners: list[MergeMethod], place: str, in_source: bool
    ) -> None:
        if not self.methods:
            return
        if not owners:
            known = dict.fromkeys(p.name for m in self.methods for p in m.parameters)
            methods = ", ".join(m.name for m in self.methods)
            self.mistakes.append(
                f"{place}: {methods} has no parameter '{name}'; {nearest(name, known)}"
            )
        shared = [m.name for m in owners if not cast("Parameter", m.parameter(name)).per_parent]
        if in_source and shared:
            self.mistakes.append(
                f"{place}: '{name}' of {', '.join(shared)} is one value for all models; put it "
                "under recipe.parameters"
            )

    def _value(
        self, value: Any, place: str, name: str, parameter: str, owners: list[MergeMethod]
    ) -> Any:
        if isinstance(value, list) and any(holes_in(entry) for entry in cast("list[Any]", value)):
            self.mistakes.append(
                f"{place}: a hole can't stand in a list; write one hole with 'by' and 'knots'"
            )
        if not isinstance(value, Mapping) or "value" in value:
            return cast("Any", value)
        hole = cast("Mapping[str, Any]", value)
        before = len(self.mistakes)
        self._check_keys(hole, _HOLE_KEYS, place)
        methods = tuple(method.name for method in owners)
        if "choice" in hole:
            if len(hole) > 1:
                self.mistakes.append(f"{place}: 'choice' stands alone; it takes no other key")
            options = self._options(hole, place, parameter, owners)
            return Hole(((None, (Choice(name, options, methods, parameter),)),))
        if "range" not in hole:
            if len(self.mistakes) == before:
                self.mistakes.append(f"{place}: a hole needs 'range' or 'choice'")
            return Hole(())
        if words := _words(parameter, owners):
            self.mistakes.append(
                f"{place}: '{parameter}' is one of {', '.join(words)}, so it has no range; write "
                "{choice: [...]} of them"
            )
            return Hole(())
        return self._range_hole(hole, place, name, parameter, owners)

    def _options(
        self, hole: Mapping[str, Any], place: str, parameter: str, owners: list[MergeMethod]
    ) -> tuple[Scalar, ...]:
        options = hole["choice"]
        if not isinstance(options, list) or len(cast("list[Any]", options)) < 2:
            self.mistakes.append(f"{place}.choice: expected a list of two or more values")
            return ()
        options = [_number(option) for option in cast("list[Any]", options)]
        asked = [p for m in owners if (p := m.parameter(parameter))]
        wrong = [o for o in options if any(not _fits(p, o) for p in asked)]
        if wrong:
            words = _words(parameter, owners)
            hint = f"; {nearest(str(wrong[0]), words)}" if words else ""
            self.mistakes.append(f"{place}.choice: '{parameter}' can't be {wrong[0]!r}{hint}")
        return tuple(cast("list[Scalar]", options))

    def _range_hole(
        self,
        hole: Mapping[str, Any],
        place: str,
        name: str,
        parameter: str,
        owners: list[MergeMethod],
    ) -> Hole:
        span = self._span(hole, place, parameter, owners)
        knots, by = self._knots(hole, place), self._by(hole, place)
        methods = tuple(method.name for method in owners)
        one = Real(name, span.low, span.high, span.log, methods, parameter)
        return Hole(
            tuple(
                (
                    None if group in (None, "*") else group,
                    tuple(
                        replace(
                            one,
                            name=name
                            + (f"[{group}]" if group else "")
                            + (f"@{knot}" if knots > 1 else ""),
                        )
                        for knot in range(knots)
                    ),
                )
                for group in by
            )
        )

    def _span(
        self, hole: Mapping[str, Any], place: str, parameter: str, owners: list[MergeMethod]
    ) -> Range:
        stated, log = hole["range"], hole.get("log", False)
        if not isinstance(log, bool):
            self.mistakes.append(f"{place}.log: expected true or false, got {log!r}")
            log = False
        if stated == "auto":
            declared = _declared(parameter, owners)
            if declared is None:
                self.mistakes.append(f"{place}.range: '{parameter}' declares no range; give one")
            return declared or Range(0.0, 1.0)
        if isinstance(stated, list):
            stated = [_number(end) for end in cast("list[Any]", stated)]
        match stated:
            case [int() | float() as low, int() | float() as high] if _ordered(low, high):
                if log and low <= 0:
                    self.mistakes.append(f"{place}.range: a logarithmic range must start above 0")
                return Range(float(low), float(high), log)
            case _:
                self.mistakes.append(
                    f"{place}.range: expected [low, high] with low < high, or auto, got {stated!r}"
                )
                return Range(0.0, 1.0)

    def _knots(self, hole: Mapping[str, Any], place: str) -> int:
        knots = hole.get("knots", 1)
        if isinstance(knots, bool) or not isinstance(knots, int) or not 1 <= knots <= _MOST_KNOTS:
            self.mistakes.append(
                f"{place}.knots: expected a whole number from 1 to {_MOST_KNOTS}, got {knots!r}"
            )
            return 1
        return knots

    def _by(self, hole: Mapping[str, Any], place: str) -> list[str | None]:
        if "by" not in hole:
            return [None]
        by = hole["by"]
        names = cast("list[str | None]", by) if isinstance(by, list) else []
        if not names or not all(isinstance(name, str) for name in names):
            self.mistakes.append(f"{place}.by: expected parts of tensor names, got {by!r}")
            return [None]
        if len(set(names)) < len(names) or "*" in names[:-1]:
            self.mistakes.append(f'{place}.by: each group once, "*" (the rest) last, got {by!r}')
        return names

    def _plant_required(self, template: dict[str, Any]) -> None:
        """A required parameter that the file leaves out is searched in its declared range."""
        needed = {p.name: p for m in self.methods for p in m.parameters if p.required}
        for parameter in needed.values():
            owners = [m for m in self.methods if m.parameter(parameter.name)]
            if parameter.name in template["parameters"]:
                continue
            if not parameter.per_parent:
                if all(parameter.name in part for _, part, _ in sources(template)):
                    continue
                hole = self._planted(parameter, parameter.name, owners)
                template["parameters"][parameter.name] = hole
                continue
            for prefix, part, source in sources(template):
                given = parameter.name in source["parameters"] or parameter.name in part
                is_base = source["model"] == template.get("base_model")
                if not given and not (is_base and all(m.base.apart for m in owners)):
                    name = f"{prefix}{source['model']}.{parameter.name}"
                    source["parameters"][parameter.name] = self._planted(parameter, name, owners)

    def _planted(self, parameter: Parameter, name: str, owners: list[MergeMethod]) -> Any:
        words = list(_words(parameter.name, owners))
        hole = {"choice": words} if words else {"range": "auto"}
        return self._value(hole, f"recipe ({name})", name, parameter.name, owners)

    def _check_keys(self, data: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
        for key in data:
            if key not in known:
                self.mistakes.append(f"{where}.{key}: unknown key; {nearest(str(key), known)}")


def _number(value: Any) -> Any:
    """A number that YAML reads as a word (1e-3) as a number; anything else as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _fits(parameter: Parameter, value: Any) -> bool:
    if parameter.kind is str:
        return value in parameter.choices
    if parameter.kind is bool:
        return isinstance(value, bool)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _words(parameter: str, owners: list[MergeMethod]) -> tuple[str, ...]:
    """The words that a parameter may be; none for numbers and booleans."""
    found = [m.parameter(parameter) for m in owners]
    return next((p.choices for p in found if p and p.choices), ())


def _declared(parameter: str, owners: list[MergeMethod]) -> Range | None:
    found = [m.parameter(parameter) for m in owners]
    return next((p.range for p in found if p and p.range), None)


def _ordered(low: float, high: float) -> bool:
    booleans = isinstance(low, bool) or isinstance(high, bool)
    return not booleans and math.isfinite(low) and math.isfinite(high) and low < high


def holes_in(entry: object) -> bool:
    """Whether a list entry tries to be a hole, itself or in its `value`."""
    if not isinstance(entry, Mapping):
        return False
    data = cast("Mapping[str, object]", entry)
    return "range" in data or "choice" in data or holes_in(data.get("value"))
