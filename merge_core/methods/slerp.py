"""Spherical interpolation of two models (Shoemake 1985; mergekit 0.1.5 `slerp`)."""

import math
from typing import Annotated

from merge_core.combination import Linear
from merge_core.geometry import TensorGroup
from merge_core.registry import Base, Range, merge_method

_COLLINEAR = 0.9995  # mergekit's: beyond this cosine, of either sign, interpolate linearly


@merge_method(
    title="SLERP",
    reference="https://doi.org/10.1145/325165.325242",
    base=Base.ENDPOINT,
    inputs=(2, 2),
)
def slerp(group: TensorGroup, *, t: Annotated[float, Range(0.0, 1.0)]) -> Linear:
    """[sin((1-t)θ) v0 + sin(tθ) v1] / sin θ, with θ the angle between the flattened tensors.

    v0 is the base model, whatever the order. The angle comes from the Gram matrix, so a search
    pays for it once; the rest is a linear combination.

    Args:
        group: The two parents' tensors, the base first.
        t: 0 gives the base, 1 the other.
    """
    (a, ab), (_, b) = group.gram()
    norms = [1.0 if norm <= 1e-8 else norm for norm in (math.sqrt(a), math.sqrt(b))]
    cosine = max(-1.0, min(1.0, ab / (norms[0] * norms[1])))
    if abs(cosine) > _COLLINEAR:
        return Linear((1 - t, t))
    angle = math.acos(cosine)
    return Linear(tuple(math.sin(part * angle) / math.sin(angle) for part in (1 - t, t)))
