"""Copy one model's tensor, scaled (mergekit 0.1.5 `passthrough`): the brick of frankenmerges."""

from typing import Annotated

from merge_core.combination import Linear
from merge_core.geometry import TensorGroup
from merge_core.registry import Base, Default, PerParent, Range, merge_method


@merge_method(
    title="Passthrough",
    reference="https://github.com/arcee-ai/mergekit",
    base=Base.INPUT,
    inputs=(1, 1),
)
def passthrough(
    group: TensorGroup,  # noqa: ARG001
    *,
    scale: Annotated[PerParent, Range(0.5, 1.5), Default(1.0)],
) -> Linear:
    """Scale * x, for exactly one parent.

    Args:
        group: The parent's tensor.
        scale: Factor, `(1,)`.
    """
    return Linear(scale)
