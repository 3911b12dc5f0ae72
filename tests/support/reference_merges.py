"""The slow, obvious twin of `merge_core`: each method as its formula reads, whole tensors at once.

Formulas: arXiv:2203.05482 (linear), Shoemake 1985 (slerp), arXiv:2212.04089 (task arithmetic),
2306.01708 (TIES), 2311.03099 (DARE), with mergekit 0.1.5's order of steps. Averages are taken in
float64; task vectors in float32, so that signs and order of magnitudes are those of the fast path.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from merge_core.apply import run_steps
from merge_core.geometry import Geometry, TensorRef
from merge_core.plan import MergeStep
from merge_core.registry import Base, find_method

Tensors = Sequence[torch.Tensor]


def linear(parents: Tensors, weight: Sequence[float], normalize: bool = True) -> torch.Tensor:
    """sum w x / sum w."""
    total = sum(w * x.double() for w, x in zip(weight, parents, strict=True))
    return total / sum(weight) if normalize else total


def slerp(parents: Tensors, t: float) -> torch.Tensor:
    """Along the great circle from the first parent to the second; straight where they align."""
    a, b = (x.double() for x in parents)
    lengths = [n if (n := float(x.norm())) > 1e-8 else 1.0 for x in (a, b)]
    cosine = float((a / lengths[0] * (b / lengths[1])).sum())
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def passthrough(parents: Tensors, scale: Sequence[float] = (1.0,)) -> torch.Tensor:
    """One parent, scaled."""
    return parents[0].double() * scale[0]


def task_arithmetic(
    parents: Tensors,
    base: torch.Tensor,
    weight: Sequence[float],
    normalize: bool = False,
    lambda_: float = 1.0,
) -> torch.Tensor:
    """Base + lambda * sum w (x - base)."""
    keep_all = [torch.ones_like(x, dtype=torch.bool) for x in parents]
    return dare_linear(parents, base, weight, keep_all, normalize, rescale=False, lambda_=lambda_)


def ties(
    parents: Tensors,
    base: torch.Tensor,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool = True,
    rescale: bool = False,
    lambda_: float = 1.0,
) -> torch.Tensor:
    """Trim to the largest, elect signs, merge what agrees."""
    masks = [
        largest(x.float() - base.float(), share) for x, share in zip(parents, density, strict=True)
    ]
    return dare_ties(parents, base, weight, masks, normalize, rescale, lambda_)


def dare_linear(
    parents: Tensors,
    base: torch.Tensor,
    weight: Sequence[float],
    masks: Tensors,
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
) -> torch.Tensor:
    """Base + lambda * sum w * kept task vector, the masks given."""
    deltas = kept_deltas(parents, base, masks, rescale)
    mixed = sum(w * delta for w, delta in zip(weight, deltas, strict=True))
    if normalize and abs(sum(weight)) >= 1e-8:
        mixed = mixed / sum(weight)
    return base.float() + lambda_ * mixed


def dare_ties(
    parents: Tensors,
    base: torch.Tensor,
    weight: Sequence[float],
    masks: Tensors,
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
) -> torch.Tensor:
    """As `dare_linear`, of the elements that have the sign of the sum only (0 votes +)."""
    deltas = kept_deltas(parents, base, masks, rescale)
    votes = [w * delta for w, delta in zip(weight, deltas, strict=True)]
    elected = torch.where(sum(votes) >= 0, 1.0, -1.0)
    agrees = [(vote.sign() == elected).float() for vote in votes]
    mixed = sum(vote * agree for vote, agree in zip(votes, agrees, strict=True))
    if normalize:
        share = sum(w * agree for w, agree in zip(weight, agrees, strict=True))
        mixed = mixed / torch.where(share == 0, 1.0, share)
    return base.float() + lambda_ * mixed


def kept_deltas(parents: Tensors, base: torch.Tensor, masks: Tensors, rescale: bool) -> Tensors:
    """Task vectors without what the masks drop, their L1 norm restored if `rescale`."""
    deltas = []
    for parent, mask in zip(parents, masks, strict=True):
        delta = parent.float() - base.float()
        whole, rest = (float(x.abs().double().sum()) for x in (delta, delta * mask))
        restored = whole / rest if rescale and min(whole, rest) >= 1e-7 else 1.0
        deltas.append(delta * mask * restored)
    return deltas


def largest(delta: torch.Tensor, density: float) -> torch.Tensor:
    """Mask of the k = max(1, int(density * numel)) largest |delta|; the first among equals."""
    if density >= 1:
        return torch.ones_like(delta, dtype=torch.bool)
    mask = torch.zeros(delta.numel(), dtype=torch.bool)
    if density > 0:
        order = delta.flatten().abs().argsort(descending=True, stable=True)
        mask[order[: max(1, int(density * delta.numel()))]] = True
    return mask.view_as(delta)


class Memory:
    """Stands in for `Parents`: one tensor for each parent, from memory."""

    device = torch.device("cpu")

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def tensor(self, parent: str, name: str) -> torch.Tensor:  # noqa: ARG002
        return self.tensors[parent]


def fast_merge(
    method: str,
    parents: Tensors,
    base: torch.Tensor | None = None,
    *,
    seed: int = 0,
    rounding: torch.dtype | None = None,
    out_dtype: torch.dtype = torch.float32,
    **given: Any,
) -> torch.Tensor:
    """One tensor merged by `merge_core`, without files; one number stands for every parent's."""
    memory = Memory({str(i): tensor for i, tensor in enumerate(parents)} | {"base": base})
    step = MergeStep(
        "t",
        tuple(parents[0].shape),
        out_dtype,
        method,
        tuple(TensorRef(str(i), "t") for i in range(len(parents))),
        TensorRef("base", "t") if find_method(method).base is Base.REQUIRED else None,
        _params(method, len(parents), given),
        rounding,
        seed,
    )
    out = torch.full(step.shape, math.nan, dtype=out_dtype)
    run_steps([(step, out)], Geometry(memory))
    return out


def _params(method: str, parents: int, given: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    given = {name.rstrip("_"): value for name, value in given.items()}
    found = find_method(method)
    assert given.keys() <= {p.name for p in found.parameters}, f"{method} lacks one of {given}"
    params = []
    for parameter in found.parameters:
        value = given.get(parameter.name, parameter.default)
        assert value is not None, f"{method} needs {parameter.name}"
        if parameter.per_parent and not isinstance(value, tuple | list):
            value = (value,) * parents
        params.append((parameter.name, tuple(value) if parameter.per_parent else value))
    return tuple(params)
