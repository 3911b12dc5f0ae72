"""Which output tensor is made of which: everything of a plan but its numbers.

Every check of names, layer ranges, shapes and dtypes happens here. A blueprint depends on the
recipe's structure and the parents' headers alone, so it is kept for the next candidate.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, cast

import torch

from merge_core.checkpoint import Checkpoint, TensorSpec
from merge_core.errors import RecipeError
from merge_core.fit import check_fit
from merge_core.geometry import TensorRef
from merge_core.naming import Key, Stack, role, with_depth
from merge_core.outer import Outer, find_outer, outer_tensors, untie
from merge_core.recipe import Module, Recipe, Slice, Source
from merge_core.registry import Base, MergeMethod, find_method

_Kind = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One output tensor; see MergeStep. `part` is its slice, `depth` its place there, 0 to 1."""

    out: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    method: str | None
    inputs: tuple[TensorRef, ...]
    base: TensorRef | None
    rounding: torch.dtype | None
    part: int
    depth: float


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A plan without its numbers.

    Attributes:
        rows: One per output tensor: those outside the layers, then layer by layer.
        stacks: Names of the output's stacks; parts count the slices of the first, then the next.
        donor: Alias of the parent that gives configuration and tokenizer.
        config: The output's `config.json`.
        depth: Number of output layers.
        warnings: What differs between the parents' configurations.
    """

    rows: tuple[Row, ...]
    stacks: tuple[str, ...]
    donor: str
    config: Mapping[str, Any]
    depth: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Inputs:
    """A slice as its method sees it: the sources that are parents, and the base's."""

    sources: tuple[Source, ...]
    base: Source | None

    @property
    def every(self) -> tuple[Source, ...]:
        """Parents and base, each once."""
        apart = self.base is not None and self.base not in self.sources
        return (*self.sources, self.base) if apart and self.base else self.sources


@dataclass(frozen=True, slots=True)
class _Part:
    """A slice in its stack. `at` is its place among all slices, `where` its name in errors."""

    at: int
    where: str
    stack: str
    inputs: Inputs


@dataclass(frozen=True, slots=True)
class _Site:
    """What every row needs to know."""

    recipe: Recipe
    method: MergeMethod
    parents: Mapping[str, Checkpoint]
    donor: Checkpoint


@lru_cache(maxsize=64)
def draw_blueprint(recipe: Recipe, opened: tuple[tuple[str, Checkpoint], ...]) -> Blueprint:
    """Work out which tensors a recipe makes, and of which.

    Args:
        recipe: Its values don't matter; leave them out, so that the result can be kept.
        opened: The parents by the names that the recipe uses.

    Raises:
        RecipeError: If anything doesn't fit; names the tensor or key and what to do.
    """
    parents = dict(opened)
    donor = parents[_donor(recipe)]
    site = _Site(recipe, find_method(recipe.method), parents, donor)
    warnings = tuple(text for _, parent in opened for text in check_fit(parent, donor))
    parts = tuple(_parts(site))
    outer = outer_tensors(donor, list(parents.values()))
    rows = (*_outer_rows(site, parts, outer.names), *_layer_rows(site, parts))
    _check_kinds(site, parts)
    stacks = tuple(stack.name for stack in donor.layout.stacks)
    depth = sum(_length(site, part) for part in parts)
    return Blueprint(
        rows, stacks, _donor(recipe), _config(site, parts, outer, rows), depth, warnings
    )


def merge_inputs(method: MergeMethod, part: Slice, base_model: str | None) -> Inputs:
    """Decide which sources of a slice are parents and which is the base."""
    base_name = part.base or base_model
    listed = next((s for s in part.sources if s.model == base_name), None)
    whole = all(source.layers is None for source in part.sources)
    base = listed or (Source(base_name) if base_name and whole else None)
    others = tuple(source for source in part.sources if source is not listed)
    match method.base:
        case Base.REQUIRED:
            return Inputs(others, base)
        case Base.ENDPOINT:
            return Inputs(((base,) if base else ()) + others, base)
        case Base.INPUT:
            joins = base is not None and listed is None
            return Inputs((*part.sources, base) if joins and base else part.sources, None)


def _donor(recipe: Recipe) -> str:
    first = recipe.every_slice[0]
    return recipe.base or first.base or first.sources[0].model


def _config(
    site: _Site, parts: tuple[_Part, ...], outer: Outer, rows: tuple[Row, ...]
) -> Mapping[str, Any]:
    config = dict(site.donor.config)
    for stack in site.donor.layout.stacks:
        mine = (part for part in parts if part.stack == stack.name)
        origins = tuple(layer for part in mine for layer in _origins(site, part))
        config = with_depth(config, stack.key, origins)
    if outer.untied:
        config = untie(config)
    key = "dtype" if "dtype" in config else "torch_dtype"
    config[key] = str(_weights_dtype(rows)).removeprefix("torch.")
    return config


def _origins(site: _Site, part: _Part) -> Iterator[tuple[Mapping[str, Any], int]]:
    """Whose per-layer configuration each output layer inherits: the donor's where it takes part."""
    inputs = part.inputs
    giver = next(
        (s for s in inputs.every if site.parents[s.model] is site.donor), inputs.sources[0]
    )
    for layer in range(*_range(site, giver, part.stack)):
        yield site.parents[giver.model].config, layer


def _weights_dtype(rows: tuple[Row, ...]) -> torch.dtype:
    """The dtype of most elements: what `config.json` states."""
    sizes: dict[torch.dtype, int] = {}
    for row in rows:
        if row.method is not None:
            sizes[row.dtype] = sizes.get(row.dtype, 0) + torch.Size(row.shape).numel()
    return max(sizes, key=lambda dtype: sizes[dtype])


# Slices: which stack they are of, which models take part, which layers they give.


def _parts(site: _Site) -> Iterator[_Part]:
    """All slices, stack by stack, checked."""
    at = 0
    for module in _modules(site):
        prefix = f"modules.{module.name}." if site.recipe.modules else ""
        length = 0
        for i, cut in enumerate(module.slices):
            inputs = merge_inputs(site.method, cut, site.recipe.base)
            part = _Part(at, f"{prefix}slices[{i}]", module.name, inputs)
            _check_inputs(site, part, cut)
            yield part
            at, length = at + 1, length + _length(site, part)
        if length == 0:
            raise RecipeError(f"{prefix}slices: they have no layers; give a longer layer_range")


def _modules(site: _Site) -> tuple[Module, ...]:
    """What the recipe says of each stack, in the stacks' order."""
    recipe, stacks = site.recipe, site.donor.layout.stacks
    names = tuple(stack.name for stack in stacks)
    if not recipe.modules:
        _check_unsliced(site, stacks)
        return tuple(Module(name, recipe.slices) for name in names)
    given = {module.name: module for module in recipe.modules}
    for name in given:
        if name not in names:
            raise RecipeError(
                f"modules: '{name}' is no part of '{site.donor.name}'; it has {', '.join(names)}"
            )
    for name in names:
        if name not in given:
            raise RecipeError(
                f"modules: '{name}' of '{site.donor.name}' is missing; give models or slices for "
                f"each of {', '.join(names)}"
            )
    return tuple(given[name] for name in names)


def _check_unsliced(site: _Site, stacks: tuple[Stack, ...]) -> None:
    if len(stacks) == 1 or all(s.layers is None for p in site.recipe.slices for s in p.sources):
        return
    what = ", ".join(f"{stack.name} ({stack.depth} layers)" for stack in stacks)
    raise RecipeError(
        f"slices: model '{site.donor.name}' has several stacks of layers, {what}; give slices to "
        f"each: modules: {{{stacks[0].name}: {{slices: …}}, {stacks[-1].name}: {{models: …}}}}"
    )


def _check_inputs(site: _Site, part: _Part, cut: Slice) -> None:
    method, where, inputs = site.method, part.where, part.inputs
    base = cut.base or site.recipe.base
    if method.base is not Base.INPUT and inputs.base is None:
        hint = (
            f"list base_model '{base}' among its sources, with its layer_range"
            if base
            else "set base_model"
        )
        raise RecipeError(f"merge_method '{method.name}' needs a base model in {where}; {hint}")
    _check_count(method, inputs, where)
    names = [source.model for source in cut.sources]
    if len(set(names)) < len(names):
        raise RecipeError(f"{where}: a model appears twice ({', '.join(names)}); list it once")
    for source in inputs.every:
        _check_range(site, part, source)


def _check_count(method: MergeMethod, inputs: Inputs, where: str) -> None:
    least, most = method.inputs
    count = len(inputs.sources)
    if count < least or (most is not None and count > most):
        expected = f"exactly {least}" if least == most else f"at least {least}"
        raise RecipeError(
            f"merge_method '{method.name}' takes {expected} models"
            f"{'' if method.base is Base.REQUIRED else ', base_model included'}; "
            f"{where} has {count}: {', '.join(s.model for s in inputs.sources)}"
        )


def _check_range(site: _Site, part: _Part, source: Source) -> None:
    start, end = _range(site, source, part.stack)
    depth = _stack(site.parents[source.model], part.stack).depth
    if end > depth:
        raise RecipeError(
            f"{part.where}: layer_range [{start}, {end}) of '{source.model}' reaches past its "
            f"{depth} layers; end is exclusive, so at most {depth}"
        )
    if end - start != _length(site, part):
        raise RecipeError(
            f"{part.where}: '{source.model}' gives {end - start} layers but "
            f"'{part.inputs.sources[0].model}' gives {_length(site, part)}; sources of one slice "
            "need equally many: cut them with layer_range under slices"
        )


def _length(site: _Site, part: _Part) -> int:
    start, end = _range(site, part.inputs.sources[0], part.stack)
    return end - start


def _range(site: _Site, source: Source, stack: str) -> tuple[int, int]:
    return source.layers or (0, _stack(site.parents[source.model], stack).depth)


def _stack(parent: Checkpoint, name: str) -> Stack:
    return next(stack for stack in parent.layout.stacks if stack.name == name)


def _check_kinds(site: _Site, parts: tuple[_Part, ...]) -> None:
    """Where layers differ in their tensors and no list says how, each kind must keep its place."""
    for stack in site.donor.layout.stacks:
        kinds = _kinds(site.donor)[stack.name]
        made = [kind for part in parts if part.stack == stack.name for kind in _made(site, part)]
        stated = _states_kinds(site.donor.config, stack.key, kinds)
        for at, kind in enumerate(made):
            if kind not in kinds if stated else kind != _expected(kinds, at):
                raise RecipeError(
                    f"layer {at} of the output has other tensors than '{site.donor.name}' has "
                    "there, and no list in its config.json tells its kinds of layers apart, so the "
                    "model could not be loaded; keep the number of layers and the order of kinds"
                )


def _expected(kinds: Sequence[_Kind], at: int) -> _Kind | None:
    """The kind of a layer by its place; beyond the last, that of all layers but the first few."""
    if at < len(kinds):
        return kinds[at]
    changes = sum(one != other for one, other in pairwise(kinds))
    settled = changes == 0 or (changes == 1 and kinds[-2:-1] == kinds[-1:])
    return kinds[-1] if settled else None


def _made(site: _Site, part: _Part) -> Sequence[_Kind]:
    """Kinds of the layers that a slice makes: those of its first source."""
    first = part.inputs.sources[0]
    start, end = _range(site, first, part.stack)
    return _kinds(site.parents[first.model])[part.stack][start:end]


@lru_cache(maxsize=64)
def _kinds(parent: Checkpoint) -> Mapping[str, Sequence[_Kind]]:
    """What each layer holds, by stack: names and numbers of axes."""
    return {
        stack: [tuple((rest, len(spec.shape)) for rest, spec in table.items()) for table in tables]
        for stack, tables in _layer_tables(parent).items()
    }


def _states_kinds(config: Mapping[str, Any], key: Key, kinds: Sequence[_Kind]) -> bool:
    """Whether a list with one entry per layer tells the kinds apart; it follows the layers."""
    for name in key[:-1]:
        config = config[name]
    for told in config.values():
        if isinstance(told, list) and len(told) == len(kinds):  # pyright: ignore[reportUnknownArgumentType]
            entries = [str(entry) for entry in cast("list[object]", told)]
            if len(set(zip(entries, kinds, strict=True))) == len(set(entries)):
                return True
    return False


# Rows: one per output tensor.


def _outer_rows(site: _Site, parts: tuple[_Part, ...], names: tuple[str, ...]) -> Iterator[Row]:
    """Outside the layers: embeddings as in their stack's first slice, the rest as in its last."""
    for name in names:
        owner = site.donor.layout.owner(name).name
        mine = [part for part in parts if part.stack == owner]
        part = mine[0 if role(name) == "embedding" else -1]
        every = [find_outer(site.parents[s.model], site.donor, name) for s in part.inputs.every]
        yield _row(site, part, name, every, 0.0)


def _layer_rows(site: _Site, parts: tuple[_Part, ...]) -> Iterator[Row]:
    layers = dict.fromkeys((part.stack for part in parts), 0)
    for part in parts:
        prefix, length = _stack(site.donor, part.stack).prefix, _length(site, part)
        for offset in range(length):
            depth = offset / (length - 1) if length > 1 else 1.0
            tables = _tables(site, part, offset)
            for rest in tables[0]:
                out = f"{prefix}{layers[part.stack]}.{rest}"
                yield _row(site, part, out, [table[rest] for table in tables], depth)
            layers[part.stack] += 1


def _tables(site: _Site, part: _Part, offset: int) -> list[Mapping[str, TensorSpec]]:
    """One layer of each source: its tensors by what follows the layer number."""
    tables: list[Mapping[str, TensorSpec]] = []
    for source in part.inputs.every:
        layer = _range(site, source, part.stack)[0] + offset
        tables.append(_layer_tables(site.parents[source.model])[part.stack][layer])
        if tables[-1].keys() != tables[0].keys():
            _refuse_names(part, source, tables[0], tables[-1])
    return tables


def _refuse_names(
    part: _Part,
    source: Source,
    first: Mapping[str, TensorSpec],
    other: Mapping[str, TensorSpec],
) -> None:
    rest = min(first.keys() ^ other.keys())
    has, lacks = part.inputs.sources[0].model, source.model
    if rest in other:
        has, lacks = lacks, has
    name = (other if rest in other else first)[rest].name
    raise RecipeError(
        f"tensor '{name}': model '{has}' has it but '{lacks}' does not; models of one slice need "
        f"the same tensors: leave one out, or save '{lacks}' with it (a missing bias is zeros)"
    )


@lru_cache(maxsize=64)
def _layer_tables(parent: Checkpoint) -> Mapping[str, tuple[Mapping[str, TensorSpec], ...]]:
    """A parent's tensors by stack, layer and the rest of their names, in name order."""
    tables: dict[str, tuple[dict[str, TensorSpec], ...]] = {
        stack.name: tuple({} for _ in range(stack.depth)) for stack in parent.layout.stacks
    }
    for name, spec in parent.tensors.items():
        if stack := parent.layout.stack(name):
            number, _, rest = name.removeprefix(stack.prefix).partition(".")
            tables[stack.name][int(number)][rest] = spec
    return tables


def _row(site: _Site, part: _Part, out: str, every: list[TensorSpec], depth: float) -> Row:
    """A row of the tensors of all sources, the base's last unless it is a parent too."""
    sources = part.inputs.every
    specs = every
    if any(spec.shape != specs[0].shape for spec in specs):
        _refuse_shapes(specs, sources)
    refs = tuple(
        TensorRef(source.model, spec.name) for source, spec in zip(sources, specs, strict=True)
    )
    floating = all(spec.dtype.is_floating_point for spec in specs)
    apart = site.method.base is Base.REQUIRED
    rounding = _torch_dtype(site.recipe.dtype)
    return Row(
        out,
        specs[0].shape,
        _out_dtype(site, specs) if floating else specs[0].dtype,
        site.method.name if floating else None,
        refs[:-1] if apart else refs,
        refs[-1] if apart else None,
        rounding if any(spec.dtype != rounding for spec in specs) else None,
        part.at,
        depth,
    )


def _refuse_shapes(specs: list[TensorSpec], sources: tuple[Source, ...]) -> None:
    first = specs[0].shape
    at = next(i for i, spec in enumerate(specs) if spec.shape != first)
    name, shape = specs[at].name, specs[at].shape
    rows = role(name) in {"embedding", "head"} and shape[1:] == first[1:]
    raise RecipeError(
        f"tensor '{name}': parent '{sources[at].model}' has shape {shape} but "
        f"'{sources[0].model}' has {first}; parents of one recipe need equal shapes"
        + (
            " (their vocabularies differ: tokenizer: {source: union} or {source: base} aligns them)"
            if rows
            else ""
        )
    )


def _torch_dtype(name: str | None) -> torch.dtype | None:
    return getattr(torch, name) if name else None


def _out_dtype(site: _Site, specs: list[TensorSpec]) -> torch.dtype:
    stated = _torch_dtype(site.recipe.out_dtype or site.recipe.dtype)
    dtype = stated or specs[0].dtype
    for spec in specs[1:] if stated is None else []:
        dtype = torch.promote_types(dtype, spec.dtype)
    return dtype
