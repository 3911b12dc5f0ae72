"""RAM: keep what one parent moved, average what several did (mergekit 0.1.5 `ram`)."""

from typing import Annotated

from merge_core.elementwise import UniqueAndShared
from merge_core.geometry import TensorGroup
from merge_core.registry import Base, Bounds, Range, merge_method


@merge_method(title="RAM", reference="https://arxiv.org/abs/2601.13572", base=Base.REQUIRED)
def ram(
    group: TensorGroup,
    *,
    epsilon: Annotated[float, Range(1e-6, 1e-3, log=True), Bounds(0.0)] = 1e-5,
) -> UniqueAndShared:
    """Base + T_i where parent i alone moved, the mean of the moved T_i where several did.

    T_i = x_i - base; parent i moved an element where |T_i| > epsilon. The task vectors of agents
    trained by reinforcement are sparse, and averaging would shrink what only one of them learned.
    Differences are taken in float32, mergekit takes them in the models' dtype.

    Args:
        group: The parents' tensors and their base.
        epsilon: What counts as moved, in the unit of the weights.
    """
    return UniqueAndShared(epsilon, (1.0,) * group.parents)
