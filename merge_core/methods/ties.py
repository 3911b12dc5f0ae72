"""TIES: trim, elect signs, merge (arXiv:2306.01708; mergekit 0.1.5 `ties`)."""

from typing import Annotated

from merge_core.combination import TaskVectors
from merge_core.geometry import TensorGroup
from merge_core.registry import SHARE, Base, Default, PerParent, Range, merge_method
from merge_core.task_vectors import task_vectors


@merge_method(title="TIES", reference="https://arxiv.org/abs/2306.01708", base=Base.REQUIRED)
def ties(
    group: TensorGroup,
    *,
    weight: Annotated[PerParent, Range(0.0, 1.5)],
    density: Annotated[PerParent, Range(0.05, 1.0), SHARE, Default(1.0)],
    normalize: bool = True,
    rescale: bool = False,
    lambda_: Annotated[float, Range(0.1, 2.0)] = 1.0,
    int8_mask: bool = False,  # noqa: ARG001
) -> TaskVectors:
    """Keep each task vector's largest elements, then sum those that agree on the sign.

    Exactly max(1, int(density * numel)) elements are kept; among equal magnitudes the first ones
    (mergekit sorts unstably there).

    Args:
        group: The parents' tensors and their base.
        weight: Factor of each task vector, `(parents,)`; it also weighs its vote on the sign.
        density: Share of elements kept by magnitude, `(parents,)`.
        normalize: Divide each element by the weights of the parents that agree there.
        rescale: Restore the L1 norm that trimming took.
        lambda_: Factor of the merged task vector.
        int8_mask: Read for mergekit's sake; it changes mergekit's memory use and no value.
    """
    selections = [group.largest(parent, share) for parent, share in enumerate(density)]
    return task_vectors(
        group,
        weight,
        selections,
        consensus=True,
        normalize=normalize,
        rescale=rescale,
        scale=lambda_,
    )
