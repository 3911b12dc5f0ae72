"""Fine-tunes one sibling on the CPU: all weights but the embeddings, loss on the answer only.

Run as `python -m studies.smollm2.finetune BASE EXAMPLES OUT STEPS BATCH RATE SEED`.
"""

import json
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studies.smollm2.loading import load_model, load_tokenizer


@dataclass(frozen=True, slots=True)
class Tuning:
    """A budget in optimizer steps, so that a slow machine makes the same sibling as a fast one.

    Attributes:
        steps: optimizer steps.
        batch: examples per step.
        rate: highest learning rate of AdamW, reached after a tenth of the steps.
        seed: order of the examples.
    """

    steps: int
    batch: int
    rate: float
    seed: int


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a question and of its answer."""

    query: tuple[int, ...]
    answer: tuple[int, ...]


def fine_tune(base: Path, examples: Path, out: Path, tuning: Tuning) -> None:
    """Writes the sibling (bfloat16 safetensors and tokenizer) to the folder `out`."""
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(base)
    # The masters are fp32: steps of this size would vanish in the rounding of bfloat16.
    model = load_model(base, torch.float32)
    model.get_input_embeddings().requires_grad_(False)
    train(model.train(), read_examples(examples, tokenizer), tuning, examples.name)
    model.eval().to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def read_examples(path: Path, tokenizer: Any) -> tuple[Example, ...]:
    """Reads JSON lines of `query` and `answer`; a space stands between them, as in the tasks."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return tuple(
        Example(tuple(tokenizer(row["query"])["input_ids"]), _answer_ids(row["answer"], tokenizer))
        for row in rows
    )


def train(model: Any, examples: Sequence[Example], tuning: Tuning, label: str) -> None:
    """Takes the steps of `tuning`; prints the loss now and then."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer: Any = torch.optim.AdamW(weights, lr=tuning.rate, betas=(0.9, 0.98), weight_decay=0.0)
    for step, batch in enumerate(batches(examples, tuning)):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, tuning)
        loss: Any = answer_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 10 == 0:
            spent = f"{time.process_time():.0f} CPU-s"
            print(f"{label}: step {step + 1} loss {loss.item():.3f}, {spent}", flush=True)


def batches(examples: Sequence[Example], tuning: Tuning) -> Iterator[list[Example]]:
    """Yields one batch per step; the examples are shuffled anew whenever they run out."""
    rng = random.Random(tuning.seed)
    queue: list[Example] = []
    for _ in range(tuning.steps):
        if len(queue) < tuning.batch:
            queue = rng.sample(examples, len(examples))
        yield queue[: tuning.batch]
        del queue[: tuning.batch]


def rate_at(step: int, tuning: Tuning) -> float:
    """Returns the learning rate: linear warm-up over a tenth of the steps, then a half cosine."""
    warm = min(1.0, (step + 1) / max(1, tuning.steps // 10))
    return tuning.rate * warm * (0.5 + 0.5 * math.cos(math.pi * step / tuning.steps))


def answer_loss(model: Any, batch: Sequence[Example]) -> Tensor:
    """Returns the mean cross-entropy of the answer tokens, in nats.

    Only their positions go through the output head: with 49152 words it costs as much as the
    layers.
    """
    tokens, mask = _pad(batch)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=tokens, attention_mask=mask, use_cache=False)[0]
        before = [
            hidden[row, len(e.query) - 1 : len(e.query) + len(e.answer) - 1]
            for row, e in enumerate(batch)
        ]
        logits = model.lm_head(torch.cat(before))
    targets = torch.tensor([token for e in batch for token in e.answer])
    return torch.nn.functional.cross_entropy(logits.float(), targets)


def _pad(batch: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Returns token ids and attention mask, both (batch, longest), padded on the right."""
    rows = [torch.tensor(e.query + e.answer) for e in batch]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True), pad([torch.ones_like(row) for row in rows], True)


def _answer_ids(answer: str, tokenizer: Any) -> tuple[int, ...]:
    return tuple(tokenizer(f" {answer}", add_special_tokens=False)["input_ids"])


def _main(arguments: Sequence[str]) -> None:
    base, examples, out, steps, batch, rate, seed = arguments
    tuning = Tuning(int(steps), int(batch), float(rate), int(seed))
    fine_tune(Path(base), Path(examples), Path(out), tuning)


if __name__ == "__main__":
    _main(sys.argv[1:])
