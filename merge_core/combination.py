"""What a method decides for one tensor: numbers that one pass over its elements can use.

A method never touches elements. It reads the geometry of the tensor (norms, angles, order of
magnitudes), which is the same in every trial, and returns one of three forms; `kernel.py` executes
them. `Linear` and `TaskVectors` cover most methods and have the fastest kernels; what fits neither
is an `Elementwise` of its own.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor of a parent."""

    parent: str
    name: str


@dataclass(frozen=True, slots=True)
class Linear:
    """sum_i coefficients[i] * source_i, accumulated in float32.

    Attributes:
        coefficients: `(sources,)`; a zero leaves its source out, whatever it holds.
        sources: What is summed; None means the group's parents. A method with a base starts its
            sources with the base, or takes derived tensors (`TensorGroup.derived`).
    """

    coefficients: tuple[float, ...]
    sources: tuple[TensorRef, ...] | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """A place in the order of a task vector's elements: largest |delta| first, then by position.

    Before it are the elements above `threshold`, and those at it with a position below `index`
    (in the flattened tensor). It makes the number of kept elements exact where magnitudes are
    equal, which is common in bfloat16.
    """

    threshold: float
    index: int


@dataclass(frozen=True, slots=True)
class Window:
    """Keep the elements from `first` on and before `last`; None stands for either end."""

    first: Cut | None
    last: Cut | None


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream of random 16-bit numbers: one half of the 32-bit numbers of a key."""

    key: int
    half: int


@dataclass(frozen=True, slots=True)
class Bernoulli:
    """Keep an element where the stream's number is below `limit`, of 65536."""

    limit: int
    stream: Stream


@dataclass(frozen=True, slots=True)
class Scored:
    """Keep an element where its score, a number from 0 to 65535, is below `limit`.

    The scores are those of one task vector, made once per study.
    """

    limit: int
    name: str
    scores: torch.Tensor = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Nothing:
    """Keep no element."""


Selection = Window | Bernoulli | Scored | Nothing | None
"""Which elements of a task vector are kept; None keeps all."""


@dataclass(frozen=True, slots=True)
class TaskVectors:
    """base + scale * f(sum_i factors[i] * selected(parent_i - base)).

    Attributes:
        weights: What a parent counts in the normaliser, `(parents,)`.
        factors: What its kept elements are multiplied with: weight times rescaling, `(parents,)`.
        selections: Which elements are kept, `(parents,)`.
        consensus: Drop the elements whose sign is not that of the sum over parents.
        normalize: Divide by the sum of the weights that took part.
        scale: Multiplies the merged task vector (mergekit's lambda).
    """

    weights: tuple[float, ...]
    factors: tuple[float, ...]
    selections: tuple[Selection, ...]
    consensus: bool
    normalize: bool
    scale: float


class Elementwise(ABC):
    """A form of its own: subclasses are frozen dataclasses that hold what the method decided."""

    __slots__ = ()

    @abstractmethod
    def merge(self, base: torch.Tensor | None, values: torch.Tensor, start: int) -> torch.Tensor:
        """Merge one piece of the flattened tensors.

        Args:
            base: float32, `(count,)`, or None for a group without a base.
            values: float32, `(parents, count)`: the task vectors, or the parents where there is no
                base; may be overwritten.
            start: Position of the piece's first element in the flattened tensor.

        Returns:
            float32, `(count,)`: the merged elements (with the base added).
        """


Combination = Linear | TaskVectors | Elementwise
