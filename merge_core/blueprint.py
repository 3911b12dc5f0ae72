"""Which output tensor is made of which: everything of a plan but its numbers.

Every check of names, layer ranges, shapes and dtypes happens here. A blueprint depends on the
recipe's structure and the parents' headers alone, so it is kept for the next candidate.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import torch

from merge_core.checkpoint import Checkpoint, TensorSpec
from merge_core.errors import RecipeError
from merge_core.fit import check_fit
from merge_core.geometry import TensorRef
from merge_core.kinds import check_kinds, layer_tables
from merge_core.naming import role, with_depth
from merge_core.outer import Outer, find_outer, outer_tensors, untie
from merge_core.recipe import Recipe, Source
from merge_core.slices import Part, Site, cut_parts, find_stack, layer_span, part_length


class Row(NamedTuple):  # made four times as fast as a frozen dataclass
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
    donor = parents[recipe.donor]
    site = Site(recipe, parents, donor)
    warnings = tuple(text for _, parent in opened for text in check_fit(parent, donor))
    parts = tuple(cut_parts(site))
    outer = outer_tensors(donor, list(parents.values()))
    rows = (*_outer_rows(site, parts, outer.names), *_layer_rows(site, parts))
    check_kinds(site, parts)
    stacks = tuple(stack.name for stack in donor.layout.stacks)
    depth = sum(part_length(site, part) for part in parts)
    config = _config(site, parts, outer, rows)
    return Blueprint(rows, stacks, recipe.donor, config, depth, warnings)


def _config(
    site: Site, parts: tuple[Part, ...], outer: Outer, rows: tuple[Row, ...]
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


def _origins(site: Site, part: Part) -> Iterator[tuple[Mapping[str, Any], int]]:
    """Whose per-layer configuration each output layer inherits: the donor's where it takes part."""
    inputs = part.inputs
    giver = next(
        (s for s in inputs.every if site.parents[s.model] is site.donor), inputs.sources[0]
    )
    for layer in range(*layer_span(site, giver, part.stack)):
        yield site.parents[giver.model].config, layer


def _weights_dtype(rows: tuple[Row, ...]) -> torch.dtype:
    """The dtype of most elements: what `config.json` states."""
    sizes: dict[torch.dtype, int] = {}
    for row in rows:
        if row.method is not None:
            sizes[row.dtype] = sizes.get(row.dtype, 0) + torch.Size(row.shape).numel()
    return max(sizes, key=lambda dtype: sizes[dtype])


# Rows: one per output tensor.


def _outer_rows(site: Site, parts: tuple[Part, ...], names: tuple[str, ...]) -> Iterator[Row]:
    """Outside the layers: embeddings as in their stack's first slice, the rest as in its last."""
    for name in names:
        owner = site.donor.layout.owner(name).name
        mine = [part for part in parts if part.stack == owner]
        part = mine[0 if role(name) == "embedding" else -1]
        sources = part.inputs.every
        specs = [find_outer(site.parents[s.model], site.donor, name) for s in sources]
        yield _row(site, part, sources, name, specs, 0.0)


def _layer_rows(site: Site, parts: tuple[Part, ...]) -> Iterator[Row]:
    layers = dict.fromkeys((part.stack for part in parts), 0)
    for part in parts:
        prefix, length = find_stack(site.donor, part.stack).prefix, part_length(site, part)
        sources = part.inputs.every
        for offset in range(length):
            depth = offset / (length - 1) if length > 1 else 1.0
            tables = _tables(site, part, offset)
            for rest in tables[0]:
                out = f"{prefix}{layers[part.stack]}.{rest}"
                yield _row(site, part, sources, out, [table[rest] for table in tables], depth)
            layers[part.stack] += 1


def _tables(site: Site, part: Part, offset: int) -> list[Mapping[str, TensorSpec]]:
    """One layer of each source: its tensors by what follows the layer number."""
    tables: list[Mapping[str, TensorSpec]] = []
    for source in part.inputs.every:
        layer = layer_span(site, source, part.stack)[0] + offset
        tables.append(layer_tables(site.parents[source.model])[part.stack][layer])
        if tables[-1].keys() != tables[0].keys():
            _refuse_names(site, part, source, tables[0], tables[-1])
    return tables


def _refuse_names(
    site: Site,
    part: Part,
    source: Source,
    first: Mapping[str, TensorSpec],
    other: Mapping[str, TensorSpec],
) -> None:
    rest = min(first.keys() ^ other.keys())
    has, lacks = part.inputs.sources[0].model, source.model
    if rest in other:
        has, lacks = lacks, has
    name = (other if rest in other else first)[rest].name
    if any(rest in table for table in layer_tables(site.parents[lacks])[part.stack]):
        raise RecipeError(
            f"tensor '{name}': the layer of '{has}' in {part.where} has it and that of '{lacks}' "
            "beside it does not, as the models have layers of several kinds; give a slice layers "
            "of one kind"
        )
    raise RecipeError(
        f"tensor '{name}': model '{has}' has it but '{lacks}' does not; models of one slice need "
        f"the same tensors: leave one out, or save '{lacks}' with it (a missing bias is zeros)"
    )


def _row(
    site: Site,
    part: Part,
    sources: tuple[Source, ...],
    out: str,
    specs: list[TensorSpec],
    depth: float,
) -> Row:
    """A row of the tensors of all sources, the base's last unless it is a parent too."""
    shape = specs[0].shape
    for spec in specs[1:]:
        if spec.shape != shape:
            _refuse_shapes(specs, sources)
    pairs = zip(sources, specs, strict=True)
    refs = tuple([_ref(source.model, spec.name) for source, spec in pairs])
    dtypes = tuple([spec.dtype for spec in specs])
    dtype, floating, rounding = _dtypes(site.recipe.dtype, site.recipe.out_dtype, dtypes)
    if not floating and any(spec.dtype.is_floating_point for spec in specs):
        _refuse_dtypes(specs, sources)
    apart = part.inputs.base is not None and part.method.base.apart
    return Row(
        out,
        shape,
        dtype,
        part.method.name if floating else None,
        refs[:-1] if apart else refs,
        refs[-1] if apart else None,
        rounding,
        part.at,
        depth,
    )


# Rows are what planning a new arrangement of layers costs, so what they share is kept.

_ref = lru_cache(maxsize=1 << 16)(TensorRef)


@lru_cache(maxsize=256)
def _dtypes(
    stated: str | None, stated_out: str | None, dtypes: tuple[torch.dtype, ...]
) -> tuple[torch.dtype, bool, torch.dtype | None]:
    """The output's dtype, whether it can be merged, and what inputs are rounded to, if it matters.

    Args:
        stated: The recipe's `dtype`.
        stated_out: Its `out_dtype`.
        dtypes: Those of the inputs, `(sources,)`.
    """
    rounding = _torch_dtype(stated)
    if not (rounding and any(_loses(dtype, rounding) for dtype in dtypes)):
        rounding = None
    if not all(dtype.is_floating_point for dtype in dtypes):
        return dtypes[0], False, rounding
    out = _torch_dtype(stated_out or stated)
    return out or reduce(torch.promote_types, dtypes), True, rounding


def _loses(dtype: torch.dtype, rounding: torch.dtype) -> bool:
    """Whether rounding changes values: wider dtypes hold them all."""
    return torch.promote_types(dtype, rounding) != rounding


def _refuse_dtypes(specs: list[TensorSpec], sources: tuple[Source, ...]) -> None:
    at = next(i for i, spec in enumerate(specs) if not spec.dtype.is_floating_point)
    other = next(i for i, spec in enumerate(specs) if spec.dtype.is_floating_point)
    kinds = [str(specs[i].dtype).removeprefix("torch.") for i in (at, other)]
    raise RecipeError(
        f"tensor '{specs[at].name}': parent '{sources[at].model}' holds {kinds[0]} but "
        f"'{sources[other].model}' holds {kinds[1]}; whole numbers, such as quantised weights, "
        f"can't be merged with others: dequantise '{sources[at].model}' first, or leave it out"
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
            " (their vocabularies differ; add 'tokenizer: {source: union}' to the recipe)"
            if rows
            else ""
        )
    )


def _torch_dtype(name: str | None) -> torch.dtype | None:
    return getattr(torch, name) if name else None
