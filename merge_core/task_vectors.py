"""What the task-vector methods share: weigh, sparsify, agree on signs, add to the base.

The steps and their order are those of mergekit 0.1.5's generalized task arithmetic.
"""

from collections.abc import Sequence

from merge_core.combination import Selection, TaskVectors
from merge_core.geometry import TensorGroup


def task_vectors(
    group: TensorGroup,
    weight: Sequence[float],
    selections: Sequence[Selection],
    *,
    consensus: bool,
    normalize: bool,
    rescale: bool,
    scale: float,
) -> TaskVectors:
    """Assemble the combination of a task-vector method.

    Args:
        group: The parents' tensors and their base.
        weight: Factor of each task vector, `(parents,)`.
        selections: Which of its elements are kept, `(parents,)`.
        consensus: Keep only elements that agree with the sign of the weighted sum.
        normalize: Divide by the sum of the weights that took part.
        rescale: Restore each kept task vector's L1 norm to what it was before selection.
        scale: mergekit's lambda.
    """
    factors = [
        w * (group.rescale(parent, selection) if rescale else 1.0)
        for parent, (w, selection) in enumerate(zip(weight, selections, strict=True))
    ]
    return TaskVectors(
        tuple(weight), tuple(factors), tuple(selections), consensus, normalize, scale
    )
