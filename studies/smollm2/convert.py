"""Turns the GGUF file of the package into a model folder that transformers and merge tools read."""

import copy
from pathlib import Path
from typing import Any

import torch

from studies.smollm2.loading import load_model, load_tokenizer


def convert(gguf: Path, out: Path) -> None:
    """Writes the de-quantized weights (bfloat16) and the tokenizer to the folder `out`."""
    tokenizer = load_tokenizer(gguf.parent, gguf.name)
    packed = load_model(gguf.parent, torch.float32, gguf.name)
    # transformers refuses to save a model that came from GGUF, so a fresh one takes its weights.
    config = copy.deepcopy(packed.config)
    del config.quantization_config
    model: Any = type(packed)(config)
    model.load_state_dict(packed.state_dict(), strict=True)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
