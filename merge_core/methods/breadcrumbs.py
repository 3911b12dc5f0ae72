"""Model Breadcrumbs: without the largest and the smallest (arXiv:2312.06795; mergekit 0.1.5)."""

from typing import Annotated

from merge_core.combination import Selection, TaskVectors
from merge_core.geometry import TensorGroup
from merge_core.registry import SHARE, Base, Default, PerParent, Range, merge_method
from merge_core.task_vectors import task_vectors


@merge_method(
    title="Model Breadcrumbs", reference="https://arxiv.org/abs/2312.06795", base=Base.REQUIRED
)
def breadcrumbs(
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
    """Drop each task vector's outliers and its small elements, then sum.

    Of n elements int(gamma n) of largest |delta| are dropped and the next int(density n) are kept;
    where fewer are left, the smallest int(density n) are. Density 1 keeps all, whatever gamma, as
    in mergekit. Among equal magnitudes the first count as the larger (mergekit sorts unstably).

    Args:
        group: The parents' tensors and their base.
        weight: Factor of each task vector, `(parents,)`.
        density: Share of elements kept, `(parents,)`.
        gamma: Share of elements dropped for being the largest, `(parents,)`.
        normalize: Divide by the sum of the weights.
        rescale: Restore the L1 norm that dropping took.
        lambda_: Factor of the merged task vector.
        int8_mask: Read for mergekit's sake; it changes mergekit's memory use and no value.
    """
    return task_vectors(
        group,
        weight,
        bands(group, density, gamma),
        consensus=False,
        normalize=normalize,
        rescale=rescale,
        scale=lambda_,
    )


def bands(group: TensorGroup, density: PerParent, gamma: PerParent) -> list[Selection]:
    """Which elements Model Breadcrumbs keeps of each task vector, `(parents,)`."""
    return [_band(group, i, d, g) for i, (d, g) in enumerate(zip(density, gamma, strict=True))]


def _band(group: TensorGroup, parent: int, density: float, gamma: float) -> Selection:
    if density >= 1:
        return None
    numel = group.shape.numel()
    kept = int(density * numel)
    below = max(0, numel - kept - int(gamma * numel))
    return group.band(parent, numel - below - kept, kept)
