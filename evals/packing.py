"""Stored tensors as views into the live tensor that transformers packs them into.

A mixture of experts stores each expert's matrices apart and computes with one tensor that holds
them all. transformers states how it packs them as a list of operations; undone one by one, they
lead from the packed tensor to the piece of it that each stored tensor fills.
"""

from collections.abc import Mapping, Sequence

import torch
import transformers.core_model_loading as loading

from evals.errors import EvaluationError


def unpack(
    packed: torch.Tensor, rule: loading.WeightConverter, names: Mapping[str, Sequence[str]]
) -> dict[str, torch.Tensor]:
    """The piece of a packed tensor for each stored tensor.

    Args:
        packed: The live tensor, `(experts, 2 * intermediate, hidden)` for one.
        rule: How transformers packs it.
        names: The stored tensors by the rule's pattern that they match.

    Returns:
        Contiguous views by name; writing them all writes the packed tensor.

    Raises:
        EvaluationError: If the pieces aren't views, or are not as many as the names.
    """
    operations: Sequence[object] = rule.operations
    wanted = [names[p] for p in rule.source_patterns if p in names]
    match operations:
        case [loading.MergeModulelist() as merge]:
            pieces = [list(packed.unbind(merge.dim))]
        case [loading.MergeModulelist() as merge, loading.Concatenate() as join]:
            parts = packed.chunk(len(wanted), join.dim)
            pieces = [list(part.unbind(merge.dim)) for part in parts]
        case _:  # a Concatenate alone may join tensors of several sizes, which names don't tell
            how = ", ".join(type(operation).__name__ for operation in operations)
            raise _refusal(wanted, f"a packing ({how}) whose parts can't be written in place")
    return _paired(wanted, pieces)


def _paired(
    wanted: Sequence[Sequence[str]], pieces: Sequence[Sequence[torch.Tensor]]
) -> dict[str, torch.Tensor]:
    views: dict[str, torch.Tensor] = {}
    for names, parts in zip(wanted, pieces, strict=True):
        if len(names) != len(parts):
            raise _refusal(wanted, f"{len(parts)} parts, but the checkpoint has {len(names)}")
        ordered = sorted(names, key=loading.dot_natural_key)  # pyright: ignore
        views |= dict(zip(ordered, parts, strict=True))
    if any(not view.is_contiguous() for view in views.values()):
        raise _refusal(wanted, "a packing that interleaves them, so none can be written in place")
    return views


def _refusal(wanted: Sequence[Sequence[str]], what: str) -> EvaluationError:
    first = next((name for names in wanted for name in names), "?")
    return EvaluationError(
        f"tensor '{first}' is packed with others in the live model: {what}; merge such models with "
        "'outcross merge', which needs no live model"
    )
