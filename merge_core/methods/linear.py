"""Weighted average of models (model soups, arXiv:2203.05482; mergekit 0.1.5 `linear`)."""

from typing import Annotated

from merge_core.combination import Linear
from merge_core.errors import RecipeError
from merge_core.geometry import TensorGroup
from merge_core.registry import Base, PerParent, Range, merge_method


@merge_method(title="Linear", reference="https://arxiv.org/abs/2203.05482", base=Base.INPUT)
def linear(
    group: TensorGroup,
    *,
    weight: Annotated[PerParent, Range(0.0, 1.0)],
    normalize: bool = True,
) -> Linear:
    """sum_i w_i x_i, divided by sum_i w_i if `normalize`.

    A base model that is set is a parent like the others and needs a weight. mergekit writes NaN
    where the weights sum to zero; here that is an error.

    Args:
        group: The parents' tensors.
        weight: Share of each parent, `(parents,)`.
        normalize: Divide by the sum of the weights.

    Raises:
        RecipeError: If the weights sum to zero (below 1e-8) and are to be normalised.
    """
    total = sum(weight) if normalize else 1.0
    if abs(total) < 1e-8:
        raise RecipeError(
            f"tensor '{group.name}': the weights {list(weight)} sum to {total:g} and can't be "
            "normalised; change one or set normalize: false"
        )
    return Linear(tuple(w / total for w in weight))
