"""Cheap looks at a candidate before anything expensive: a broken model must not get a score.

A model of NaNs would still answer: argmax over NaN is the first option, right in a quarter of all
four-option items.
"""

from collections.abc import Mapping, Sequence

import torch


def health(
    model: torch.nn.Module, slots: Mapping[str, torch.Tensor], tokens: Sequence[int]
) -> str | None:
    """Look for numbers that are none, in the weights and in one forward pass.

    Args:
        model: A causal language model.
        slots: Its tensors by name.
        tokens: A short real prompt.

    Returns:
        What is wrong, or None.
    """
    for name, tensor in slots.items():
        # A sum is one pass without temporaries, and is finite only if every element is.
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum(dtype=torch.float32)):
            return f"tensor '{name}' holds NaN or infinity"
    with torch.inference_mode():
        device = next(model.parameters()).device
        logits = model(torch.tensor([list(tokens)], device=device)).logits
    if not torch.isfinite(logits[0, -1].float().sum()):
        return "its logits are NaN or infinite"
    return None
