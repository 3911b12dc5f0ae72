"""DELLA: drop at random, small elements more often (arXiv:2406.11617; mergekit 0.1.5 `della`)."""

from typing import Annotated

from merge_core.combination import Nothing, Selection, TaskVectors
from merge_core.geometry import TensorGroup
from merge_core.registry import SHARE, Base, Default, PerParent, Range, merge_method
from merge_core.task_vectors import task_vectors


def refusal(
    models: tuple[str, ...], *, density: PerParent, epsilon: PerParent, **_: object
) -> str | None:
    """Why elements can't be kept with these probabilities: one lies outside 0 to 1."""
    for model, middle, most in zip(models, density, epsilon, strict=True):
        low, high = middle - abs(most), middle + abs(most)
        if 0 < middle < 1 and not (low > 0 and high < 1):
            return (
                f"density {middle:g} and epsilon {most:g} of model '{model}' keep elements with "
                f"probabilities from {low:g} to {high:g}, which must lie between 0 and 1; "
                "change one, or set density: 1 to keep all"
            )
    return None


@merge_method(
    title="DELLA", reference="https://arxiv.org/abs/2406.11617", base=Base.REQUIRED, check=refusal
)
def della(
    group: TensorGroup,
    *,
    weight: Annotated[PerParent, Range(0.0, 1.5)],
    density: Annotated[PerParent, Range(0.2, 0.8), SHARE, Default(1.0)],
    epsilon: Annotated[PerParent, Range(0.01, 0.19), Default(0.15)],
    normalize: bool = True,
    rescale: bool = True,
    lambda_: Annotated[float, Range(0.1, 2.0)] = 1.0,
    int8_mask: bool = False,  # noqa: ARG001
) -> TaskVectors:
    """Keep elements with a probability that grows with their rank, then sum those that agree.

    In a row of n elements the one of rank r (1 for the smallest |delta|) is kept with probability
    density - epsilon + 2 epsilon (r-1)/(n-1); a row of one element with probability density, where
    mergekit fails. Rows lie along the last dimension. Masks are counter-based, as for `dare_ties`,
    nested in density, and a merge by mergekit is reproduced in distribution only. Ranks are exact;
    mergekit's are rounded to the inputs' dtype. As in mergekit, `rescale` matches L1 norms; the
    paper divides by the probability.

    Args:
        group: The parents' tensors and their base.
        weight: Factor of each task vector, `(parents,)`; it also weighs its vote on the sign.
        density: Mean probability that an element is kept, `(parents,)`; 1 keeps all, 0 none.
        epsilon: How far probabilities go from `density`, either way, `(parents,)`.
        normalize: Divide each element by the weights of the parents that agree there.
        rescale: Restore the L1 norm that dropping took.
        lambda_: Factor of the merged task vector.
        int8_mask: Read for mergekit's sake; it changes mergekit's memory use and no value.
    """
    return task_vectors(
        group,
        weight,
        ranks(group, density, epsilon),
        consensus=True,
        normalize=normalize,
        rescale=rescale,
        scale=lambda_,
    )


def ranks(group: TensorGroup, density: PerParent, epsilon: PerParent) -> list[Selection]:
    """Which elements DELLA keeps of each task vector, `(parents,)`."""
    return [_rank(group, i, d, e) for i, (d, e) in enumerate(zip(density, epsilon, strict=True))]


def _rank(group: TensorGroup, parent: int, density: float, epsilon: float) -> Selection:
    if density >= 1:
        return None
    if density <= 0:
        return Nothing()
    return group.ranked(parent, density, epsilon)
