"""Recipe + parents → plan: every check of names, shapes, dtypes and values, from headers alone.

`compile_plan` raises or the merge runs. What doesn't depend on the recipe's numbers (which tensor
is made of which, and every check of that) is worked out once and kept: a search asks for thousands
of plans that differ in numbers only.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from merge_core.blueprint import Blueprint, draw_blueprint
from merge_core.checkpoint import Checkpoint
from merge_core.errors import RecipeError
from merge_core.geometry import TensorRef
from merge_core.passed_over import passed_over
from merge_core.recipe import Module, Parameters, Recipe, Slice, nearest
from merge_core.registry import find_method
from merge_core.slices import merge_inputs, method_of
from merge_core.values import Params, Values, read_values

_UNSCALED = (("scale", (1.0,)),)


class MergeStep(NamedTuple):  # made and compared by the hundred for every candidate
    """How one output tensor is made. Equal steps write equal tensors.

    Attributes:
        out: Name of the output tensor.
        shape: Its shape.
        dtype: What is stored.
        method: Name of the merge method; None copies (buffers that are no weights).
        inputs: The parents' tensors, in recipe order.
        base: Where task vectors start.
        params: Resolved parameters.
        rounding: Inputs are rounded to it before any arithmetic; None where that changes none.
        seed: Seed of random masks.
        compat: Whether to compute as mergekit does where the two differ.
        scale: What was merged and rounded to `dtype` is multiplied by it and rounded again.
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
    compat: bool = False
    scale: float = 1.0

    @property
    def copies(self) -> bool:
        """Whether its one input is handed on and nothing is computed."""
        return self.method == "passthrough" and self.params == _UNSCALED


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Everything a merge will do.

    Attributes:
        steps: One per output tensor: those outside the layers, then layer by layer.
        donor: Alias of the parent that gives configuration and tokenizer: the base, or else the
            first parent.
        config: The output's `config.json`.
        depth: Number of output layers, of all stacks together.
        warnings: What differs between the parents' configurations and shifts their function, and
            parameters that change nothing.
    """

    steps: tuple[MergeStep, ...]
    donor: str
    config: Mapping[str, Any]
    depth: int
    warnings: tuple[str, ...] = ()

    @property
    def bytes_out(self) -> int:
        """Size of the output in bytes."""
        return sum(torch.Size(s.shape).numel() * s.dtype.itemsize for s in self.steps)


def compile_plan(
    recipe: Recipe, parents: Mapping[str, Checkpoint], seed: int = 0, *, judge: bool = True
) -> MergePlan:
    """Check a recipe against its parents and resolve it tensor by tensor. Reads no tensor.

    Args:
        recipe: What to merge.
        parents: The opened parents by the names that the recipe uses.
        seed: Seed of random masks.
        judge: Whether to refuse numbers that a method can't merge with; without, the plan only
            tells what is made of what.

    Raises:
        RecipeError: If anything doesn't fit; names the tensor or key and what to do.
        NumbersError: If only the numbers don't.
    """
    find_method(recipe.method)
    for model in recipe.models:
        if model not in parents:
            raise RecipeError(f"model '{model}' is not open; {nearest(model, parents)}")
    notes = tuple(dict.fromkeys(_check_parameter_names(recipe)))
    _check_scales(recipe)
    opened = tuple((model, parents[model]) for model in recipe.models)
    blueprint = draw_blueprint(_without_values(recipe), opened)
    steps = tuple(_steps(blueprint, _values(recipe, blueprint, judge), seed, recipe.compat))
    warnings = (*blueprint.warnings, *notes)
    return MergePlan(steps, blueprint.donor, blueprint.config, blueprint.depth, warnings)


def _steps(
    blueprint: Blueprint, values: tuple[Values, ...], seed: int, compat: bool
) -> Iterator[MergeStep]:
    for row in blueprint.rows:
        mine = values[row.part]
        params = mine.at(row.out, row.inputs, row.depth) if row.method else ()
        step = MergeStep(
            row.out,
            row.shape,
            row.dtype,
            row.method,
            row.inputs,
            row.base,
            params,
            row.rounding,
            seed,
            compat,
            mine.factor(row.out) if row.method else 1.0,
        )
        if step.dtype is torch.float64 and step.method and not step.copies:
            _refuse_float64(step)
        yield step


def _refuse_float64(step: MergeStep) -> None:
    """Numbers of float32 in a file that says float64 would look like what they aren't."""
    raise RecipeError(
        f"tensor '{step.out}' would be stored in float64, but '{step.method}' is computed in "
        "float32; write 'out_dtype: float32', or float16 or bfloat16 (only a passthrough without a "
        "scale keeps float64)"
    )


def _values(recipe: Recipe, blueprint: Blueprint, judge: bool) -> tuple[Values, ...]:
    """The parameters of each part, in the blueprint's order: slices by stack."""
    found: list[Values] = []
    for name in blueprint.stacks:
        module = next((m for m in recipe.modules if m.name == name), Module(name, recipe.slices))
        for part in module.slices:
            method = method_of(part, recipe)
            inputs = merge_inputs(method, part, recipe.base)
            outer = (part.parameters, module.parameters, recipe.parameters)
            sources = tuple(source.parameters for source in inputs.sources)
            found.append(read_values(method, sources, outer, part.scale, judge=judge))
    return tuple(found)


def _without_values(recipe: Recipe) -> Recipe:
    """The recipe's skeleton: equal for recipes that differ in numbers only."""
    modules = tuple(Module(m.name, _bare(m.slices)) for m in recipe.modules)
    return replace(recipe, slices=_bare(recipe.slices), modules=modules, parameters=())


def _bare(slices: tuple[Slice, ...]) -> tuple[Slice, ...]:
    return tuple(
        Slice(
            tuple(replace(source, parameters=()) for source in part.sources),
            part.base,
            method=part.method,
        )
        for part in slices
    )


def _check_parameter_names(recipe: Recipe) -> Iterator[str]:
    """Every parameter is one of the method that its slice has, or of any where all slices share.

    Yields:
        What to say of others that change nothing.
    """
    for where, parameters, words, in_source in scopes(recipe):
        methods = [find_method(word) for word in words]
        for name, _ in parameters:
            found = [parameter for m in methods if (parameter := m.parameter(name))]
            if not found and (note := passed_over(name, words)) is not None:
                yield from [note] if note else []
                continue
            if not found:
                known = dict.fromkeys(p.name for method in methods for p in method.parameters)
                raise RecipeError(
                    f"{where}: merge_method '{' or '.join(words)}' has no parameter '{name}'; "
                    f"{nearest(name, known)}"
                )
            if in_source and not found[0].per_parent:
                raise RecipeError(
                    f"{where}: '{name}' of '{words[0]}' is one value for all models; "
                    "put it under the recipe's own 'parameters'"
                )


def _check_scales(recipe: Recipe) -> None:
    """A copied layer says its factor as any passthrough does."""
    for module in recipe.modules or (Module("", recipe.slices),):
        prefix = f"modules.{module.name}." if recipe.modules else ""
        for i, part in enumerate(module.slices):
            if part.scale and (part.method or recipe.method) == "passthrough":
                raise RecipeError(
                    f"{prefix}slices[{i}].scale: is of slices that are merged; 'passthrough' has "
                    "it as a parameter: write 'parameters: {scale: ...}'"
                )


def scopes(recipe: Recipe) -> Iterator[tuple[str, Parameters, tuple[str, ...], bool]]:
    """All parameters: where they stand, what they say, for slices of which methods."""
    yield "parameters", recipe.parameters, recipe.methods, False
    for module in recipe.modules or (Module("", recipe.slices),):
        prefix = f"modules.{module.name}." if recipe.modules else ""
        words = tuple(dict.fromkeys(part.method or recipe.method for part in module.slices))
        yield f"{prefix}parameters", module.parameters, words, False
        for i, part in enumerate(module.slices):
            own = (part.method or recipe.method,)
            yield f"{prefix}slices[{i}].parameters", part.parameters, own, False
            for source in part.sources:
                yield f"parameters of model '{source.model}'", source.parameters, own, True


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
            | ({} if step.scale == 1.0 else {"scale": step.scale})
        )
        for step in plan.steps
    )
