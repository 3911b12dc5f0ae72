"""Run planned batches through a live causal language model, logits only where they are needed."""

import contextlib
from collections.abc import Generator, Sequence
from typing import Any, cast

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

from evals.activations import Activations
from evals.batches import Batch, Section
from evals.prefixes import Ids

# Bytes of log-probabilities at a time: what a core's cache holds, or keeps a GPU busy.
_TABLE = {"cpu": 4 << 20, "cuda": 64 << 20}


class _Recorded(DynamicLayer):
    """A header's keys and values in one layer; later passes see them and leave them as they are."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The header's states followed by a batch's own, which are not kept."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        assert self.keys is not None
        assert self.values is not None
        return _after(self.keys, key_states), _after(self.values, value_states)


def _after(header: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    return torch.cat([header.expand(own.shape[0], -1, -1, -1), own], dim=-2)


@torch.inference_mode()
def run_header(model: Any, header: torch.Tensor) -> Cache:
    """Compute a header's keys and values.

    Args:
        model: A causal language model.
        header: Token ids, `(1, header)`.
    """
    cache = Cache(layer_class_to_replicate=_Recorded)
    with _logits_at(model, torch.zeros(1, dtype=torch.int64, device=header.device)):
        model(input_ids=header, past_key_values=cache, use_cache=True)
    return cache


@torch.inference_mode()
def run_batch(
    model: Any, batch: Batch, header: Cache | None, seen: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of a batch's predicted tokens, and whether each is the likeliest.

    Args:
        model: A causal language model.
        batch: What to run.
        header: The keys and values of what stands before it.
        seen: How many tokens that is.

    Returns:
        Float32 log-probabilities in nats and booleans, both `(predictions,)`.
    """
    keywords: dict[str, Any] = {"use_cache": False}
    if batch.ends is not None:
        keywords["attention_mask"] = _mask(batch.ends, seen, model.dtype)
        keywords["position_ids"] = batch.positions
    if header is not None:
        keywords |= {"past_key_values": header, "use_cache": True}
    with _logits_at(model, batch.wanted):
        logits = model(input_ids=batch.tokens, **keywords).logits[0]
    return _judge(logits, batch)


def run(
    model: Any, sections: Sequence[Section], activations: Activations | None = None
) -> tuple[Ids, Any, Any]:
    """All batches' predictions, on the host: windows' numbers, log-probabilities, likeliest.

    Args:
        model: A causal language model.
        sections: What to run.
        activations: Hidden states of these very passes under the candidates before, if kept.
    """
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    number = 0  # of the section's first pass
    for section in sections:
        found += _run_section(model, section, activations, number)
        number += len(section.batches) + 1
    numbers = np.concatenate([b.numbers for section in sections for b in section.batches])
    # One copy to the host for all of them: a copy waits until the device has caught up.
    chances = torch.cat([chance for chance, _ in found]).cpu().double().numpy()
    greedy = torch.cat([likeliest for _, likeliest in found]).cpu().numpy()
    return numbers, chances, greedy


def _run_section(
    model: Any, section: Section, kept: Activations | None, number: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    def layers(at: int, skip: bool = True) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if kept is None else kept.layers(at, skip)

    header, seen = None, 0
    passes = range(number, number + len(section.batches) + 1)
    if section.header is not None:
        seen = section.header.shape[1]
        # Batches that start at the bottom need the header's keys and values from there on.
        with layers(number, kept is not None and kept.complete(passes)):
            header = run_header(model, section.header)
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for at, batch in zip(passes[1:], section.batches, strict=True):
        with layers(at):
            found.append(run_batch(model, batch, header, seen))
    return found


def _mask(ends: torch.Tensor, header: int, dtype: torch.dtype) -> torch.Tensor:
    """What is added to attention scores, `(rows, 1, width, header + width)`."""
    rows, width = ends.shape
    places = torch.arange(width, device=ends.device)
    seen = (places[:, None] >= places) & (places[:, None] < ends[:, None, :])
    mask = torch.zeros(rows, 1, width, header + width, dtype=dtype, device=ends.device)
    mask[:, 0, :, header:].masked_fill_(~seen, torch.finfo(dtype).min)
    return mask


@contextlib.contextmanager
def _logits_at(model: Any, wanted: torch.Tensor) -> Generator[None]:
    """Have the model's head see the wanted positions only, `(1, wanted, width)`.

    What a family does to its logits after the head (scales, soft caps) stays the family's own.
    """

    def choose(_head: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        return (inputs[0].flatten(0, 1).index_select(0, wanted)[None],)

    hook = model.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        yield
    finally:
        hook.remove()


def _judge(logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """In float32: bfloat16 rounds log-probabilities by up to half a nat and makes ties."""
    logits = logits.float()
    chosen, top = logits[batch.rows, batch.targets], logits.amax(dim=-1)
    # The likeliest token's log-probability is all that is needed of a row, so few rows have theirs
    # at a time. On a CPU torch's kernel for them takes half of what argmax, exp and sum do.
    table = _TABLE.get(logits.device.type, _TABLE["cuda"])
    rows = max(1, table // (4 * logits.shape[-1]))
    parts = cast("tuple[torch.Tensor, ...]", logits.split(rows))  # pyright: ignore[reportUnknownMemberType]
    likeliest = torch.cat([torch.log_softmax(part, dim=-1).amax(dim=-1) for part in parts])
    behind = chosen - top[batch.rows]
    return behind + likeliest[batch.rows], _greedy(logits, batch, behind == 0)


def _greedy(logits: torch.Tensor, batch: Batch, highest: torch.Tensor) -> torch.Tensor:
    """Which predicted tokens are the likeliest; the first of several that are equally likely."""
    if logits.device.type != "cpu":
        return logits.argmax(dim=-1)[batch.rows] == batch.targets
    candidates = cast("list[int]", highest.nonzero()[:, 0].tolist())  # pyright: ignore
    for at in candidates:  # argmax is slow on a CPU, and these are few
        highest[at] = logits[batch.rows[at]].argmax() == batch.targets[at]
    return highest
