"""Log-likelihood requests of every shape, as token windows over the tiny vocabulary."""

import random

import torch
from lm_eval.models.huggingface import HFLM
from tiny_models import tiny_config, tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from evals.prefixes import Window


def lively(family: str, seed: int = 0) -> PreTrainedModel:
    """A tiny model whose next tokens are far from equally likely."""
    torch.manual_seed(seed)
    return sharpen(AutoModelForCausalLM.from_config(tiny_config(family)).eval())


@torch.no_grad()
def sharpen(model: PreTrainedModel) -> PreTrainedModel:
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(4)
    return model


def hflm(model: PreTrainedModel, **options: object) -> HFLM:
    """lm-eval's model around it."""
    usual = {"tokenizer": tokenizer(), "batch_size": 8, "softmax_dtype": "float32"}
    return HFLM(pretrained=model, **(usual | options))


def draw(seed: int = 0) -> dict[str, list[Window]]:
    """Requests by kind."""
    generator = random.Random(seed)

    def ids(low: int, high: int | None = None) -> list[int]:
        count = generator.randint(low, high or low)
        return [generator.randrange(5, 100) for _ in range(count)]

    header, other = [1, *ids(60)], [1, *ids(50)]
    shared = [header + ids(5, 15) for _ in range(6)] + [other + ids(5, 15) for _ in range(4)]
    alone = [ids(15, 30) for _ in range(5)]
    duplicated = [(alone[0], [7, 8]), (alone[0], [7, 8]), (alone[0], [7, 8, 9])]
    return {
        "options": [(context, ids(2, 6)) for context in shared + alone for _ in range(4)],
        "letters": [(c, [letter]) for c in shared + alone for letter in (40, 41, 42, 43)],
        "rolling": [([1], ids(60)) for _ in range(3)] + [(ids(1), ids(3, 20)) for _ in range(3)],
        "truncated": [(ids(150, 200), ids(3)) for _ in range(3)] + [(header + ids(80), ids(4))],
        "duplicates": [*duplicated, ([3], [7]), ([3], [7])],
    }


@torch.inference_mode()
def greedy(model: PreTrainedModel, contexts: list[list[int]], tokens: int = 4) -> list[Window]:
    """The continuations that the model itself would write."""
    found: list[Window] = []
    for context in contexts:
        written: list[int] = []
        for _ in range(tokens):
            logits = model(torch.tensor([context + written])).logits[0, -1]
            written.append(int(logits.argmax()))
        found.append((context, written))
    return found
