"""Weighted average of models (model soups, arXiv:2203.05482; mergekit 0.1.5 `linear`)."""

from typing import Annotated

from merge_core.combination import Linear
from merge_core.geometry import TensorGroup
from merge_core.registry import Base, PerParent, Range, merge_method


def nothing_to_divide_by(models: tuple[str, ...], weight: PerParent, switch: str) -> str | None:
    """Why weights can't be divided by their sum: it is zero (below 1e-8)."""
    if abs(total := sum(weight)) >= 1e-8:
        return None
    return (
        f"the weights {list(weight)} of {', '.join(models)} sum to {total:g} and can't be "
        f"normalised; change one or set {switch}: false"
    )


def _refusal(models: tuple[str, ...], *, weight: PerParent, normalize: bool) -> str | None:
    return nothing_to_divide_by(models, weight, "normalize") if normalize else None


@merge_method(
    title="Linear",
    reference="https://arxiv.org/abs/2203.05482",
    base=Base.INPUT,
    check=_refusal,
)
def linear(
    group: TensorGroup,  # noqa: ARG001
    *,
    weight: Annotated[PerParent, Range(0.0, 1.0)],
    normalize: bool = True,
) -> Linear:
    """sum_i w_i x_i, divided by sum_i w_i if `normalize`.

    A base model that is set is a parent like the others and needs a weight. mergekit writes NaN
    where the weights sum to zero; here that is an error of the plan.

    Args:
        group: The parents' tensors.
        weight: Share of each parent, `(parents,)`.
        normalize: Divide by the sum of the weights.
    """
    total = sum(weight) if normalize else 1.0
    return Linear(tuple(w / total for w in weight))
