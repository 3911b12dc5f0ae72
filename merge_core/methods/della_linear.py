"""DELLA without sign consensus (arXiv:2406.11617; mergekit 0.1.5 `della_linear`)."""

from typing import Annotated

from merge_core.combination import TaskVectors
from merge_core.geometry import TensorGroup
from merge_core.methods.della import ranks, refusal
from merge_core.registry import SHARE, Base, Default, PerParent, Range, merge_method
from merge_core.task_vectors import task_vectors


@merge_method(
    title="DELLA linear",
    reference="https://arxiv.org/abs/2406.11617",
    base=Base.REQUIRED,
    check=refusal,
)
def della_linear(
    group: TensorGroup,
    *,
    weight: Annotated[PerParent, Range(0.0, 1.5)],
    density: Annotated[PerParent, Range(0.2, 0.8), SHARE, Default(1.0)],
    epsilon: Annotated[PerParent, Range(0.01, 0.19), Default(0.15)],
    normalize: bool = False,
    rescale: bool = True,
    lambda_: Annotated[float, Range(0.1, 2.0)] = 1.0,
    int8_mask: bool = False,  # noqa: ARG001
) -> TaskVectors:
    """Keep elements with a probability that grows with their rank, then sum.

    Elements are kept as in `della`, with the same differences from mergekit.

    Args:
        group: The parents' tensors and their base.
        weight: Factor of each task vector, `(parents,)`.
        density: Mean probability that an element is kept, `(parents,)`; 1 keeps all, 0 none.
        epsilon: How far probabilities go from `density`, either way, `(parents,)`.
        normalize: Divide by the sum of the weights.
        rescale: Restore the L1 norm that dropping took.
        lambda_: Factor of the merged task vector.
        int8_mask: Read for mergekit's sake; it changes mergekit's memory use and no value.
    """
    return task_vectors(
        group,
        weight,
        ranks(group, density, epsilon),
        consensus=False,
        normalize=normalize,
        rescale=rescale,
        scale=lambda_,
    )
