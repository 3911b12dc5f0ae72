"""Tiny LoRA adapters, written as peft writes them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

PREFIX = "base_model.model."


def write_adapter(
    folder: Path, tensors: Mapping[str, torch.Tensor], **config: Any
) -> dict[str, torch.Tensor]:
    """Write an adapter; names are the model's, with `.lora_A.weight` and the like behind them."""
    folder.mkdir(parents=True, exist_ok=True)
    stated = {"peft_type": "LORA", "lora_alpha": 8, "r": 4, "fan_in_fan_out": False} | config
    (folder / "adapter_config.json").write_text(json.dumps(stated))
    stored = {PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(stored, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return stored


def low_rank(
    model: Path, modules: list[str], rank: int = 4, seed: int = 0, transposed: bool = False
) -> dict[str, torch.Tensor]:
    """Random A and B that fit some of a model's modules."""
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(model / "model.safetensors")
    made = {}
    for module in modules:
        out, into = weights[f"{module}.weight"].shape[:: -1 if transposed else 1]
        made[f"{module}.lora_A.weight"] = torch.randn(rank, into, generator=generator) * 0.1
        made[f"{module}.lora_B.weight"] = torch.randn(out, rank, generator=generator) * 0.1
    return made
