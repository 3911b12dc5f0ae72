"""A recipe whose layers come in another order: copied from its parents, merged, repeated, left out.

What mergekit users write by hand as hundreds of lines of `slices` (frankenmerges, depth
up-scaling, pruning), from a few runs of layers. A run that is merged has the recipe's own numbers:
what a gradient gives a layer stays with that layer, wherever it goes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from merge_core.recipe import Parameters, Recipe, Setting, Slice, Source
from merge_core.values import resolve

COPY = "passthrough"
"""The method of copied layers."""


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring layers as they stand in their origin.

    Attributes:
        origin: The parent that they are copied from; None: what the recipe merges.
        start: The first layer.
        end: The end, exclusive; none at all where it is the start: only the tensors outside the
            layers are taken then, by the first run those before them, by the last those after.
        parameters: Of passthrough: the `scale` of some tensors. Merged layers take it too.
    """

    origin: str | None
    start: int
    end: int
    parameters: Parameters = ()

    @property
    def length(self) -> int:
        """How many layers."""
        return self.end - self.start


def interleave(recipe: Recipe, runs: Sequence[Run], depths: Mapping[str, int]) -> Recipe:
    """A recipe of runs of layers.

    Args:
        recipe: What is merged where something is: one slice of all layers. Where all runs are
            copied only its dtypes, tokenizer and chat template matter.
        runs: The output's layers from bottom to top; at least one layer.
        depths: How many layers each parent has.

    Returns:
        The recipe itself if it is merged from bottom to top, else one of slices.
    """
    joined = tuple(join(runs))
    if joined == (Run(None, 0, _depth(recipe, depths)),):
        return recipe
    slices = tuple(
        _copied(run, recipe) if run.origin else _merged(run, recipe, depths) for run in joined
    )
    if any(run.origin is None for run in joined):
        return replace(recipe, slices=slices)
    plain = tuple(replace(part, method=None) for part in slices)
    first = joined[0]
    if joined == (Run(first.origin, 0, depths[str(first.origin)]),):
        plain = (Slice((Source(str(first.origin)),)),)
    return replace(recipe, method=COPY, slices=plain, base=None, parameters=())


def join(runs: Sequence[Run]) -> Iterator[Run]:
    """Runs that go on where the one before ended, as one; those of no layers only at the ends."""
    last: Run | None = None
    for at, run in enumerate(runs):
        if run.length == 0 and 0 < at < len(runs) - 1:
            continue
        if last and _goes_on(last, run):
            last = replace(last, end=run.end)
            continue
        if last:
            yield last
        last = run
    if last:
        yield last


def _goes_on(one: Run, other: Run) -> bool:
    alike = (one.origin, one.parameters) == (other.origin, other.parameters)
    return alike and one.end == other.start


def _copied(run: Run, recipe: Recipe) -> Slice:
    source = Source(str(run.origin), (run.start, run.end), run.parameters)
    return Slice((source,), method=None if recipe.method == COPY else COPY)


def _merged(run: Run, recipe: Recipe, depths: Mapping[str, int]) -> Slice:
    """The layers of all models that the recipe merges, the base's with them."""
    (whole,) = recipe.slices
    depth = _depth(recipe, depths)
    sources = [
        Source(source.model, (run.start, run.end), _localised(source.parameters, run, depth))
        for source in whole.sources
    ]
    base = whole.base or recipe.base
    if base and base not in [source.model for source in sources]:
        sources.append(Source(base, (run.start, run.end)))
    # What the recipe says of all is said by each slice: a gradient is another one in each.
    said = {**dict(recipe.parameters), **dict(whole.parameters)}
    graded = {name for name, settings in said.items() if any(_is_graded(s) for s in settings)}
    own = tuple(sorted((name, said[name]) for name in graded))
    stated = tuple((name, s) for name, s in whole.parameters if name not in graded)
    parameters = tuple(sorted((*_localised(own, run, depth), *stated)))
    scale = dict(run.parameters).get("scale", ())
    return Slice(tuple(sources), whole.base, parameters, scale=scale)


def _depth(recipe: Recipe, depths: Mapping[str, int]) -> int:
    """Of the models that are merged, which have as many layers each."""
    return depths[recipe.slices[0].sources[0].model]


def _localised(parameters: Parameters, run: Run, depth: int) -> Parameters:
    """The same numbers for a run of the layers: gradients as one value for each of them."""
    return tuple(
        (name, tuple(_cut(setting, run, depth) for setting in settings))
        for name, settings in parameters
    )


def _cut(setting: Setting, run: Run, depth: int) -> Setting:
    if not _is_graded(setting):
        return setting
    whole = (replace(setting, filter=None),)
    places = [layer / (depth - 1) if depth > 1 else 1.0 for layer in range(run.start, run.end)]
    places = places or [0.0]  # what stands outside the layers takes the first value
    values = [resolve(whole, "", place) for place in places]
    found = tuple(value for value in values if value is not None)
    return replace(setting, value=found[0] if len(set(found)) == 1 else found)


def _is_graded(setting: Setting) -> bool:
    return isinstance(setting.value, tuple)
