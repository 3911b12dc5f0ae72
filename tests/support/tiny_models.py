"""Tiny causal language models of several families, written as real model folders."""

import string
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

VOCABULARY = 104
FAMILIES = ("llama", "llama_tied", "qwen2", "gpt_neox", "gpt2")


def tiny_config(family: str, layers: int = 3):
    """A two-digit-width configuration of a family: GQA, biases, tied and untied heads."""
    common = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    match family:
        case "llama" | "llama_tied":
            return LlamaConfig(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=128,
                tie_word_embeddings=family == "llama_tied",
                **common,
            )
        case "qwen2":
            return Qwen2Config(
                hidden_size=32,
                intermediate_size=40,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=1,
                max_position_embeddings=128,
                tie_word_embeddings=True,
                **common,
            )
        case "gpt_neox":
            return GPTNeoXConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=layers,
                num_attention_heads=4,
                max_position_embeddings=128,
                **common,
            )
        case "gpt2":
            return GPT2Config(n_embd=32, n_layer=layers, n_head=4, n_positions=128, **common)
    raise ValueError(family)


def write_model(
    folder: Path,
    family: str = "llama",
    seed: int = 0,
    *,
    near: Path | None = None,
    spread: float = 0.02,
    layers: int = 3,
    dtype: torch.dtype = torch.float32,
    shard: str = "5GB",
) -> Path:
    """Write a model with random weights, or with those of `near` plus noise (a fine-tune)."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(family, layers))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases differ between fine-tunes too
                parameter.add_(torch.randn_like(parameter) * 0.05)
        if near is not None:
            base = AutoModelForCausalLM.from_pretrained(near, dtype=torch.float32)
            for mine, theirs in zip(model.parameters(), base.parameters(), strict=True):
                mine.copy_(theirs + spread * torch.randn_like(theirs))
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    tokenizer().save_pretrained(folder)
    return folder


def write_family(folder: Path, family: str = "llama", experts: int = 2, **options) -> Path:
    """Write `folder/base` and fine-tunes `folder/a`, `folder/b`, …"""
    base = write_model(folder / "base", family, **options)
    for number in range(experts):
        name = string.ascii_lowercase[number]
        write_model(folder / name, family, seed=number + 1, near=base, **options)
    return folder


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per character, with a beginning-of-sequence token."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "\n": 4}
    for character in string.printable[:95]:
        vocabulary.setdefault(character, len(vocabulary))
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    characters.decoder = decoders.Fuse()
    characters.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=characters,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
