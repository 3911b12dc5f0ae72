"""Model Breadcrumbs with sign consensus (arXiv:2312.06795, 2306.01708; mergekit 0.1.5)."""

from typing import Annotated

from merge_core.combination import TaskVectors
from merge_core.geometry import TensorGroup
from merge_core.methods.breadcrumbs import bands
from merge_core.registry import SHARE, Base, Default, PerParent, Range, merge_method
from merge_core.task_vectors import task_vectors


@merge_method(
    title="Model Breadcrumbs TIES", reference="https://arxiv.org/abs/2312.06795", base=Base.REQUIRED
)
def breadcrumbs_ties(
    group: TensorGroup,
    *,
    weight: Annotated[PerParent, Range(0.0, 1.5)],
    density: Annotated[PerParent, Range(0.05, 1.0), SHARE, Default(1.0)],
    gamma: Annotated[PerParent, Range(0.0, 0.1), SHARE, Default(0.01)],
    normalize: bool = False,
    rescale: bool = False,
    lambda_: Annotated[float, Range(0.1, 2.0)] = 1.0,
    int8_mask: bool = False,  # noqa: ARG001
) -> TaskVectors:
    """Drop each task vector's outliers and small elements, then sum those that agree on the sign.

    Elements are kept as in `breadcrumbs` and summed as in `ties`.

    Args:
        group: The parents' tensors and their base.
        weight: Factor of each task vector, `(parents,)`; it also weighs its vote on the sign.
        density: Share of elements kept, `(parents,)`.
        gamma: Share of elements dropped for being the largest, `(parents,)`.
        normalize: Divide each element by the weights of the parents that agree there.
        rescale: Restore the L1 norm that dropping took.
        lambda_: Factor of the merged task vector.
        int8_mask: Read for mergekit's sake; it changes mergekit's memory use and no value.
    """
    return task_vectors(
        group,
        weight,
        bands(group, density, gamma),
        consensus=True,
        normalize=normalize,
        rescale=rescale,
        scale=lambda_,
    )
