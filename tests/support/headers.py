"""Parents that are headers only: nothing of them is on disk."""

from pathlib import Path

import torch

from merge_core.checkpoint import Checkpoint, TensorSpec
from merge_core.naming import find_layout

LAYER = {"attn.weight": (4, 4), "mlp.up.weight": (8, 4), "mlp.down.weight": (4, 8)}
OUTER = {"embed_tokens.weight": (10, 4), "norm.weight": (4,), "lm_head.weight": (10, 4)}


def checkpoint(
    name, layers=4, *, dtype=torch.float32, layer=LAYER, outer=OUTER, prefix="layers.", config=()
):
    """A parent that is headers only: nothing of it is on disk."""
    shapes = outer | {
        f"{prefix}{number}.{part}": shape
        for number in range(layers)
        for part, shape in layer.items()
    }
    specs = {tensor: TensorSpec(tensor, shapes[tensor], dtype, "-") for tensor in sorted(shapes)}
    stated = {"num_hidden_layers": layers, "model_type": "toy", "dtype": "float32"} | dict(config)
    stated = {key: value for key, value in stated.items() if value is not None}
    layout = find_layout(specs, stated, name)
    numbers = dict.fromkeys(layout.layer(tensor) for tensor in specs)
    by_layer = {n: tuple(t for t in specs if layout.layer(t) == n) for n in (None, *numbers)}
    return Checkpoint(name, Path("/nowhere"), stated, specs, layout, by_layer)


def linear():
    return {"merge_method": "linear", "models": ["a", "b"], "parameters": {"weight": 1}}


def ranged(**ranges):
    return [{"model": model, "layer_range": layers} for model, layers in ranges.items()]


def values(plan, parameter):
    return {step.out: dict(step.params)[parameter] for step in plan.steps}


T5 = {"num_layers": 2, "num_decoder_layers": 3, "num_hidden_layers": None}


def seq2seq(name, **more):
    """Headers of an encoder-decoder."""
    layers = {
        f"{stack}.block.{number}.{part}": shape
        for stack, depth in (("encoder", 2), ("decoder", 3))
        for number in range(depth)
        for part, shape in LAYER.items()
    }
    outer = {"shared.weight": (10, 4), "encoder.norm.weight": (4,), "decoder.norm.weight": (4,)}
    return checkpoint(name, 0, outer=outer | layers | {"lm_head.weight": (10, 4)}, config=T5 | more)
