"""Spherical interpolation by weights, of models or task vectors (mergekit 0.1.5 `nuslerp`)."""

from typing import Annotated

import numpy as np

from merge_core.combination import Combination
from merge_core.geometry import TensorGroup
from merge_core.registry import Base, PerParent, Range, merge_method
from merge_core.rowwise import line_grams, rowwise
from merge_core.task_vectors import summed

_STRAIGHT = 1e-7  # of 1 - cos^2: what float32 can't tell from a straight line
_TINY = 1e-7  # mergekit's: norms below it count as it


@merge_method(
    title="NuSLERP",
    reference="https://github.com/arcee-ai/mergekit/blob/main/docs/merge_methods.md",
    base=Base.OPTIONAL,
    inputs=(2, 2),
)
def nuslerp(
    group: TensorGroup,
    *,
    weight: Annotated[PerParent, Range(0.0, 1.0)],
    nuslerp_flatten: bool = True,
    nuslerp_row_wise: bool = False,
) -> Combination:
    """[sin((1-t)θ) v0 + sin(tθ) v1] / sin θ, with t = w1 / (w0 + w1) and θ the angle of v0 and v1.

    v are the parents, or their task vectors where there is a base (which the result then starts
    from). As in mergekit, weights that sum to less than 1e-6 mean t = 0.5. Lines that are parallel
    or antipodal to float32's resolution (1 - cos² <= 1e-7) are interpolated straight; mergekit
    asks for 1e-16, so its sin θ of near antipodes is the rounding error of their cosine. It also
    computes in the inputs' dtype, which costs bfloat16 its angles; here arithmetic is float32 and
    angles are float64. SLERP: Shoemake 1985, doi:10.1145/325165.325242.

    Args:
        group: The two parents' tensors, and their base if any.
        weight: Share of each parent, `(2,)`.
        nuslerp_flatten: One angle for the whole tensor; else one for each vector along the last
            dimension.
        nuslerp_row_wise: Without flattening: vectors along dimension 0 instead. (mergekit's name;
            of a matrix these are its columns.)
    """
    total = sum(weight)
    t = 0.5 if abs(total) < 1e-6 else weight[1] / total
    if nuslerp_flatten:
        return summed(group, _coefficients(np.array(group.gram())[None], t)[0].tolist())
    grams = line_grams(group, nuslerp_row_wise)
    return rowwise(group, _coefficients(grams, t), nuslerp_row_wise)


def _coefficients(grams: np.ndarray, t: float) -> np.ndarray:
    """What each line's two vectors are multiplied with, `(lines, 2)`, from `(lines, 2, 2)`."""
    shares = np.array((1 - t, t))
    with np.errstate(invalid="ignore", over="ignore"):  # infinite parents: NaN is the answer
        norms = np.sqrt(grams.diagonal(axis1=1, axis2=2)).clip(min=_TINY)
        cosines = (grams[:, 0, 1] / norms.prod(1)).clip(-1, 1)
        straight = 1 - cosines**2 <= _STRAIGHT
        angles = np.where(straight, 1.0, np.arccos(cosines))[:, None]
        return np.where(straight[:, None], shares, np.sin(shares * angles) / np.sin(angles))
