"""The slow, obvious twin of the elementwise and the singular-vector methods.

Whole tensors in float64, as the formulas read: arXiv:2408.07990 (SCE), 2601.13572 (RAM), 2412.00081
(TSV-M), 2502.04959 (Iso-C, Iso-CTS). Task vectors and what thresholds cut are taken in float32, so
that the order of magnitudes is that of the fast path.
"""

from collections.abc import Sequence

import torch

Tensors = Sequence[torch.Tensor]


def task_vectors(parents: Tensors, base: torch.Tensor) -> torch.Tensor:
    """x - base in float32, then float64: `(parents, *shape)`."""
    return torch.stack([x.float() - base.float() for x in parents]).double()


def sce(parents: Tensors, base: torch.Tensor, select_topk: float = 1.0) -> torch.Tensor:
    """Select by variance, weigh by energy, drop minority signs."""
    deltas = task_vectors(parents, base)
    if select_topk < 1:
        narrow = deltas.float()
        variance = ((narrow - narrow.mean(0)) ** 2).mean(0).flatten()
        order = variance.argsort(descending=True, stable=True)
        keep = torch.zeros_like(variance, dtype=torch.bool)
        keep[order[: int(int((variance != 0).sum()) * select_topk)]] = True
        deltas = deltas * keep.view(base.shape)
    energy = torch.stack([(delta**2).mean() for delta in deltas])
    count = len(parents)
    weights = energy / energy.sum() if energy.sum() > 0 else torch.full((count,), 1.0 / count)
    sign = torch.where(deltas.float().sum(0) >= 0, 1.0, -1.0)
    merged, share = torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0])
    for weight, delta in zip(weights, deltas, strict=True):
        agrees = delta.sign() == sign
        merged += weight * delta * agrees
        share += weight * agrees
    return base.double() + merged / torch.where(share == 0, 1.0, share)


def ram(parents: Tensors, base: torch.Tensor, epsilon: float = 1e-5) -> torch.Tensor:
    """What one parent moved, and the mean of what several did."""
    return ramplus_tl(parents, base, epsilon, r=0.0)


def ramplus_tl(
    parents: Tensors,
    base: torch.Tensor,
    epsilon: float = 1e-5,
    r: float = 0.1,
    alpha: float = 0.2,
) -> torch.Tensor:
    """As `ram`, what one parent moved alone rescaled by how much it shares."""
    deltas = task_vectors(parents, base)
    moved = deltas.float().abs() > epsilon
    count = moved.sum(0)
    total = torch.zeros_like(deltas[0])
    for delta, mask in zip(deltas, moved, strict=True):
        unique, shared = int((mask & (count == 1)).sum()), int((mask & (count > 1)).sum())
        gain = 1 + r * min(max(shared / max(unique, epsilon), 0.0), alpha)
        total += gain * delta * (mask & (count == 1))
        total += delta * (mask & (count > 1)) / count.clamp(min=1)
    return base.double() + total


def nearswap(parents: Tensors, base: torch.Tensor, t: float) -> torch.Tensor:
    """w b + (1 - w) a."""
    (b,), a = [x.double() for x in parents], base.double()
    w = (t / (b - a).abs().clamp(min=1e-6)).clamp(0, 1)
    return w * b + (1 - w) * a


def arcee_fusion(parents: Tensors, base: torch.Tensor) -> torch.Tensor:
    """Take over what is important, by exact quantiles of a sort."""
    (delta,) = task_vectors(parents, base)
    p, q = (
        (x.double().reshape(-1) if x.dim() < 2 else x.double()).softmax(-1) + 1e-8
        for x in (parents[0], base)
    )
    divergence = (p * (p / q).log()).sum(-1, keepdim=True).clamp(min=0)
    importance = divergence.float() * delta.float().abs()
    ordered = importance.flatten().sort().values
    first, median, third = (ordered[int(s * (len(ordered) - 1))] for s in (0.25, 0.5, 0.75))
    important = (importance >= median + 1.5 * (third - first)).view(base.shape)
    return base.double() + delta * important


def magnitude_average(
    parents: Tensors,
    base: torch.Tensor,
    weight: Sequence[float],
    exponent: float = 1.0,
    lambda_: float = 1.0,
) -> torch.Tensor:
    """The mean of the task vectors, each element weighed by |T|^p."""
    deltas = task_vectors(parents, base)
    votes = torch.stack(
        [w * delta.abs() ** exponent for w, delta in zip(weight, deltas, strict=True)]
    )
    total = votes.sum(0)
    merged = (votes * deltas).sum(0) / torch.where(total == 0, 1.0, total)
    return base.double() + lambda_ * merged


def tsv(
    parents: Tensors, base: torch.Tensor, weight: Sequence[float], lambda_: float = 1.0
) -> torch.Tensor:
    """Top components of each task, whitened over the tasks. For matrices of full rank."""
    deltas = task_vectors(parents, base)
    if base.dim() != 2:
        scaled = [w * delta for w, delta in zip(weight, deltas, strict=True)]
        return base.double() + lambda_ * sum(scaled) / len(parents)
    kept = max(1, int(min(base.shape) / len(parents)))
    triples = [torch.linalg.svd(delta, full_matrices=False) for delta in deltas]
    left = nearest_orthonormal(torch.cat([u[:, :kept] for u, _, _ in triples], 1))
    right = nearest_orthonormal(torch.cat([v[:kept].T for _, _, v in triples], 1))
    sizes = torch.cat([w * s[:kept] for w, (_, s, _) in zip(weight, triples, strict=True)])
    return base.double() + lambda_ * left @ sizes.diag() @ right.T


def iso_c(parents: Tensors, base: torch.Tensor, lambda_: float = 1.0) -> torch.Tensor:
    """The sum's directions with one singular value. For sums of full rank."""
    deltas = task_vectors(parents, base)
    if base.dim() != 2:
        return base.double() + lambda_ * deltas.mean(0)
    left, sizes, right = torch.linalg.svd(deltas.sum(0), full_matrices=False)
    return base.double() + lambda_ * sizes.mean() * left @ right


def iso_cts(
    parents: Tensors,
    base: torch.Tensor,
    common_space_fraction: float = 0.8,
    lambda_: float = 1.0,
) -> torch.Tensor:
    """Common and task-specific directions with one singular value. For matrices of full rank."""
    deltas = task_vectors(parents, base)
    if base.dim() != 2:
        return base.double() + lambda_ * deltas.mean(0)
    rank, count = min(base.shape), len(parents)
    left, sizes, right = torch.linalg.svd(deltas.sum(0), full_matrices=False)
    specific = min(round((rank - int(rank * common_space_fraction + 1e-9)) / count), rank // count)
    common = rank - specific * count
    lefts, spectra, rights = [left[:, :common]], [sizes[:common]], [right[:common].T]
    for delta in deltas:
        rest = delta - left[:, :common] @ left[:, :common].T @ delta
        u, s, v = torch.linalg.svd(rest, full_matrices=False)
        lefts.append(u[:, :specific])
        spectra.append(s[:specific])
        rights.append(v[:specific].T)
    size = torch.cat(spectra).mean()
    u, v = (nearest_orthonormal(torch.cat(parts, 1)) for parts in (lefts, rights))
    return base.double() + lambda_ * size * u @ v.T


def nearest_orthonormal(columns: torch.Tensor) -> torch.Tensor:
    """(A A^T)^(-1/2) A, of the smaller side: the polar factor without an SVD of A."""
    wide = columns.shape[0] < columns.shape[1]
    gram = columns @ columns.T if wide else columns.T @ columns
    values, vectors = torch.linalg.eigh(gram)
    root = vectors @ values.rsqrt().diag() @ vectors.T
    return root @ columns if wide else columns @ root
