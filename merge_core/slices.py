"""Slices of a recipe, stack by stack: who takes part, what each gives, and every check of that."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from merge_core.checkpoint import Checkpoint
from merge_core.errors import RecipeError
from merge_core.naming import Stack
from merge_core.recipe import Module, Recipe, Slice, Source
from merge_core.registry import Base, MergeMethod, find_method


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
class Part:
    """A slice in its stack. `at` is its place among all slices, `where` its name in errors."""

    at: int
    where: str
    stack: str
    method: MergeMethod
    inputs: Inputs


@dataclass(frozen=True, slots=True)
class Site:
    """What every row needs to know."""

    recipe: Recipe
    parents: Mapping[str, Checkpoint]
    donor: Checkpoint


def cut_parts(site: Site) -> Iterator[Part]:
    """All slices, stack by stack, checked."""
    at = 0
    for module in _modules(site):
        prefix = f"modules.{module.name}." if site.recipe.modules else ""
        length = 0
        for i, cut in enumerate(module.slices):
            method = method_of(cut, site.recipe)
            inputs = merge_inputs(method, cut, site.recipe.base)
            where = f"{prefix}{_name(module.slices, i)}"
            part = Part(at, where, module.name, method, inputs)
            _check_inputs(site, part, cut)
            yield part
            at, length = at + 1, length + part_length(site, part)
        if length == 0:
            raise RecipeError(f"{prefix}slices: they have no layers; give a longer layer_range")


def _name(slices: tuple[Slice, ...], at: int) -> str:
    """What a recipe calls a slice: one of whole models is written as models."""
    whole = len(slices) == 1 and all(source.layers is None for source in slices[0].sources)
    return "models" if whole else f"slices[{at}]"


def method_of(part: Slice, recipe: Recipe) -> MergeMethod:
    """The method of a slice.

    Raises:
        RecipeError: If there is none of that name.
    """
    return find_method(part.method or recipe.method)


def merge_inputs(method: MergeMethod, part: Slice, base_model: str | None) -> Inputs:
    """Decide which sources of a slice are parents and which is the base."""
    base_name = part.base or base_model
    listed = next((s for s in part.sources if s.model == base_name), None)
    whole = all(source.layers is None for source in part.sources)
    base = listed or (Source(base_name) if base_name and whole else None)
    others = tuple(source for source in part.sources if source is not listed)
    match method.base:
        case Base.REQUIRED | Base.OPTIONAL:
            return Inputs(others, base)
        case Base.ENDPOINT:
            return Inputs(((base,) if base else ()) + others, base)
        case Base.INPUT:
            joins = base is not None and listed is None
            return Inputs((*part.sources, base) if joins and base else part.sources, None)


def part_length(site: Site, part: Part) -> int:
    """Number of layers that a slice makes."""
    start, end = layer_span(site, part.inputs.sources[0], part.stack)
    return end - start


def layer_span(site: Site, source: Source, stack: str) -> tuple[int, int]:
    """First layer and end (exclusive) of what a source gives to a stack."""
    return source.layers or (0, find_stack(site.parents[source.model], stack).depth)


def find_stack(parent: Checkpoint, name: str) -> Stack:
    """The stack of that name, which the parent is known to have."""
    return next(stack for stack in parent.layout.stacks if stack.name == name)


def _modules(site: Site) -> tuple[Module, ...]:
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


def _check_unsliced(site: Site, stacks: tuple[Stack, ...]) -> None:
    if len(stacks) == 1 or all(s.layers is None for p in site.recipe.slices for s in p.sources):
        return
    what = ", ".join(f"{stack.name} ({stack.depth} layers)" for stack in stacks)
    raise RecipeError(
        f"slices: model '{site.donor.name}' has several stacks of layers, {what}; give slices to "
        f"each: modules: {{{stacks[0].name}: {{slices: …}}, {stacks[-1].name}: {{models: …}}}}"
    )


def _check_inputs(site: Site, part: Part, cut: Slice) -> None:
    method, where, inputs = part.method, part.where, part.inputs
    base = cut.base or site.recipe.base
    needed = method.base.needed or (method.base is Base.OPTIONAL and base is not None)
    if needed and inputs.base is None:
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
            f"merge_method '{method.name}' takes {expected} model{'s' if least > 1 else ''}"
            f"{'' if method.base.apart else ', base_model included'}; "
            f"{where} has {count}: {', '.join(s.model for s in inputs.sources)}"
        )


def _check_range(site: Site, part: Part, source: Source) -> None:
    start, end = layer_span(site, source, part.stack)
    depth = find_stack(site.parents[source.model], part.stack).depth
    if end > depth:
        raise RecipeError(
            f"{part.where}: layer_range [{start}, {end}) of '{source.model}' reaches past its "
            f"{depth} layers; end is exclusive, so at most {depth}"
        )
    if end - start != (length := part_length(site, part)):
        raise RecipeError(
            f"{part.where}: '{source.model}' gives {end - start} layers but "
            f"'{part.inputs.sources[0].model}' gives {length}; sources of one slice need equally "
            "many: cut them with layer_range under slices"
        )
