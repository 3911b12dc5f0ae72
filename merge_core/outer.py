"""Tensors outside the layers: which ones the output has, and what each parent calls them.

A model that ties its head stores none: its embeddings take the head's place where another parent
has one of its own, and the output is then untied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from merge_core.checkpoint import Checkpoint, TensorSpec
from merge_core.errors import RecipeError
from merge_core.naming import role


@dataclass(frozen=True, slots=True)
class Outer:
    """The outer tensors of one merge.

    Attributes:
        names: What the output stores, in name order, in the donor's names.
        untied: Whether parents with and without a head of their own meet.
    """

    names: tuple[str, ...]
    untied: bool


def outer_tensors(donor: Checkpoint, parents: Sequence[Checkpoint]) -> Outer:
    """Which tensors outside the layers a merge writes.

    Raises:
        RecipeError: If a parent has a tensor that the donor lacks and that is no head, or if
            tied and untied heads meet in a family whose scaling depends on it.
    """
    names = dict.fromkeys(donor.layers[None])
    heads = {head: parent for parent in parents if (head := stored_head(parent)) is not None}
    tied = [parent for parent in parents if parent.ties_embeddings]
    mixed = 0 < len(tied) < len(parents)
    if mixed:
        check_scaling(tied[0], next(parent for parent in parents if parent not in tied))
        names |= dict.fromkeys(heads)
    elif tied and len({stored_head(parent) for parent in parents}) > 1:
        names = {name: None for name in names if name not in heads}  # copies of the embeddings
    for parent in parents:
        for name in parent.layers[None]:
            if name not in heads and own_name(parent, donor, name) not in names:
                raise RecipeError(
                    f"tensor '{name}': model '{parent.name}' has it but '{donor.name}' does not; "
                    "save both from the same class of transformers"
                )
    return Outer(tuple(sorted(names)), mixed)


def find_outer(parent: Checkpoint, donor: Checkpoint, name: str) -> TensorSpec:
    """A parent's tensor for an outer tensor of the output: its own, or its embeddings as head.

    Args:
        parent: Where to look.
        donor: In whose names the output is written.
        name: The output tensor.

    Raises:
        RecipeError: If it has neither.
    """
    if (found := seek_outer(parent, donor, name)) is not None:
        return found
    raise RecipeError(
        f"tensor '{name}': model '{parent.name}' does not have it but '{donor.name}' does; save "
        "both from the same class of transformers"
    )


def seek_outer(parent: Checkpoint, donor: Checkpoint, name: str) -> TensorSpec | None:
    """As `find_outer`, but None if the parent has neither."""
    mine = own_name(donor, parent, name)
    if mine in parent.tensors:
        return parent.tensors[mine]
    head = role(name) == "head" and name.endswith("weight") and parent.ties_embeddings
    return embedding(parent) if head else None


def own_name(one: Checkpoint, other: Checkpoint, name: str) -> str:
    """What the other model calls an outer tensor of the first: a bare model has no prefix."""
    if name in other.tensors:
        return name
    theirs, mine = other.layout.stacks[0].prefix, one.layout.stacks[0].prefix
    if mine.endswith(theirs):
        return name.removeprefix(mine.removesuffix(theirs))
    return theirs.removesuffix(mine) + name


def untie(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a model whose head is a tensor of its own."""
    changed: dict[str, Any] = {**config, "tie_word_embeddings": False}
    for name, part in config.items():
        if isinstance(part, Mapping) and "tie_word_embeddings" in part:
            changed[name] = {**cast("Mapping[str, Any]", part), "tie_word_embeddings": False}
    return changed


def stored_head(parent: Checkpoint) -> str | None:
    """The stored matrix that turns states into logits: as large as the embeddings."""
    own = embedding(parent)
    shape = None if own is None else own.shape
    heads = (
        name
        for name in parent.layers[None]
        if role(name) == "head" and name.endswith("weight") and parent.tensors[name].shape == shape
    )
    return next(heads, None)


def embedding(parent: Checkpoint) -> TensorSpec | None:
    """The matrix with one row for each token: of the embeddings, that with most rows."""
    found = [
        parent.tensors[name]
        for name in parent.layers[None]
        if role(name) == "embedding"
        and len(parent.tensors[name].shape) == 2
        and not any(word in name for word in ("position", "wpe", "type", "segment"))
    ]
    rows = max((spec.shape[0] for spec in found), default=0)
    largest = [spec for spec in found if spec.shape[0] == rows]
    return largest[0] if largest else None


def check_scaling(tied: Checkpoint, untied: Checkpoint) -> None:
    """T5 divides its logits by the root of its width where the head is tied.

    Raises:
        RecipeError: If the two can't meet.
    """
    if tied.config.get("is_encoder_decoder"):
        raise RecipeError(
            f"model '{tied.name}' ties its head to its embeddings but '{untied.name}' does not, "
            "and encoder-decoders scale the two differently; leave one of them out"
        )
