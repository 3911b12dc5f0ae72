"""DARE with sign consensus (arXiv:2311.03099, 2306.01708; mergekit 0.1.5 `dare_ties`)."""

from typing import Annotated, Literal

from merge_core.combination import TaskVectors
from merge_core.geometry import TensorGroup
from merge_core.registry import SHARE, Base, Default, PerParent, Range, merge_method
from merge_core.task_vectors import task_vectors


@merge_method(title="DARE TIES", reference="https://arxiv.org/abs/2311.03099", base=Base.REQUIRED)
def dare_ties(
    group: TensorGroup,
    *,
    weight: Annotated[PerParent, Range(0.0, 1.5)],
    density: Annotated[PerParent, Range(0.05, 1.0), SHARE, Default(1.0)],
    normalize: bool = False,
    rescale: bool = True,
    lambda_: Annotated[float, Range(0.1, 2.0)] = 1.0,
    int8_mask: bool = False,  # noqa: ARG001
    rescaling: Literal["norm", "density"] = "norm",
) -> TaskVectors:
    """Keep elements with probability `density`, then sum those that agree on the sign.

    The masks are counter-based: the same seed gives the same mask on every machine, nested in
    density, which counts in steps of 1/4096. mergekit draws its own, so it reproduces such a merge
    in distribution only. It always restores the norm; the paper divides by the density.

    Args:
        group: The parents' tensors and their base.
        weight: Factor of each task vector, `(parents,)`.
        density: Probability that an element is kept, `(parents,)`.
        normalize: Divide by the weights that took part.
        rescale: Make up for what dropping took, as `rescaling` says.
        lambda_: Factor of the merged task vector.
        int8_mask: Read for mergekit's sake; it changes mergekit's memory use and no value.
        rescaling: "norm" restores the L1 norm, as mergekit does; "density" divides by the
            density, as in the paper, which needs no look at the values.
    """
    selections = [group.random(parent, share) for parent, share in enumerate(density)]
    return task_vectors(
        group,
        weight,
        selections,
        consensus=True,
        normalize=normalize,
        rescale=rescale,
        scale=lambda_,
        rescaling=rescaling,
    )
