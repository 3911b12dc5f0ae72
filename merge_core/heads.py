"""Tied and untied parents in one live model: a tied one gets a head, a copy of its embeddings.

A merge streams without it. But a live model, which holds all parents one after the other, has one
matrix or two; and where vocabularies differ, the two get other rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from merge_core.checkpoint import Checkpoint, Reader
from merge_core.outer import check_scaling, embedding, stored_head, untie


@dataclass(frozen=True, slots=True)
class CopiedHead:
    """The embeddings `name` of a model as its head."""

    of: Checkpoint
    name: str

    @property
    def files(self) -> tuple[Path, ...]:
        """What the embeddings depend on."""
        before = self.of.derived.get(self.name)
        return before.files if before else ()

    def build(self, reader: Reader) -> torch.Tensor:
        """The embeddings, whichever way they are made."""
        return reader.of(self.of, self.name)


def with_heads(checkpoints: Mapping[str, Checkpoint]) -> Mapping[str, Checkpoint]:
    """All models with a head of their own if any has one; else as they are.

    Raises:
        RecipeError: If tied and untied heads meet in a family whose scaling depends on it.
    """
    apart = next((model for model in checkpoints.values() if not model.ties_embeddings), None)
    head = stored_head(apart) if apart is not None else None
    if apart is None or head is None:
        return checkpoints
    return {
        alias: _with_head(model, apart, head) if model.ties_embeddings else model
        for alias, model in checkpoints.items()
    }


def _with_head(model: Checkpoint, apart: Checkpoint, head: str) -> Checkpoint:
    check_scaling(model, apart)
    if (own := embedding(model)) is None:
        return model
    spec = replace(own, name=head)
    return replace(
        model,
        config=untie(model.config),
        tensors=dict(sorted({**model.tensors, head: spec}.items())),
        layers={**model.layers, None: tuple(sorted({*model.layers[None], head}))},
        derived={**model.derived, head: CopiedHead(model, own.name)},
    )
