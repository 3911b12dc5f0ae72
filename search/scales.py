"""Input scales where a walk jumps, learnt as a few numbers: one for each kind of jump."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

from merge_core.writers import folded
from search.dimensions import Condition, Prior, Real, Values
from search.layouts import Step

KINDS = ("back", "skip", "switch")
"""Back to an earlier layer of the same parent, over some of its layers, to another parent."""

_RANGE = (0.5, 1.5)
_LIKELY = (1.0, 0.1)  # published winners stay within 0.78 and 1.19 (arXiv:2502.04030's)


@dataclass(frozen=True, slots=True)
class Scales:
    """What multiplies the residual stream before a layer that a walk jumps to.

    Attributes:
        numbers: By kind of jump, or by the layer that is jumped to.
        per_layer: Which of the two.
    """

    numbers: Mapping[str, Real]
    per_layer: bool

    def apply(self, steps: Sequence[Step], values: Values) -> tuple[Step, ...]:
        """The steps with what each layer adds divided by all scales up to it (see `writers`)."""
        jumps = [None, *(self._jump(a, b) for a, b in pairwise(steps))]
        scales = [1.0 if jump is None else self._scale(jump, values) for jump in jumps]
        pairs = zip(steps, folded(scales), strict=True)
        return tuple(replace(step, factor=factor) for step, factor in pairs)

    def _scale(self, jump: str, values: Values) -> float:
        number = self.numbers[jump]
        return number.value(cast("float", values[number.name])) if number.name in values else 1.0

    def _jump(self, one: Step, other: Step) -> str | None:
        if one.origin == other.origin and other.layer == one.layer + 1:
            return None
        if self.per_layer:
            return f"{other.origin}.{other.layer}"
        if one.origin != other.origin:
            return "switch"
        return "back" if other.layer <= one.layer else "skip"


def one_scale(
    name: str, methods: tuple[str, ...], under: tuple[Condition, ...], parameter: str = "input"
) -> Real:
    """A scale that is probably near 1."""
    prior = Prior(*_LIKELY, *_RANGE)
    start = prior.share(1.0)
    return Real(name, 0.0, 1.0, False, methods, parameter, under, start, prior)
