"""Which models may share contexts: those whose attention is plain and takes positions and masks."""

import inspect
from collections.abc import Mapping
from typing import Any

from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

# Where frequencies depend on the length of what is in a batch.
_GROWING_ROPES = ("dynamic", "longrope", "su")


def refusal(lm: Any, longest: int) -> str | None:
    """Why a model has to be asked one request at a time, or None.

    What this lets through is still compared with the plain way before it is used.

    Args:
        lm: lm-eval's model.
        longest: Tokens of the longest request.
    """
    model = lm.model
    name = type(model).__name__
    config = model.config.get_text_config(decoder=True)
    if lm.backend != "causal" or model.config.is_encoder_decoder:
        return f"{name} has an encoder"
    if model.get_output_embeddings() is None:
        return f"{name} has no output embeddings to choose positions for"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return f"{name} takes no positions (its attention has a bias or a state of its own)"
    if getattr(config, "alibi", False):
        return f"{name} biases attention by distance (ALiBi)"
    if (way := config._attn_implementation) not in ("sdpa", "eager"):
        return f"{name}'s attention is '{way}', which takes no mask of ours"
    return _caching(name, config, longest) or _rope(name, config, longest)


def _caching(name: str, config: Any, longest: int) -> str | None:
    try:
        layers = DynamicCache(config=config).layers
    except Exception as error:  # a family of its own kind of cache
        return f"{name}: its cache is not a plain one ({type(error).__name__})"
    for layer in layers:
        if type(layer) is DynamicSlidingWindowLayer:
            if layer.sliding_window < longest:
                return (
                    f"{name} attends within a window of {layer.sliding_window} tokens, "
                    f"shorter than the longest request ({longest})"
                )
        elif type(layer) is not DynamicLayer:
            return f"{name} keeps a state that is no plain cache ({type(layer).__name__})"
    return None


def _rope(name: str, config: Any, longest: int) -> str | None:
    stated: Any = getattr(config, "rope_parameters", None) or {}
    # One for all layers, or one for each kind of layer.
    ropes: list[Any] = [stated, *(value for value in stated.values() if isinstance(value, Mapping))]
    for rope in ropes:
        if rope.get("rope_type") in _GROWING_ROPES:
            most = rope.get("original_max_position_embeddings") or config.max_position_embeddings
            if longest > most:
                return f"{name}'s rotary frequencies depend on the length of the batch"
    return None
