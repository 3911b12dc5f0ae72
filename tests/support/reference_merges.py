"""The slow, obvious twin of `merge_core`: each method as its formula reads, whole tensors at once.

Formulas: arXiv:2203.05482 (linear), Shoemake 1985 (slerp), arXiv:2212.04089 (task arithmetic),
2306.01708 (TIES), 2311.03099 (DARE), 2312.06795 (Model Breadcrumbs), 2406.11617 (DELLA), 2403.19522
(Model Stock) and mergekit 0.1.5 (nuslerp, multislerp, karcher, the order of steps). Averages are
taken in float64; task vectors in float32, so that signs and order of magnitudes are those of the
fast path.
"""

import itertools
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


def nuslerp(
    parents: Tensors,
    base: torch.Tensor | None,
    weight: Sequence[float],
    nuslerp_flatten: bool = True,
    nuslerp_row_wise: bool = False,
) -> torch.Tensor:
    """Slerp of the parents or task vectors, whole or vector by vector."""
    total = sum(weight)
    t = 0.5 if abs(total) < 1e-6 else weight[1] / total
    pair = _from(parents, base)
    if nuslerp_flatten or pair[0].ndim < 2:
        return _onto(base, _slerp_vectors(*pair, t))
    axis = 0 if nuslerp_row_wise else -1
    lines = zip(*(x.movedim(axis, -1).flatten(0, -2) for x in pair), strict=True)
    moved = pair[0].movedim(axis, -1).shape
    merged = torch.stack([_slerp_vectors(a, b, t) for a, b in lines]).view(moved)
    return _onto(base, merged.movedim(-1, axis))


def _slerp_vectors(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    lengths = [max(float(x.norm()), 1e-7) for x in (a, b)]
    cosine = max(-1.0, min(1.0, float((a / lengths[0] * (b / lengths[1])).sum())))
    if 1 - cosine**2 <= 1e-7:
        return (1 - t) * a + t * b
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def multislerp(
    parents: Tensors,
    base: torch.Tensor | None,
    weight: Sequence[float],
    normalize_weights: bool = True,
    eps: float = 1e-8,
) -> torch.Tensor:
    """Mean direction, followed along the tangent, at the mean length."""
    vectors = _from(parents, base)
    if len(vectors) == 1:
        return _onto(base, vectors[0])
    weights = [w / (sum(weight) if normalize_weights else 1.0) for w in weight]
    lengths = [float(v.norm()) for v in vectors]
    units = [v / (n + eps) for v, n in zip(vectors, lengths, strict=True)]
    mean = _mixed(weights, units)
    terms = sum(abs(w) * float(u.norm()) for w, u in zip(weights, units, strict=True))
    if float(mean.norm()) <= max(eps, 1e-6 * terms):
        return _onto(base, _mixed(weights, vectors))
    mean = mean / mean.norm()
    tangent = _mixed(weights, [u - (u * mean).sum() * mean for u in units])
    length = float(tangent.norm()) + eps
    moved = mean * math.cos(length) + tangent * math.sin(length) / length
    return _onto(base, moved * sum(w * n for w, n in zip(weights, lengths, strict=True)))


def karcher(parents: Tensors, max_iter: float = 10, tol: float = 1e-5) -> torch.Tensor:
    """Mean on the sphere, step by step, times the mean length."""
    vectors = [x.double() for x in parents]
    if len(vectors) == 1:
        return vectors[0]
    lengths = [float(v.norm()) for v in vectors]
    units = [v / n for v, n in zip(vectors, lengths, strict=True) if n > tol]
    if not units:
        return torch.zeros_like(vectors[0])
    mean = _mixed([1 / len(units)] * len(units), units)
    mean = units[0] if float(mean.norm()) < tol else mean / mean.norm()
    for _ in range(int(max_iter)):
        step = torch.zeros_like(mean)
        for unit in units:
            cosine = max(-1.0, min(1.0, float((mean * unit).sum())))
            angle = math.acos(cosine)
            if tol <= angle < math.pi - 1e-6:
                step += angle / math.sin(angle) * (unit - cosine * mean) / len(vectors)
        length = float(step.norm())
        if length < tol:
            break
        mean = math.cos(length) * mean + math.sin(length) * step / length
        mean = mean / mean.norm()
    return mean * sum(lengths) / len(lengths)


def model_stock(parents: Tensors, base: torch.Tensor, filter_wise: bool = False) -> torch.Tensor:
    """Between base and mean, by the mean cosine of the task vectors."""
    deltas = _from(parents, base)
    if filter_wise and base.ndim > 1:
        rows = zip(*(d.flatten(0, -2) for d in deltas), strict=True)
        moved = torch.stack([_stock(row) for row in rows]).view_as(base)
    else:
        moved = _stock(deltas)
    return _onto(base, moved)


def _stock(deltas: Tensors) -> torch.Tensor:
    count = len(deltas)
    cosines = [
        float((a * b).sum() / product) if (product := a.norm() * b.norm()) > 0 else 0.0
        for a, b in itertools.combinations(deltas, 2)
    ]
    cosine = sum(cosines) / len(cosines)
    whole = 1 + (count - 1) * cosine
    return (0.0 if whole < 1e-6 else count * cosine / whole) * sum(deltas) / count


def breadcrumbs(
    parents: Tensors,
    base: torch.Tensor,
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
    consensus: bool = False,
) -> torch.Tensor:
    """Without the largest and the smallest elements, summed as by DARE."""
    masks = [
        band(x.float() - base.float(), share, outliers)
        for x, share, outliers in zip(parents, density, gamma, strict=True)
    ]
    merge = dare_ties if consensus else dare_linear
    return merge(parents, base, weight, masks, normalize, rescale, lambda_)


def band(delta: torch.Tensor, density: float, gamma: float) -> torch.Tensor:
    """Mask of [bot : bot + keep] in ascending order; the first positions are the larger."""
    if density >= 1:
        return torch.ones_like(delta, dtype=torch.bool)
    numel = delta.numel()
    keep, top = int(density * numel), int(gamma * numel)
    bottom = max(0, numel - keep - top)
    order = delta.flatten().abs().argsort(descending=True, stable=True).flip(0)
    mask = torch.zeros(numel, dtype=torch.bool)
    mask[order[bottom : bottom + max(0, keep)]] = True
    return mask.view_as(delta)


def keep_probabilities(delta: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    """DELLA's: by rank in the row, from density - epsilon to density + epsilon."""
    rows = delta.float().abs().reshape(-1, delta.shape[-1])
    columns = rows.shape[1]
    probabilities = torch.full(rows.shape, density, dtype=torch.float64)
    for row, values in zip(probabilities, rows, strict=True):
        for rank, column in enumerate(values.argsort(stable=True).tolist()):
            if columns > 1:
                row[column] = density - epsilon + 2 * epsilon * rank / (columns - 1)
    return probabilities.view(delta.shape)


def _from(parents: Tensors, base: torch.Tensor | None) -> Tensors:
    if base is None:
        return [x.double() for x in parents]
    return [(x.float() - base.float()).double() for x in parents]


def _onto(base: torch.Tensor | None, vector: torch.Tensor) -> torch.Tensor:
    return vector if base is None else base.double() + vector


def _mixed(weights: Sequence[float], vectors: Tensors) -> torch.Tensor:
    return sum(w * v for w, v in zip(weights, vectors, strict=True))


class Memory:
    """Stands in for `Parents`: one tensor for each parent, from memory."""

    device = torch.device("cpu")
    scratch = None

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
        _base(method, base),
        _params(method, len(parents), given),
        rounding,
        seed,
    )
    out = torch.full(step.shape, math.nan, dtype=out_dtype)
    run_steps([(step, out)], Geometry(memory))
    return out


def _base(method: str, base: torch.Tensor | None) -> TensorRef | None:
    wanted = find_method(method).base
    taken = wanted is Base.REQUIRED or (wanted is Base.OPTIONAL and base is not None)
    return TensorRef("base", "t") if taken else None


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
