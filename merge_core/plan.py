"""Recipe + parents → plan: every check of names, shapes, dtypes and values, from headers alone.

`compile_plan` raises or the merge runs. Which value a parameter takes for a tensor follows
mergekit 0.1.5: source before slice before recipe before default; in each, the first setting whose
filter is part of the tensor's name; gradients by depth within the slice.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from merge_core.checkpoint import Checkpoint, TensorSpec
from merge_core.errors import RecipeError
from merge_core.geometry import TensorRef
from merge_core.naming import role, with_depth
from merge_core.recipe import Parameters, Recipe, Scalar, Setting, Slice, Source, nearest
from merge_core.registry import Base, MergeMethod, Parameter, find_method

Params = tuple[tuple[str, Scalar | tuple[Scalar, ...]], ...]
"""Resolved parameters of one tensor, in signature order; per-parent ones are tuples."""


@dataclass(frozen=True, slots=True)
class MergeStep:
    """How one output tensor is made. Equal steps write equal tensors.

    Attributes:
        out: Name of the output tensor.
        shape: Its shape.
        dtype: What is stored.
        method: Name of the merge method; None copies (buffers that are no weights).
        inputs: The parents' tensors, in recipe order.
        base: Where task vectors start.
        params: Resolved parameters.
        rounding: Inputs are rounded to it before any arithmetic.
        seed: Seed of random masks.
    """

    out: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    method: str | None
    inputs: tuple[TensorRef, ...]
    base: TensorRef | None
    params: Params
    rounding: torch.dtype | None
    seed: int


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Everything a merge will do.

    Attributes:
        steps: One per output tensor: those outside the layers, then layer by layer.
        donor: Alias of the parent that gives configuration and tokenizer: the base, or else the
            first parent.
        config: The output's `config.json`.
        depth: Number of output layers.
    """

    steps: tuple[MergeStep, ...]
    donor: str
    config: Mapping[str, Any]
    depth: int

    @property
    def bytes_out(self) -> int:
        """Size of the output in bytes."""
        return sum(torch.Size(s.shape).numel() * s.dtype.itemsize for s in self.steps)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """A slice as its method sees it: the sources that are parents, and the base's."""

    part: Slice
    sources: tuple[Source, ...]
    base: Source | None


@dataclass(frozen=True, slots=True)
class _Compiler:
    recipe: Recipe
    method: MergeMethod
    parents: Mapping[str, Checkpoint]
    donor: Checkpoint
    seed: int


def compile_plan(recipe: Recipe, parents: Mapping[str, Checkpoint], seed: int = 0) -> MergePlan:
    """Check a recipe against its parents and resolve it tensor by tensor. Reads no tensor.

    Args:
        recipe: What to merge.
        parents: The opened parents by the names that the recipe uses.
        seed: Seed of random masks.

    Raises:
        RecipeError: If anything doesn't fit; names the tensor or key and what to do.
    """
    method = find_method(recipe.method)
    for model in recipe.models:
        if model not in parents:
            raise RecipeError(f"model '{model}' is not open; {nearest(model, parents)}")
    compiler = _Compiler(recipe, method, parents, parents[_donor(recipe)], seed)
    _check_parameter_names(compiler)
    _check_families(compiler)
    slices = tuple(_inputs(compiler, part, i) for i, part in enumerate(recipe.slices))
    steps = (*_outer_steps(compiler, slices), *_layer_steps(compiler, slices))
    origins = tuple(layer for part in slices for layer in _origins(compiler, part))
    config = with_depth(compiler.donor.config, origins)
    key = "dtype" if "dtype" in config else "torch_dtype"
    config[key] = str(_weights_dtype(steps)).removeprefix("torch.")
    return MergePlan(steps, compiler.donor.name, config, len(origins))


def resolve(settings: tuple[Setting, ...], name: str, depth: float) -> Scalar | None:
    """The value of the first setting that matches a tensor's name, its gradient taken at a depth.

    Args:
        settings: What one scope says about one parameter.
        name: The tensor's name.
        depth: Position within the slice, 0 to 1.

    Returns:
        None if no setting matches.
    """
    for setting in settings:
        if setting.filter is None or setting.filter in name:
            return _at_depth(setting.value, depth)
    return None


def _donor(recipe: Recipe) -> str:
    return recipe.base or recipe.slices[0].base or recipe.slices[0].sources[0].model


def _check_parameter_names(compiler: _Compiler) -> None:
    for where, parameters, in_source in _scopes(compiler.recipe):
        for name, _ in parameters:
            parameter = compiler.method.parameter(name)
            if parameter is None:
                known = [p.name for p in compiler.method.parameters]
                raise RecipeError(
                    f"{where}: merge_method '{compiler.method.name}' has no parameter '{name}'; "
                    f"{nearest(name, known)}"
                )
            if in_source and not parameter.per_parent:
                raise RecipeError(
                    f"{where}: '{name}' of '{compiler.method.name}' is one value for all models; "
                    "put it under the recipe's own 'parameters'"
                )


def _scopes(recipe: Recipe) -> Iterator[tuple[str, Parameters, bool]]:
    yield "parameters", recipe.parameters, False
    for i, part in enumerate(recipe.slices):
        yield f"slices[{i}].parameters", part.parameters, False
        for source in part.sources:
            yield f"parameters of model '{source.model}'", source.parameters, True


def _check_families(compiler: _Compiler) -> None:
    """All parents must be of the donor's family: equal names mean equal things only then."""
    for model in compiler.recipe.models:
        mine, theirs = compiler.parents[model].config, compiler.donor.config
        if mine.get("model_type") != theirs.get("model_type"):
            raise RecipeError(
                f"model '{model}' is a {mine.get('model_type')} but '{compiler.donor.name}' is a "
                f"{theirs.get('model_type')}; models of one recipe must be of one family"
            )


def _inputs(compiler: _Compiler, part: Slice, index: int) -> _Inputs:
    """Decide which sources of a slice are parents and which is the base."""
    base_name = part.base or compiler.recipe.base
    listed = next((s for s in part.sources if s.model == base_name), None)
    whole = all(source.layers is None for source in part.sources)
    base = listed or (Source(base_name) if base_name and whole else None)
    others = tuple(source for source in part.sources if source is not listed)
    match compiler.method.base:
        case Base.REQUIRED | Base.OPTIONAL:
            sources = others
        case Base.ENDPOINT:
            sources = ((base,) if base else ()) + others
        case Base.INPUT:
            sources = part.sources if listed or base is None else (*part.sources, base)
            base = None
    inputs = _Inputs(part, sources, base)
    _check_inputs(compiler, inputs, index, base_name)
    return inputs


def _check_inputs(compiler: _Compiler, inputs: _Inputs, index: int, base: str | None) -> None:
    method, where = compiler.method, f"slices[{index}]"
    if method.base in {Base.REQUIRED, Base.ENDPOINT} and inputs.base is None:
        hint = (
            f"list base_model '{base}' among its sources, with its layer_range"
            if base
            else "set base_model"
        )
        raise RecipeError(f"merge_method '{method.name}' needs a base model in {where}; {hint}")
    least, most = method.inputs
    count = len(inputs.sources)
    if count < least or (most is not None and count > most):
        expected = f"exactly {least}" if least == most else f"at least {least}"
        raise RecipeError(
            f"merge_method '{method.name}' takes {expected} models"
            f"{', base_model included' if method.base in {Base.ENDPOINT, Base.INPUT} else ''}; "
            f"{where} has {count}: {', '.join(s.model for s in inputs.sources)}"
        )
    names = [source.model for source in inputs.part.sources]
    if len(set(names)) < len(names):
        raise RecipeError(f"{where}: a model appears twice ({', '.join(names)}); list it once")
    _check_ranges(compiler, inputs, where)


def _check_ranges(compiler: _Compiler, inputs: _Inputs, where: str) -> None:
    for source in (*inputs.sources, *((inputs.base,) if inputs.base else ())):
        start, end = _range(compiler, source)
        depth = compiler.parents[source.model].layout.depth
        first = _range(compiler, inputs.sources[0])
        if end > depth:
            raise RecipeError(
                f"{where}: layer_range [{start}, {end}) of '{source.model}' reaches past its "
                f"{depth} layers; end is exclusive, so at most {depth}"
            )
        if end - start != first[1] - first[0]:
            raise RecipeError(
                f"{where}: '{source.model}' gives {end - start} layers but "
                f"'{inputs.sources[0].model}' gives {first[1] - first[0]}; sources of one slice "
                "need equally many"
            )


def _range(compiler: _Compiler, source: Source) -> tuple[int, int]:
    return source.layers or (0, compiler.parents[source.model].layout.depth)


def _origins(compiler: _Compiler, inputs: _Inputs) -> Iterator[tuple[Mapping[str, Any], int]]:
    """Whose per-layer configuration each output layer inherits: the donor's where it takes part."""
    every = (*inputs.sources, *((inputs.base,) if inputs.base else ()))
    giver = next((s for s in every if s.model == compiler.donor.name), inputs.sources[0])
    for layer in range(*_range(compiler, giver)):
        yield compiler.parents[giver.model].config, layer


def _outer_steps(compiler: _Compiler, slices: tuple[_Inputs, ...]) -> Iterator[MergeStep]:
    """Outside the layers: embeddings as in the first slice, norm and head as in the last."""
    for name in compiler.donor.layers[None]:
        inputs = slices[0] if role(name) == "embedding" else slices[-1]
        yield _step(compiler, inputs, name, name, 0, 0.0)
    _check_outer_names(compiler)


def _check_outer_names(compiler: _Compiler) -> None:
    for model in compiler.recipe.models:
        parent = compiler.parents[model]
        for name in parent.layers[None]:
            if name not in compiler.donor.tensors:
                raise RecipeError(
                    f"tensor '{name}': model '{model}' has it but '{compiler.donor.name}' does "
                    "not" + (_tied_hint(compiler.donor) if role(name) == "head" else "")
                )


def _layer_steps(compiler: _Compiler, slices: tuple[_Inputs, ...]) -> Iterator[MergeStep]:
    layer = 0
    for inputs in slices:
        first = compiler.parents[inputs.sources[0].model]
        start, end = _range(compiler, inputs.sources[0])
        for offset in range(end - start):
            depth = offset / (end - start - 1) if end - start > 1 else 1.0
            for name in first.layers[start + offset]:
                out = compiler.donor.layout.moved(name, layer)
                yield _step(compiler, inputs, name, out, offset, depth)
            _check_layer_names(compiler, inputs, offset)
            layer += 1


def _check_layer_names(compiler: _Compiler, inputs: _Inputs, offset: int) -> None:
    """No source may have a tensor in its layer that the first one lacks: it would be lost."""
    reference = inputs.sources[0]
    first = compiler.parents[reference.model]
    at = _range(compiler, reference)[0] + offset
    for source in (*inputs.sources[1:], *((inputs.base,) if inputs.base else ())):
        parent = compiler.parents[source.model]
        layer = _range(compiler, source)[0] + offset
        for name in parent.layers[layer]:
            if parent.layout.moved(name, at) not in first.tensors:
                raise RecipeError(
                    f"tensor '{name}': model '{source.model}' has it but '{reference.model}' does "
                    "not; models of one slice need the same tensors"
                )


def _step(
    compiler: _Compiler, inputs: _Inputs, name: str, out: str, offset: int, depth: float
) -> MergeStep:
    refs = tuple(_ref(compiler, source, name, offset) for source in inputs.sources)
    base = _ref(compiler, inputs.base, name, offset) if inputs.base else None
    if compiler.method.base is Base.ENDPOINT:
        base = None
    specs = [_spec(compiler, ref) for ref in (*refs, *((base,) if base else ()))]
    _check_shapes(specs, refs, base)
    floating = all(spec.dtype.is_floating_point for spec in specs)
    rounding = _torch_dtype(compiler.recipe.dtype)
    return MergeStep(
        out,
        specs[0].shape,
        _out_dtype(compiler, specs) if floating else specs[0].dtype,
        compiler.method.name if floating else None,
        refs,
        base,
        _params(compiler, inputs, refs, out, depth) if floating else (),
        rounding if any(spec.dtype != rounding for spec in specs) else None,
        compiler.seed,
    )


def _ref(compiler: _Compiler, source: Source, name: str, offset: int) -> TensorRef:
    parent = compiler.parents[source.model]
    moved = parent.layout.moved(name, _range(compiler, source)[0] + offset)
    if moved not in parent.tensors:
        raise RecipeError(
            f"tensor '{moved}': model '{source.model}' does not have it"
            + (_tied_hint(parent) if role(moved) == "head" else "")
        )
    return TensorRef(source.model, moved)


def _tied_hint(parent: Checkpoint) -> str:
    return f"; '{parent.name}' ties its head to its embeddings, so save all models in one form"


def _spec(compiler: _Compiler, ref: TensorRef) -> TensorSpec:
    return compiler.parents[ref.parent].tensors[ref.name]


def _check_shapes(
    specs: list[TensorSpec], refs: tuple[TensorRef, ...], base: TensorRef | None
) -> None:
    owners = [ref.parent for ref in refs] + ([base.parent] if base else [])
    for spec, owner in zip(specs, owners, strict=True):
        if spec.shape != specs[0].shape:
            outside = role(spec.name) in {"embedding", "head"}
            raise RecipeError(
                f"tensor '{spec.name}': parent '{owner}' has shape {spec.shape} but "
                f"'{owners[0]}' has {specs[0].shape}; parents of one recipe need equal shapes"
                + (" (their vocabularies differ, which can't be merged yet)" if outside else "")
            )


def _params(
    compiler: _Compiler, inputs: _Inputs, refs: tuple[TensorRef, ...], out: str, depth: float
) -> Params:
    resolved: list[tuple[str, Scalar | tuple[Scalar, ...]]] = []
    for parameter in compiler.method.parameters:
        outer = (inputs.part.parameters, compiler.recipe.parameters)
        if parameter.per_parent:
            value: Scalar | tuple[Scalar, ...] = tuple(
                _value(compiler, parameter, (source.parameters, *outer), ref.name, depth, source)
                for source, ref in zip(inputs.sources, refs, strict=True)
            )
        else:
            value = _value(compiler, parameter, outer, out, depth, None)
        resolved.append((parameter.name, value))
    return tuple(resolved)


def _value(
    compiler: _Compiler,
    parameter: Parameter,
    scopes: tuple[Parameters, ...],
    name: str,
    depth: float,
    source: Source | None,
) -> Scalar:
    for scope in scopes:
        settings = next((settings for key, settings in scope if key == parameter.name), ())
        if (value := resolve(settings, name, depth)) is not None:
            return _typed(parameter, value, name)
    if parameter.default is None:
        raise RecipeError(
            f"tensor '{name}': merge_method '{compiler.method.name}' needs "
            f"'{parameter.name}'" + (f" for model '{source.model}'" if source else "")
        )
    return parameter.default


def _typed(parameter: Parameter, value: Scalar, name: str) -> Scalar:
    if parameter.kind is bool and value in (True, False):
        return bool(value)
    if parameter.kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if parameter.kind is str and value in parameter.choices:
        return value
    expected = "true or false" if parameter.kind is bool else "a number"
    if parameter.choices:
        expected = f"one of {', '.join(parameter.choices)}"
    raise RecipeError(f"tensor '{name}': '{parameter.name}' must be {expected}, got {value!r}")


def _at_depth(value: Scalar | tuple[Scalar, ...], depth: float) -> Scalar:
    """A gradient's value: numbers are interpolated, anything else is picked."""
    if not isinstance(value, tuple):
        return value
    place = depth * (len(value) - 1)
    low = min(int(place), len(value) - 1)
    high = min(low + 1, len(value) - 1)
    left, right = value[low], value[high]
    if isinstance(left, bool | str) or isinstance(right, bool | str):
        return left
    return left + (right - left) * (place - low)


def _torch_dtype(name: str | None) -> torch.dtype | None:
    return getattr(torch, name) if name else None


def _out_dtype(compiler: _Compiler, specs: list[TensorSpec]) -> torch.dtype:
    stated = _torch_dtype(compiler.recipe.out_dtype or compiler.recipe.dtype)
    dtype = stated or specs[0].dtype
    for spec in specs[1:] if stated is None else []:
        dtype = torch.promote_types(dtype, spec.dtype)
    return dtype


def _weights_dtype(steps: tuple[MergeStep, ...]) -> torch.dtype:
    """The dtype of most bytes: what `config.json` states."""
    sizes: dict[torch.dtype, int] = {}
    for step in steps:
        if step.method is not None:
            sizes[step.dtype] = sizes.get(step.dtype, 0) + torch.Size(step.shape).numel()
    return max(sizes, key=lambda dtype: sizes[dtype])


def describe(plan: MergePlan) -> str:
    """The plan as JSON lines, one per tensor: for people and for `--dry-run`."""
    return "\n".join(
        json.dumps(
            {
                "out": step.out,
                "shape": step.shape,
                "dtype": str(step.dtype).removeprefix("torch."),
                "method": step.method,
                "inputs": [f"{ref.parent}:{ref.name}" for ref in step.inputs],
                "params": dict(step.params),
            }
        )
        for step in plan.steps
    )
