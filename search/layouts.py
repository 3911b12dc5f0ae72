"""The order of layers as a hole: which values mean which layers, from whom, how often, how strong.

Every form gives each output layer as a step. Decoding is total: whatever the values, the steps are
a legal model within the depth that the study allows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from merge_core.interleave import Run, interleave
from merge_core.recipe import Recipe
from merge_core.writers import Writers, scale_settings
from search.dimensions import Dimension, Values
from search.picks import Pick

MERGE = "merge"
"""What the recipe's models are merged to, as an origin beside the parents."""

LAYERS = "layers"
"""Tensors outside the layers come from where the first and the last layer come from."""


@dataclass(frozen=True, slots=True)
class Step:
    """One output layer.

    Attributes:
        origin: A parent, or `merge`.
        layer: Its number there.
        factor: Of what it adds to the residual stream.
    """

    origin: str
    layer: int
    factor: float = 1.0


class Form(Protocol):
    """A way to write orders of layers as numbers and choices."""

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """What is searched, choices before what they decide."""
        ...

    def steps(self, values: Values) -> Sequence[Step]:
        """The output's layers from bottom to top, at least one."""
        ...

    def starts(self) -> Sequence[Values]:
        """What is tried first: each origin's own layers in their order come first."""
        ...

    def extremes(self) -> Sequence[Values]:
        """Values that give the most and the fewest layers, of its own dimensions."""
        ...

    def told(self) -> str:
        """What it is, in numbers."""
        ...


@dataclass(frozen=True, slots=True)
class Layout:
    """A form with what it is about.

    Attributes:
        form: How orders are written.
        origins: Parents, and perhaps `merge`.
        depths: How many layers each parent has, and `merge`.
        writers: For each origin the tensors that a scale multiplies, for `merge` also by a model
            that is merged; empty where nothing is scaled.
        ends: Where the tensors outside the layers come from.
    """

    form: Form
    origins: tuple[str, ...]
    depths: Mapping[str, int]
    writers: Mapping[str, Writers]
    ends: Pick

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Of the form and of the ends."""
        return (*self.form.dimensions, *self.ends.dimensions)

    @property
    def merges(self) -> bool:
        """Whether a candidate may have layers or ends of `merge`."""
        return MERGE in self.origins or MERGE in self.ends.options

    def apply(self, recipe: Recipe, values: Values) -> Recipe:
        """The recipe with its layers in the order that the values mean."""
        runs = [self._run(step) for step in self.form.steps(values)]
        ends = self.ends.option(values)
        if ends != LAYERS:
            origin, top = None if ends == MERGE else ends, self.depths[ends]
            runs = [Run(origin, 0, 0), *runs, Run(origin, top, top)]
        return interleave(recipe, runs, self.depths)

    def told(self) -> str:
        """What it is, in numbers."""
        ends = self.ends.options
        if ends == (LAYERS,):
            return self.form.told()
        return f"{self.form.told()}; embeddings, last norm and head from {' or '.join(ends)}"

    def _run(self, step: Step) -> Run:
        origin = None if step.origin == MERGE else step.origin
        scaled = step.factor != 1.0
        parameters = scale_settings(self.writers[step.origin], step.factor) if scaled else ()
        return Run(origin, step.layer, step.layer + 1, parameters)

    def starts(self) -> tuple[Values, ...]:
        """The form's, with all other dimensions at their starts and the first of the ends."""
        usual = {d.name: d.start for d in self.dimensions if d.start is not None}
        ends = self.ends.values(self.ends.options[0])
        return tuple({**usual, **values, **ends} for values in self.form.starts())

    def whole(self) -> tuple[Values, ...]:
        """Of those the first: each origin's own layers in their order."""
        return self.starts()[: len(self.origins)]


def own_walk(origin: str, depth: int) -> tuple[Step, ...]:
    """All layers of one origin in their order."""
    return tuple(Step(origin, layer) for layer in range(depth))


def within(steps: Sequence[Step], depth: tuple[int, int]) -> tuple[Step, ...]:
    """The same, thinned or stretched evenly where it is too deep or too shallow.

    Args:
        steps: At least one.
        depth: The fewest and the most layers.
    """
    wanted = min(max(len(steps), depth[0]), depth[1])
    if wanted == len(steps):
        return tuple(steps)
    return tuple(steps[at * len(steps) // wanted] for at in range(wanted))
