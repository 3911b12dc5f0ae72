"""Tiny models whose vocabularies differ: `base` has 100 tokens, fine-tunes have some more."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tiny_models import tokenizer, write_model
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

BASE_TOKENS = 100


def write_speaker(
    folder: Path,
    tokens: Sequence[str] = (),
    *,
    rows: int | None = None,
    seed: int = 0,
    family: str = "llama",
    template: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a model with some more special tokens; `rows` is the length of its matrices."""
    write_model(folder, family, seed, dtype=dtype)
    speaker = tokenizer()
    speaker.add_tokens([AddedToken(token, special=True) for token in tokens])
    speaker.chat_template = template
    speaker.save_pretrained(folder)
    resize(folder, rows or len(speaker), seed)
    return folder


def resize(folder: Path, rows: int, seed: int = 0) -> None:
    """Give a model's vocabulary tensors another length; new rows are random."""
    generator = torch.Generator().manual_seed(seed)
    file = folder / "model.safetensors"
    weights = load_file(file)
    for name, tensor in weights.items():
        if any(
            part in name for part in ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out")
        ):
            more = torch.randn(rows, tensor.shape[1], generator=generator).to(tensor.dtype)
            more[: tensor.shape[0]] = tensor[:rows]
            weights[name] = more
    save_file(weights, file, metadata={"format": "pt"})
    config = folder / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"vocab_size": 104', f'"vocab_size": {rows}'))


def trio(folder: Path, family: str = "llama", **options) -> Path:
    """`base` (100 tokens), `a` (two more) and `b` (three more, one of them a's)."""
    write_speaker(folder / "base", seed=0, family=family, **options)
    write_speaker(folder / "a", ["<|start|>", "<|end|>"], seed=1, family=family, **options)
    write_speaker(
        folder / "b", ["<|tool|>", "<|end|>", "<|more|>"], seed=2, family=family, **options
    )
    return folder


def speaker_of(folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(folder)
