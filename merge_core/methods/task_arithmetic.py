"""Add weighted task vectors to a base (arXiv:2212.04089; mergekit 0.1.5 `task_arithmetic`)."""

from typing import Annotated

from merge_core.combination import TaskVectors
from merge_core.geometry import TensorGroup
from merge_core.registry import Base, PerParent, Range, merge_method
from merge_core.task_vectors import task_vectors


@merge_method(
    title="Task Arithmetic", reference="https://arxiv.org/abs/2212.04089", base=Base.REQUIRED
)
def task_arithmetic(
    group: TensorGroup,
    *,
    weight: Annotated[PerParent, Range(0.0, 1.5)],
    normalize: bool = False,
    lambda_: Annotated[float, Range(0.1, 2.0)] = 1.0,
    int8_mask: bool = False,  # noqa: ARG001
) -> TaskVectors:
    """Base + lambda * sum_i w_i (x_i - base).

    Args:
        group: The parents' tensors and their base.
        weight: Factor of each task vector, `(parents,)`.
        normalize: Divide by the sum of the weights (left alone below 1e-8).
        lambda_: Factor of the merged task vector.
        int8_mask: Read for mergekit's sake; it changes mergekit's memory use and no value.
    """
    keep_all = (None,) * group.parents
    return task_vectors(
        group, weight, keep_all, consensus=False, normalize=normalize, rescale=False, scale=lambda_
    )
