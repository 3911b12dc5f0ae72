"""Read a recipe with holes: what may be searched, and every mistake in it.

A hole stands where a recipe has a number or a word:

    {range: [0.0, 1.5]}                                 a number
    {range: auto}                                       a number in the method's own range
    {range: [1e-3, 1], log: true}                       on a logarithmic scale
    {range: [1, 8], integer: true}                      a whole number
    {range: [0, 1], start: 0.6}                         tried first
    {range: [0, 1], prior: {mean: 0.6, sd: 0.2}}        more often where it is likely
    {range: [0, 1], by: [self_attn, mlp, "*"]}          one number per group of tensors
    {range: [0, 1], by: roles}                          ... per role: attention, mlp, norm, ...
    {range: [0, 1], knots: 3}                           a gradient over depth through 3 numbers
    {range: [0, 1], per: layer}                         one number per layer; per: 4 for every four
    {simplex: true}                                     beside the models: weights that sum to one
    {choice: [a, b]}                                    one of the given

A choice may stand for a model, for a model with its parameters, for `parameters`, `models`,
`sources`, `slices`, one slice, or the whole recipe; holes inside exist where it is chosen.
`docs/search-space.md` shows all forms.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from merge_core.chat_templates import read_chat_template
from merge_core.checkpoint import Checkpoint
from merge_core.errors import RecipeError
from merge_core.interleave import COPY
from merge_core.keys import nearest
from merge_core.registry import MergeMethod, Parameter, find_method
from merge_core.token_sources import read_tokenizer
from search.dimensions import METHOD, Choice
from search.forms import has_form, is_form, kind_of, read_layout
from search.numbers import is_simplex, parameter_words, read_shares, read_value
from search.scopes import Scope, labelled, leaves
from search.space import BRANCH, Branch, SearchSpace, dimensions_of, listed
from search.spreads import Layers
from search.starts import first_points

_TOKENIZER_KEYS = ("tokenizer_source", "tokenizer")
_COMMON_KEYS = ("dtype", "out_dtype", *_TOKENIZER_KEYS, "chat_template", "compat")
_OWN_KEYS = (METHOD, "base_model", "models", "slices", "modules", "parameters")
_RECIPE_KEYS = (*_OWN_KEYS, *_COMMON_KEYS)
_AS_FORM = "write it without the dash, 'slices: {origin: ...}'"


def build_space(
    recipe: Mapping[str, Any],
    aliases: Iterable[str],
    mistakes: list[str],
    parents: Mapping[str, Checkpoint] | None = None,
    *,
    numbers: bool = False,
) -> SearchSpace:
    """Read a recipe with holes.

    Args:
        recipe: The study's `recipe` section.
        aliases: Names that its models may have.
        mistakes: What is wrong is added here, each with its YAML path.
        parents: The opened models, which roles and numbers per layer are read from; None where
            they are not open.
        numbers: Whether the study's sampler knows numbers only.

    Returns:
        The space; only to be used if no mistake was added.
    """
    reader = _Reader(tuple(aliases), mistakes, numbers)
    template = reader.read(dict(recipe), Scope("recipe", "", Layers(parents)))
    dimensions = tuple(dimensions_of(template))
    methods = tuple(dict.fromkeys(reader.methods))
    opened = (parents or {}).items()
    depths = {alias: p.layout.depth for alias, p in opened if len(p.layout.stacks) == 1}
    space = SearchSpace(template, methods, dimensions, depths=depths)
    if mistakes:
        return space
    names = [dimension.name for dimension in dimensions]
    if not names:
        mistakes.append("recipe: has no hole, so there is nothing to search")
    elif twice := next((name for name in names if names.count(name) > 1), None):
        mistakes.append(f"recipe: two holes are both called '{twice}'; name their choices apart")
    else:
        return replace(space, points=first_points(space))
    return space


@dataclass(slots=True)
class _Leaf:
    """One way in which a source may be read: its parameters and where they stand."""

    parameters: dict[str, Any]
    model: str | None
    scope: Scope


@dataclass(slots=True)
class _Reader:
    aliases: tuple[str, ...]
    mistakes: list[str]
    numbers: bool
    methods: list[str] = field(default_factory=list[str])
    found: list[_Leaf] = field(default_factory=list[_Leaf])

    def read(self, data: dict[str, Any], scope: Scope) -> dict[str, Any]:
        """The template of the whole `recipe` section."""
        self._check_vocabulary(data)
        if BRANCH not in data:
            self._check_keys(data, _RECIPE_KEYS, scope)
            return self._recipe(data, scope)
        self._check_keys(data, (BRANCH, "start", *_COMMON_KEYS), scope)
        chosen = {key: data[key] for key in (BRANCH, "start") if key in data}
        common = {key: value for key, value in data.items() if key not in chosen}

        def option(part: Any, inner: Scope) -> Any:
            if not isinstance(part, Mapping):
                self._tell(inner, ": expected a recipe")
                return {METHOD: ""}
            own = cast("Mapping[str, Any]", part)
            if BRANCH in own:
                self._tell(inner, ": a choice of recipes can't stand in another; list all in one")
                return {METHOD: ""}
            self._check_keys(own, _OWN_KEYS, inner)
            return self._recipe(dict(own), inner)

        return common | {BRANCH: self._choose(chosen, scope, "recipe", BRANCH, option, "")}

    def _recipe(self, data: dict[str, Any], scope: Scope) -> dict[str, Any]:
        """The template of one recipe: its method first, which decides what parameters exist."""
        if has_form(data.get("slices")) and "models" not in data:
            data = {METHOD: COPY} | data
        methods, word = self._read_methods(data.get(METHOD), scope)
        name = f"{scope.prefix}{METHOD}"
        base = data.get("base_model")
        scope = replace(scope, methods=methods, method_name=name, base=base)
        if base is not None:
            self._alias(base, scope.at(".base_model"))
        bodies = [key for key in ("models", "slices", "modules") if key in data]
        if len(bodies) != 1 and not (bodies == ["models", "slices"] and has_form(data["slices"])):
            self._tell(scope, ": give exactly one of 'models', 'slices' and 'modules'")
        before, self.found = self.found, []
        rest = {key: value for key, value in data.items() if key != METHOD}
        template = {METHOD: word} | rest | self._body(rest, scope)
        if not self.mistakes:
            self._plant_required(template["parameters"], scope)
        self.found = before
        return template

    def _check_vocabulary(self, data: Mapping[str, Any]) -> None:
        """The output's tokenizer is the same for every candidate: it takes no holes."""
        try:
            read_chat_template(data.get("chat_template"))
            block = read_tokenizer(data)
        except RecipeError as error:
            self.mistakes.append(str(error))
            return
        for model in block.models if block else ():
            self._alias(model, Scope("recipe.tokenizer", "", Layers(None)))

    def _read_methods(self, stated: Any, scope: Scope) -> tuple[tuple[MergeMethod, ...], Any]:
        start: Any = None
        if isinstance(stated, Mapping):
            given = cast("Mapping[str, Any]", stated)
            self._check_keys(given, ("choice", "start"), scope.at(f".{METHOD}"))
            stated, start = given.get("choice"), given.get("start")
        names: list[Any] = [stated] if isinstance(stated, str) else stated or []  # pyright: ignore
        if not isinstance(names, list) or not names:  # pyright: ignore[reportUnnecessaryIsInstance]
            self._tell(scope, f".{METHOD}: name one, or {{choice: [...]}} of several")
            return (), ""
        found: list[MergeMethod] = []
        for name in names:
            try:
                found.append(find_method(str(name)))
            except RecipeError as error:
                self._tell(scope, f".{error}")
        methods = tuple(dict.fromkeys(found))
        words = tuple(method.name for method in methods)
        self.methods += words
        if start is not None and start not in words:
            self._tell(scope, f".{METHOD}.start: {start!r} is none of {', '.join(words)}")
        if len(words) < 2:
            return methods, next(iter(words), "")
        own = f"{scope.prefix}{METHOD}"
        return methods, Branch(Choice(own, words, words, METHOD, scope.under, start), words)

    # Bodies: what a recipe, a module and a slice have in common.

    def _body(self, data: Mapping[str, Any], scope: Scope) -> dict[str, Any]:
        """Parameters, and the models or slices or modules that they are of."""
        parameters, shares = self._outer(data, scope)
        inner = replace(scope, outer=(*scope.outer, parameters))
        read: dict[str, Any] = {"parameters": parameters}
        for key in ("models", "slices", "modules"):
            if key in data and not (key == "slices" and is_form(data[key])):
                read[key] = self._list(data[key], key, inner, shares)
        if is_form(data.get("slices")):
            read["slices"] = self._layout(data["slices"], scope.at(".slices"), read)
        return read

    def _layout(self, data: Any, scope: Scope, read: Mapping[str, Any]) -> Any:
        """The order of layers, whose `merge` is what the models are merged to."""
        merged = listed({"models": read.get("models")})
        base = (scope.base,) if merged and scope.base else ()
        merged = tuple(dict.fromkeys((*merged, *base)))

        def read_form(form: Any, inner: Scope) -> Any:
            tell, numbers = self.mistakes.append, self.numbers
            found = read_layout(form, inner, merged, numbers=numbers, tell=tell)
            return [] if found is None else found

        return self._maybe(data, scope, f"{scope.prefix}slices", read_form)

    def _outer(self, data: Mapping[str, Any], scope: Scope) -> tuple[Any, dict[str, Any]]:
        """Parameters of a place, and apart from them the weights that its models share."""
        given = data.get("parameters")
        if not isinstance(given, Mapping) or BRANCH in given:
            return self._parameters(given, scope, in_source=False), {}
        items = cast("Mapping[Any, Any]", given).items()
        shares = {str(key): value for key, value in items if is_simplex(value)}
        others = {str(key): value for key, value in items if not is_simplex(value)}
        return self._parameters(others, scope, in_source=False), shares

    def _list(self, data: Any, key: str, scope: Scope, shares: dict[str, Any]) -> Any:
        """Models, slices or modules; models and slices may be chosen from."""
        scope = scope.at(f".{key}")
        if key != "models":
            self._refuse_shares(shares, scope)
        if key == "modules":
            return self._modules(data, scope)

        def read(part: Any, inner: Scope) -> Any:
            if not isinstance(part, list) or not part:
                self._tell(inner, _unlisted(part))
                return []
            entries = cast("list[Any]", part)
            if key == "slices":
                return [self._slice(one, inner, at) for at, one in enumerate(entries)]
            return self._sources(entries, inner, shares)

        return self._maybe(data, scope, f"{scope.prefix}{key}", read)

    def _refuse_shares(self, shares: dict[str, Any], scope: Scope) -> None:
        for parameter in shares:
            self._tell(
                scope,
                f": '{parameter}' sums to one over the models of one place; put the simplex under "
                "the parameters of each slice",
            )

    def _modules(self, data: Any, scope: Scope) -> dict[str, dict[str, Any]]:
        if not isinstance(data, Mapping) or not data:
            self._tell(scope, ": expected a mapping of module names")
            return {}
        modules = cast("Mapping[Any, Any]", data).items()
        return {str(name): self._module(str(name), part, scope) for name, part in modules}

    def _module(self, name: str, data: Any, scope: Scope) -> dict[str, Any]:
        scope = scope.at(f".{name}", f"{name}.")
        scope = replace(scope, layers=replace(scope.layers, stack=name))
        if not isinstance(data, Mapping) or ("models" in data) == ("slices" in data):
            self._tell(scope, ": expected a mapping with one of 'models' and 'slices'")
            return {"parameters": {}}
        module = dict(cast("Mapping[str, Any]", data))
        self._check_keys(module, ("models", "slices", "parameters"), scope)
        return self._body(module, scope)

    def _slice(self, data: Any, scope: Scope, at: int) -> Any:
        scope = scope.at(f"[{at}]")

        def read(part: Any, inner: Scope) -> Any:
            if not isinstance(part, Mapping):
                self._tell(inner, ": expected a mapping with 'sources'")
                return {"parameters": {}, "sources": []}
            if kind := kind_of(cast("Mapping[str, Any]", part)):
                self._tell(inner, f": '{kind}' is no slice, it says all of them: {_AS_FORM}")
                return {"parameters": {}, "sources": []}
            return self._plain_slice(cast("Mapping[str, Any]", part), inner)

        name = f"{scope.prefix}slice{at}"
        if _is_choice(data):
            return self._maybe(data, scope, name, read)
        return read(data, scope.at("", f"slice{at}."))

    def _plain_slice(self, data: Mapping[str, Any], scope: Scope) -> dict[str, Any]:
        self._check_keys(data, ("sources", "base_model", "parameters"), scope)
        base = data.get("base_model", scope.base)
        if data.get("base_model") is not None:
            self._alias(base, scope.at(".base_model"))
        layers = replace(scope.layers, length=_length(data.get("sources")) or scope.layers.length)
        scope = replace(scope, layers=layers, base=base)
        parameters, shares = self._outer(data, scope)
        inner = replace(scope, outer=(*scope.outer, parameters)).at(".sources")

        def read(part: Any, here: Scope) -> Any:
            if not isinstance(part, list) or not part:
                self._tell(here, ": expected a list of models")
                return []
            return self._sources(cast("list[Any]", part), here, shares)

        sources = self._maybe(data.get("sources"), inner, f"{inner.prefix}sources", read)
        return dict(data) | {"parameters": parameters, "sources": sources}

    # Sources: models with their parameters.

    def _sources(self, entries: list[Any], scope: Scope, shares: dict[str, Any]) -> list[Any]:
        read: list[Any] = []
        ways: list[list[_Leaf]] = []
        for at, entry in enumerate(entries):
            before = len(self.found)
            read.append(self._source(entry, scope, at))
            ways.append(self.found[before:])
        self._check_once(ways, scope)
        for parameter, hole in shares.items():
            self._plant_shares(parameter, hole, ways, scope)
        return read

    def _source(self, data: Any, scope: Scope, at: int) -> Any:
        scope = scope.at(f"[{at}]")
        name = f"{scope.prefix}model{at}"
        if not _is_choice(data):
            return self._one_source(data, scope, name, named=False)
        return self._maybe(
            data, scope, name, lambda part, inner: self._one_source(part, inner, name, named=True)
        )

    def _one_source(self, data: Any, scope: Scope, name: str, *, named: bool) -> dict[str, Any]:
        """A model with its parameters; `named` where a choice has given it a name already."""
        if isinstance(data, str):
            data = {"model": data}
        if not isinstance(data, Mapping):
            self._tell(scope, f": expected a mapping with 'model', got {data!r}")
            return {"model": None, "parameters": {}}
        entry = {str(key): value for key, value in cast("Mapping[Any, Any]", data).items()}
        self._check_keys(entry, ("model", "layer_range", "parameters"), scope)
        place, model = scope.at(".model"), entry.get("model")
        if _is_choice(model):
            entry["model"] = self._model_choice(cast("Any", model), place, name)
            own = f"{name}."
        else:
            self._alias(model, place)
            own = f"{model}."
        length = _length([entry]) or scope.layers.length
        inner = replace(scope, layers=replace(scope.layers, length=length))
        inner = inner if named else inner.at("", own)
        parameters = self._parameters(entry.get("parameters"), inner, in_source=True)
        options = entry["model"].nodes if isinstance(entry.get("model"), Branch) else (model,)
        for leaf, where in self._leaf_scopes(parameters, inner):
            self.found += [_Leaf(leaf, cast("Any", option), where) for option in options]
        return entry | {"parameters": parameters}

    def _model_choice(self, data: Mapping[str, Any], scope: Scope, name: str) -> Branch:
        def read(option: Any, inner: Scope) -> Any:
            self._alias(option, inner)
            return option

        return self._choose(data, scope, name, "model", read)

    def _leaf_scopes(self, node: Any, scope: Scope) -> list[tuple[dict[str, Any], Scope]]:
        if not isinstance(node, Branch):
            return [(node, scope)]
        name = node.choice.name
        return [
            (part, scope.option(at, name, str(label), f"{name}.{label}."))
            for at, (label, part) in enumerate(zip(node.choice.options, node.nodes, strict=True))
        ]

    def _check_once(self, ways: list[list[_Leaf]], scope: Scope) -> None:
        """No two sources may turn out to be the same model: such a merge does not exist."""
        seen: dict[str, int] = {}
        for at, leafs in enumerate(ways):
            models = dict.fromkeys(leaf.model for leaf in leafs if leaf.model in self.aliases)
            for model in cast("dict[str, None]", models):
                if model in seen and (len(models) > 1 or _several(ways[seen[model]])):
                    self._tell(
                        scope,
                        f"[{at}]: '{model}' may be chosen here and in [{seen[model]}], but a merge "
                        "takes a model once; choose between lists of models instead",
                    )
                elif model == scope.base and len(models) > 1:
                    self._tell(scope, f"[{at}]: '{model}' is the base model; leave it out here")
                seen.setdefault(model, at)

    def _plant_shares(
        self, parameter: str, hole: Mapping[str, Any], ways: list[list[_Leaf]], scope: Scope
    ) -> None:
        """Give each model its part of weights that sum to one."""
        where = scope.where.rpartition(".")[0]
        place = replace(scope, where=f"{where}.parameters.{parameter}")
        owners = [m for m in scope.methods if m.parameter(parameter)]
        self._check_owners(parameter, owners, place, in_source=False)
        if any(not cast("Parameter", m.parameter(parameter)).per_parent for m in owners):
            self._tell(place, ": is one value for all models, so it is no simplex")
            return
        apart = [m.base.apart for m in owners]
        takers = [
            leafs
            for leafs in ways
            if not (any(apart) and leafs and all(leaf.model == scope.base for leaf in leafs))
        ]
        if len(takers) < 2:
            self._tell(place, ": a simplex needs two models or more beside the base model")
            return
        names = [f"{leafs[0].scope.prefix}{parameter}" for leafs in takers]
        shares = read_shares(hole, place, names, parameter, self.mistakes.append)
        for leafs, share in zip(takers, shares, strict=True):
            for leaf in leafs:
                if leaf.parameters.get(parameter, share) is not share:
                    self._tell(leaf.scope, f".parameters.{parameter}: is given by the simplex")
                leaf.parameters[parameter] = share
        if any(apart) and not all(apart):  # a method for which the base is a parent among others
            for leafs in ways:
                if leafs not in takers:
                    leafs[0].parameters.setdefault(parameter, 0.0)

    # Parameters.

    def _parameters(self, data: Any, scope: Scope, *, in_source: bool) -> Any:
        scope = scope.at(".parameters")

        def read(part: Any, inner: Scope) -> Any:
            return self._plain_parameters(part, inner, in_source=in_source)

        if _is_choice(data):
            return self._choose(data, scope, f"{scope.prefix}parameters", "parameters", read)
        return read(data, scope)

    def _plain_parameters(self, data: Any, scope: Scope, *, in_source: bool) -> dict[str, Any]:
        if data is None:
            return {}
        if not isinstance(data, Mapping):
            self._tell(scope, ": expected a mapping of parameter names")
            return {}
        read: dict[str, Any] = {}
        for key, value in cast("Mapping[Any, Any]", data).items():
            name = str(key)
            place = scope.at(f".{name}", name)
            owners = [m for m in scope.methods if m.parameter(name)]
            self._check_owners(name, owners, place, in_source=in_source)
            read[name] = read_value(value, place, name, owners, self.mistakes.append)
        return read

    def _check_owners(
        self, name: str, owners: list[MergeMethod], scope: Scope, *, in_source: bool
    ) -> None:
        if not scope.methods:
            return
        if not owners:
            known = dict.fromkeys(p.name for m in scope.methods for p in m.parameters)
            methods = ", ".join(m.name for m in scope.methods)
            self._tell(scope, f": {methods} has no parameter '{name}'; {nearest(name, known)}")
        shared = [m.name for m in owners if not cast("Parameter", m.parameter(name)).per_parent]
        if in_source and shared:
            self._tell(
                scope,
                f": '{name}' of {', '.join(shared)} is one value for all models; put it under "
                "recipe.parameters",
            )

    def _plant_required(self, outer: Any, scope: Scope) -> None:
        """A required parameter that the file leaves out is searched in its declared range."""
        needed = {p.name: p for m in scope.methods for p in m.parameters if p.required}
        for parameter in needed.values():
            name = parameter.name
            owners = [m for m in scope.methods if m.parameter(name)]
            if all(name in leaf for leaf in leaves(outer)):
                continue
            if not parameter.per_parent:
                # The recipe's own parameters are the first of those around.
                if not all(
                    replace(leaf.scope, outer=leaf.scope.outer[1:]).gives(name)
                    for leaf in self.found
                ):
                    for leaf, where in self._leaf_scopes(outer, scope):
                        if name not in leaf:
                            leaf[name] = self._planted(name, where, owners)
                continue
            for leaf in self.found:
                apart = leaf.model == leaf.scope.base and all(m.base.apart for m in owners)
                if name not in leaf.parameters and not leaf.scope.gives(name) and not apart:
                    leaf.parameters[name] = self._planted(name, leaf.scope, owners)

    def _planted(self, name: str, scope: Scope, owners: list[MergeMethod]) -> Any:
        words = list(parameter_words(name, owners))
        hole = {"choice": words} if words else {"range": "auto"}
        own = f"{scope.prefix}{name}"
        place = replace(scope, where=f"recipe ({own})", prefix=own)
        return read_value(hole, place, name, owners, self.mistakes.append)

    # Choices and what all places need.

    def _maybe(self, data: Any, scope: Scope, name: str, read: Callable[[Any, Scope], Any]) -> Any:
        return (
            self._choose(data, scope, name, name, read) if _is_choice(data) else read(data, scope)
        )

    def _choose(
        self,
        data: Mapping[str, Any],
        scope: Scope,
        name: str,
        kind: str,
        read: Callable[[Any, Scope], Any],
        prefix: str | None = None,
    ) -> Branch:
        """A choice between parts of a recipe, each of which is read under its own condition."""
        self._check_keys(data, (BRANCH, "start"), scope)
        pairs = labelled(data.get(BRANCH))
        if pairs is None:
            self._tell(scope, ".choice: expected two or more, as a list or by name")
            pairs = []
        labels, start = tuple(label for label, _ in pairs), data.get("start")
        if start is not None and start not in labels:
            self._tell(scope, f".start: {start!r} is none of {', '.join(labels)}")
        methods = tuple(method.name for method in scope.methods)
        choice = Choice(name, labels, methods, kind, scope.under, start)
        head = f"{name}." if prefix is None else prefix
        nodes = [
            read(part, scope.option(at, name, label, f"{head}{label}."))
            for at, (label, part) in enumerate(pairs)
        ]
        return Branch(choice, tuple(nodes))

    def _alias(self, name: object, scope: Scope) -> None:
        if name is None:
            self._tell(scope, ": is missing")
        elif name not in self.aliases:
            hint = nearest(str(name), self.aliases)
            self._tell(scope, f": '{name}' is not under 'models'; {hint}")

    def _check_keys(self, data: Mapping[str, Any], known: tuple[str, ...], scope: Scope) -> None:
        for key in data:
            if key not in known:
                self._tell(scope, f".{key}: unknown key; {nearest(str(key), known)}")

    def _tell(self, scope: Scope, text: str) -> None:
        self.mistakes.append(f"{scope.where}{text}")


def _unlisted(data: Any) -> str:
    """What is wrong with slices that are no list; a form among lists can't have a method."""
    if isinstance(data, Mapping) and kind_of(cast("Mapping[str, Any]", data)):
        return (
            ": expected a list of slices, as the other options are; between them and a form "
            "choose as whole recipes, 'recipe: {choice: [...]}'"
        )
    return ": expected a list"


def _is_choice(data: Any) -> bool:
    return isinstance(data, Mapping) and BRANCH in data


def _several(leafs: list[_Leaf]) -> bool:
    return len({leaf.model for leaf in leafs}) > 1


def _length(sources: Any) -> int | None:
    """How many layers a slice makes, if its first source says so."""
    for source in cast("list[Any]", sources) if isinstance(sources, list) else []:
        if isinstance(source, Mapping):
            match cast("Mapping[str, Any]", source).get("layer_range"):
                case [int(first), int(end)] if end > first:
                    return end - first
                case _:
                    pass
    return None
