"""Model Stock: as far from the base as the parents agree (arXiv:2403.19522; mergekit 0.1.5)."""

import numpy as np

from merge_core.combination import Combination
from merge_core.geometry import TensorGroup
from merge_core.registry import Base, merge_method
from merge_core.rowwise import line_grams, rowwise
from merge_core.task_vectors import summed


@merge_method(
    title="Model Stock",
    reference="https://arxiv.org/abs/2403.19522",
    base=Base.REQUIRED,
    inputs=(2, None),
)
def model_stock(group: TensorGroup, *, filter_wise: bool = False) -> Combination:
    """Base + t mean(x_i - base), with t = N cos θ / (1 + (N-1) cos θ).

    cos θ is the mean cosine over pairs of the N task vectors. t is 0 where the denominator is
    below 1e-6, and a task vector of zeros has cosine 0 with all others. mergekit divides by
    max(|a| |b|, 1e-6), which pulls small tensors to the base (two equal task vectors of 16
    elements of 1e-4 get t = 0.28 instead of 1); here cosines are exact unless `group.compat`.

    Args:
        group: The parents' tensors and their base.
        filter_wise: One t for each row (vector along the last dimension) instead of each tensor.
    """
    if filter_wise:
        shares = _shares(line_grams(group), group.compat)
        return rowwise(group, np.repeat(shares[:, None], group.parents, axis=1))
    share = group.once(("model_stock", group.compat), lambda: _share(group))
    return summed(group, (share,) * group.parents)


def _share(group: TensorGroup) -> float:
    return float(_shares(np.array(group.gram())[None], group.compat)[0])


def _shares(grams: np.ndarray, compat: bool) -> np.ndarray:
    """Share t / N of each line, `(lines,)`, from `(lines, N, N)`."""
    count = grams.shape[1]
    with np.errstate(invalid="ignore", over="ignore"):  # infinite parents: NaN is the answer
        norms = np.sqrt(grams.diagonal(axis1=1, axis2=2))
        products = norms[:, :, None] * norms[:, None, :]
        if compat:
            products = products.clip(min=1e-6)
        cosines = np.divide(grams, products, where=products != 0, out=np.zeros_like(grams))
        cosine = cosines.clip(-1, 1)[:, *np.triu_indices(count, 1)].mean(1)
        whole = 1 + (count - 1) * cosine
        return np.divide(cosine, whole, where=~(whole < 1e-6), out=np.zeros_like(cosine))
