"""Loads models and tokenizers; the one place that touches the untyped part of transformers."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging

_untyped: Any = transformers
logging.disable_progress_bar()


def load_model(folder: Path, dtype: torch.dtype, gguf_file: str | None = None) -> Any:
    """Returns the causal language model of a folder, or of one GGUF file in it."""
    return _untyped.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, gguf_file=gguf_file)


def load_tokenizer(folder: Path, gguf_file: str | None = None) -> Any:
    """Returns the tokenizer of a folder, or of one GGUF file in it."""
    return _untyped.AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file)
