"""Synthetic parents: a base and three fine-tunes of one shape, as real model folders."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

PARENTS = ("base", "a", "b", "c")
BASE_STD = 0.02
COMMON_STD = 6e-4  # of the task vectors, the part that all share
OWN_STD = 1e-3  # and each one's own, whose tails are heavier than a normal distribution's


@dataclass(frozen=True, slots=True)
class Size:
    """A Llama's shape, the head tied to the embeddings."""

    hidden: int
    inner: int
    layers: int
    vocabulary: int = 49152

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of its tensors."""
        wide, inner = self.hidden, self.inner
        yield "model.embed_tokens.weight", (self.vocabulary, wide)
        for layer in range(self.layers):
            start = f"model.layers.{layer}."
            yield f"{start}input_layernorm.weight", (wide,)
            yield f"{start}post_attention_layernorm.weight", (wide,)
            for name in "qkvo":
                yield f"{start}self_attn.{name}_proj.weight", (wide, wide)
            yield f"{start}mlp.gate_proj.weight", (inner, wide)
            yield f"{start}mlp.up_proj.weight", (inner, wide)
            yield f"{start}mlp.down_proj.weight", (wide, inner)
        yield "model.norm.weight", (wide,)

    def numel(self) -> int:
        """Number of parameters."""
        return sum(math.prod(shape) for _, shape in self.shapes())

    def config(self) -> dict[str, object]:
        """Its `config.json`."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // 64,
            "num_key_value_heads": self.hidden // 64,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
        }


SIZES = {"120m": Size(768, 2048, 12), "500m": Size(1536, 4096, 15)}


def write_parents(folder: Path, size: Size) -> dict[str, Path]:
    """Write the four models, unless they are there; returns their folders by alias."""
    folders = {name: folder / name for name in PARENTS}
    if all((path / "model.safetensors").is_file() for path in folders.values()):
        return folders
    models: dict[str, dict[str, torch.Tensor]] = {name: {} for name in PARENTS}
    generator = torch.Generator().manual_seed(0)
    for name, shape in size.shapes():
        for parent, tensor in _tensors(shape, generator).items():
            models[parent][name] = tensor
    for parent, tensors in models.items():
        folders[parent].mkdir(parents=True, exist_ok=True)
        (folders[parent] / "config.json").write_text(json.dumps(size.config()), "utf-8")
        save_file(tensors, folders[parent] / "model.safetensors", {"format": "pt"})
    return folders


def _tensors(shape: tuple[int, ...], generator: torch.Generator) -> dict[str, torch.Tensor]:
    def noise(std: float) -> torch.Tensor:
        return torch.randn(shape, generator=generator).mul_(std)

    base = noise(BASE_STD) if len(shape) > 1 else noise(0.05).add_(1)
    common = noise(COMMON_STD).add_(base)
    tunes = {
        name: noise(OWN_STD).mul_(1 + 0.5 * torch.rand(shape, generator=generator)).add_(common)
        for name in PARENTS[1:]
    }
    return {name: tensor.bfloat16() for name, tensor in ({"base": base} | tunes).items()}
