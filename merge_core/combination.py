"""What a method decides for one tensor: numbers that one pass over its elements can use.

A method never touches elements. It reads the geometry of the tensor (norms, angles, order of
magnitudes), which is the same in every trial, and returns one of these two forms; `kernel.py`
executes them. That is what makes a method cheap inside a search and short to write.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Linear:
    """sum_i coefficients[i] * parent_i, accumulated in float32. `coefficients` is `(parents,)`."""

    coefficients: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Magnitude:
    """Keep the largest |delta|: all above `threshold`, and at it those before `cutoff`.

    `cutoff` is an index into the flattened tensor; it makes the number of kept elements exact
    where magnitudes are equal, which is common in bfloat16.
    """

    threshold: float
    cutoff: int


@dataclass(frozen=True, slots=True)
class Bernoulli:
    """Keep each element with probability `density`, by the counter-based stream `key`."""

    density: float
    key: int


@dataclass(frozen=True, slots=True)
class Nothing:
    """Keep no element."""


Selection = Magnitude | Bernoulli | Nothing | None
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


Combination = Linear | TaskVectors
