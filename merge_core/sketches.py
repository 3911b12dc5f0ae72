"""How far models lie apart, by role and depth, estimated from a sample of their tensors.

A few layers and some rows of each of their tensors are read, so it takes seconds whatever the size
of the models. Each sampled tensor stands for all of its elements, each sampled layer for those
around it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from merge_core.checkpoint import Checkpoint
from merge_core.parents import Parents
from merge_core.roles import tensor_role

_T = TypeVar("_T")
_LAYERS = 9  # three of each third
_TENSORS = 16  # of one role in one layer: a mixture of experts has hundreds
_ELEMENTS = 65_536  # of one tensor


@dataclass(frozen=True, slots=True, eq=False)
class Sketch:
    """Inner products of models' tensors, each tensor a part.

    Attributes:
        models: Aliases.
        roles: Role of each part; None where a tensor has none, `(parts,)`.
        depths: Of each part from 0 (first layer) to 1 (last); None outside layers, `(parts,)`.
        gram: Inner products of the first model and of the others' differences from it, float64,
            `(parts, models, models)`: differences, so that near models aren't lost in rounding.
    """

    models: tuple[str, ...]
    roles: tuple[str | None, ...]
    depths: tuple[float | None, ...]
    gram: np.ndarray

    def lengths(self, model: str) -> np.ndarray:
        """Squared norm of each part of a model, `(parts,)`."""
        return self._squared(self._place(model))

    def changes(self, model: str, base: str) -> np.ndarray:
        """Squared norm of each part of a model's difference from another, `(parts,)`."""
        return self._squared(self._place(model) - self._place(base))

    def distance(self, one: str, other: str) -> float:
        """Norm of the difference of two models."""
        return float(np.sqrt(self.changes(one, other).sum()))

    def cosine(self, one: str, other: str, base: str) -> float:
        """Of two models' task vectors; 0 where one of them is zero."""
        first, second = (self._place(model) - self._place(base) for model in (one, other))
        product = np.einsum("i,pij,j->", first, self.gram, second)
        norms = self.distance(one, base) * self.distance(other, base)
        return float(product / norms) if norms else 0.0

    def _place(self, model: str) -> np.ndarray:
        at = self.models.index(model)
        place = np.zeros(len(self.models))
        place[0] = place[at] = 1.0
        return place

    def _squared(self, place: np.ndarray) -> np.ndarray:
        return np.maximum(np.einsum("i,pij,j->p", place, self.gram, place), 0.0)


def sketch(checkpoints: Mapping[str, Checkpoint]) -> Sketch:
    """Read a sample of the tensors that all models have in one shape.

    Args:
        checkpoints: Models that fit each other, by alias.
    """
    parents = Parents(checkpoints, torch.device("cpu"))
    first, *others = checkpoints.values()
    parts = list(_parts(first, others))
    gram = np.zeros((len(parts), len(checkpoints), len(checkpoints)))
    for at, (name, worth) in enumerate(parts):
        gram[at] = worth * _products([parents.of(model, name) for model in (first, *others)])
    layers = [first.layout.layer(name) for name, _ in parts]
    last = max(first.layout.depth - 1, 1)
    roles = tuple(tensor_role(name, first.layout) for name, _ in parts)
    depths = tuple(None if layer is None else layer / last for layer in layers)
    return Sketch(tuple(checkpoints), roles, depths, gram)


def same_weights(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two models have the same tensors, element by element; stops at the first that isn't.

    Tensors that both take from one file, as two adapters of one model do, aren't read.
    """
    if one.tensors.keys() != other.tensors.keys():
        return False
    parents = Parents({"one": one, "other": other}, torch.device("cpu"))
    return all(
        torch.equal(parents.of(one, name), parents.of(other, name))
        for name in one.tensors
        if not _one_place(name, one, other)
    )


def _one_place(name: str, one: Checkpoint, other: Checkpoint) -> bool:
    stored = name not in one.derived and name not in other.derived
    return stored and one.folder == other.folder


def _parts(first: Checkpoint, others: Sequence[Checkpoint]) -> Iterator[tuple[str, float]]:
    """Names of the tensors to read, and for how many tensors each stands."""
    numbered = [layer for layer in first.layers if layer is not None]
    chosen = _spaced(sorted(numbered), _LAYERS)
    for layer in (None, *chosen):
        by_role: dict[str | None, list[str]] = {}
        for name in first.layers[layer]:
            if _common(name, first, others):
                by_role.setdefault(tensor_role(name, first.layout), []).append(name)
        for names in by_role.values():
            read = _spaced(names, _TENSORS)
            worth = len(names) / len(read)
            for name in read:
                yield name, worth if layer is None else worth * len(numbered) / len(chosen)


def _common(name: str, first: Checkpoint, others: Sequence[Checkpoint]) -> bool:
    spec = first.tensors[name]
    found = [other.tensors.get(name) for other in others]
    return spec.dtype.is_floating_point and all(o and o.shape == spec.shape for o in found)


def _spaced(values: Sequence[_T], most: int) -> list[_T]:
    """At most so many, evenly spaced, the first and the last among them."""
    places = np.linspace(0, len(values) - 1, min(len(values), most)).round().astype(int)
    return [values[at] for at in places]


def _products(tensors: Sequence[torch.Tensor]) -> np.ndarray:
    """Inner products of the first and the differences from it, for all elements of a tensor."""
    rows = [_rows(tensor).double().reshape(-1) for tensor in tensors]
    stack = torch.stack([rows[0], *(row - rows[0] for row in rows[1:])])
    scale = tensors[0].numel() / max(rows[0].numel(), 1)
    return scale * (stack @ stack.T).numpy()


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """Evenly spaced rows: of a mapped file only their pages are read."""
    step = -(-tensor.numel() // _ELEMENTS)
    return tensor if tensor.dim() == 0 else tensor[::step] if step > 1 else tensor
