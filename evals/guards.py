"""Cheap looks at a candidate before anything expensive: a broken model must not get a score.

A model of NaNs would still answer: argmax over NaN is the first option, right in a quarter of all
four-option items.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

_EXPLODED = 10.0  # times the largest norm that a parent's tensor of that name has
_VANISHED = 1e-3  # times the smallest


@dataclass(frozen=True, slots=True)
class Range:
    """The least and the largest norm that a tensor has among the parents."""

    low: float
    high: float


def health(
    model: torch.nn.Module,
    slots: Mapping[str, torch.Tensor],
    tokens: Sequence[int],
    parents: Mapping[str, Range] | None = None,
) -> str | None:
    """Look for numbers that are none or out of all proportion, and pass a few tokens through.

    Args:
        model: A causal language model.
        slots: Its tensors by name; those that were looked at before may be left out.
        tokens: A short real prompt.
        parents: The parents' norms by tensor, if they are known yet.

    Returns:
        What is wrong, or None.
    """
    for name, tensor in slots.items():
        if tensor.is_floating_point() and (reason := _judge(name, tensor, parents or {})):
            return reason
    return _smoke(model, tokens)


def norm(tensor: torch.Tensor) -> float:
    """A tensor's Euclidean norm to 1% at least, in one pass; finite only if every element is."""
    # torch adds up in float32 whatever is stored; only a float16 result could overflow. Asking for
    # a float32 result of bfloat16 takes four times as long (64 against 15 ms for 265 MB).
    wide = torch.float32 if tensor.dtype is torch.float16 else None
    return float(torch.linalg.vector_norm(tensor, dtype=wide))  # pyright: ignore


def ranges(norms: Iterable[Mapping[str, float]]) -> dict[str, Range]:
    """From the parents' norms by tensor to their ranges."""
    found: dict[str, Range] = {}
    for parent in norms:
        for name, value in parent.items():
            known = found.get(name, Range(value, value))
            found[name] = Range(min(known.low, value), max(known.high, value))
    return found


def union(ranges: Iterable[Range]) -> Range | None:
    """The range that holds all of these; None if there are none."""
    found = list(ranges)
    if not found:
        return None
    return Range(min(one.low for one in found), max(one.high for one in found))


def disproportion(
    norms: Mapping[str, float], known: Mapping[str, Range], whose: str = "parent"
) -> str | None:
    """The first tensor whose norm is out of all proportion, or None.

    Args:
        norms: By tensor.
        known: What is normal, by tensor; a tensor that isn't there is not judged.
        whose: What the models are called that were measured.
    """
    found = (
        _beyond(name, value, known[name], whose) for name, value in norms.items() if name in known
    )
    return next((reason for reason in found if reason), None)


def disagreement(model: Any, tokenizer: Any) -> str | None:
    """Where configuration, tensors and tokenizer disagree about the vocabulary, or None.

    A token without an embedding ends an evaluation on an accelerator with an unreadable error, and
    on some not at all.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    stated = int(getattr(model.config.get_text_config(), "vocab_size", rows))
    head = model.get_output_embeddings()
    columns = rows if head is None else int(head.weight.shape[0])
    if not stated == rows == columns:
        return (
            f"the configuration states a vocabulary of {stated}, the embeddings have {rows} rows "
            f"and the head {columns}; give parents that agree, or a 'tokenizer' in the recipe"
        )
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= rows:
        return (
            f"the tokenizer has a token {largest}, but the embeddings have {rows} rows; give the "
            "model the tokenizer that it was trained with"
        )
    return None


def _judge(name: str, tensor: torch.Tensor, parents: Mapping[str, Range]) -> str | None:
    value = norm(tensor)
    if not math.isfinite(value):
        broken = not torch.isfinite(tensor).all()
        return f"tensor '{name}' " + ("holds NaN or infinity" if broken else "has no finite norm")
    known = parents.get(name)
    return None if known is None else _beyond(name, value, known, "parent")


def _beyond(name: str, value: float, known: Range, whose: str) -> str | None:
    if value > _EXPLODED * known.high > 0:
        told = f"tensor '{name}' exploded: its norm is {value:.3g}"
        return f"{told}, of no {whose} above {known.high:.3g}"
    if value < _VANISHED * known.low:
        told = f"tensor '{name}' vanished: its norm is {value:.3g}"
        return f"{told}, of no {whose} below {known.low:.3g}"
    return None


def _smoke(model: torch.nn.Module, tokens: Sequence[int]) -> str | None:
    with torch.inference_mode():
        device = next(model.parameters()).device
        logits = model(torch.tensor([list(tokens)], device=device)).logits[0].float()
    if not torch.isfinite(logits).all():
        return "its logits are NaN or infinite"
    if logits.shape[-1] > 1 and float(logits.amax() - logits.amin()) == 0.0:
        return "its logits are all the same, whatever the token"
    return None
