"""The rows of `bench_mergekit.py`: what is merged, with which numbers, and what is wanted."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import reference_merges as slow
import torch

from merge_core.geometry import Geometry, TensorGroup, TensorRef
from merge_core.masks import BLOCK, density_limit, select

Tensors = Mapping[str, torch.Tensor]
Span = tuple[float, float]
TUNES = ("a", "b", "c")
SHARES = (0.2, 0.8)
FOUR = ("base", *TUNES)
EPSILON = 0.15  # the default of both sides; a study that varies it ranks anew for every candidate


@dataclass(frozen=True, slots=True)
class Values:
    """One candidate's numbers: by parent, and for all of them."""

    each: dict[str, dict[str, float]]
    shared: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One row.

    Attributes:
        label: What the row is called.
        method: The method's name, here and in mergekit.
        inputs: The parents that are merged.
        base: Where task vectors start, or mergekit's base.
        moved: Bytes per parameter: sources and destination in bfloat16.
        each: Span from which each parent's number is drawn.
        shared: As `each`, for the numbers that hold for all.
        ours: Parameters that mergekit does not have.
        twin: The float64 reference, or None.
        wanted: Least share of the triad's bandwidth in percent, and least ratio of CPU times.
        random: Whether mergekit draws other masks, so that errors can't be compared.
        wide: Whether mergekit is timed with dtype float32; our arithmetic is float32 always.
        turns: How often mergekit is timed.
    """

    label: str
    method: str
    inputs: tuple[str, ...]
    base: str | None
    moved: int
    twin: Callable[[Tensors, Values], torch.Tensor] | None
    wanted: tuple[int, int]
    each: Mapping[str, Span] = field(default_factory=dict)
    shared: Mapping[str, Span] = field(default_factory=dict)
    ours: Mapping[str, str] = field(default_factory=dict)
    random: bool = False
    wide: bool = False
    turns: int = 1

    @property
    def models(self) -> tuple[str, ...]:
        """Everything that is read, the base first."""
        return tuple(dict.fromkeys((*((self.base,) if self.base else ()), *self.inputs)))

    def values(self, number: int) -> Values:
        """The numbers of a candidate; no two candidates share any."""
        draw = random.Random(f"{self.label} {number}")
        each = {
            name: {parent: draw.uniform(*span) for parent in self.inputs}
            for name, span in self.each.items()
        }
        return Values(each, {name: draw.uniform(*span) for name, span in self.shared.items()})

    def recipe(self, values: Values) -> dict[str, Any]:
        """The candidate as a recipe of ours."""
        shared = values.shared | dict(self.ours)
        return {
            "merge_method": self.method,
            "models": [
                {"model": name, "parameters": {key: v[name] for key, v in values.each.items()}}
                for name in self.inputs
            ],
            "dtype": None,
            "out_dtype": "bfloat16",
            **({"base_model": self.base} if self.base else {}),
            **({"parameters": shared} if shared else {}),
        }

    def request(self, values: Values) -> dict[str, Any]:
        """The candidate as the worker reads it."""
        return {
            "models": self.models,
            "base": self.base,
            "method": self.method,
            "parameters": values.each | values.shared,
            "wide": self.wide,
        }

    def given(self, values: Values) -> dict[str, Any]:
        """The candidate as keywords of `fast_merge`."""
        each = {key: tuple(v[name] for name in self.inputs) for key, v in values.each.items()}
        return each | values.shared | dict(self.ours)


def _of(values: Values, name: str) -> tuple[float, ...]:
    return tuple(values.each[name].values())


def _tunes(tensors: Tensors) -> list[torch.Tensor]:
    return [tensors[name] for name in TUNES]


def _masks(tensors: Tensors, values: Values, kind: str) -> list[torch.Tensor]:
    """The masks that our side draws for a tensor named as `fast_merge` names it."""
    memory = slow.Memory(dict(tensors))
    refs = tuple(TensorRef(name, "t") for name in TUNES)
    group = TensorGroup("t", refs, TensorRef("base", "t"), None, 0, Geometry(memory))
    ones = torch.ones(tensors["base"].numel())
    found = []
    for parent, density in enumerate(_of(values, "density")):
        if kind == "ranked":
            selection = group.ranked(parent, density, EPSILON)
        else:
            selection = group.random(parent, density)
        found.append(select(selection, ones, 0).view_as(tensors["base"]) != 0)
    return found


def _trimmed(merge: Callable[..., torch.Tensor], **fixed: Any) -> Callable[..., torch.Tensor]:
    def twin(tensors: Tensors, values: Values) -> torch.Tensor:
        numbers = [_of(values, name) for name in values.each]  # weight, density, gamma
        return merge(_tunes(tensors), tensors["base"], *numbers, **fixed)

    return twin


def _dropped(
    merge: Callable[..., torch.Tensor], kind: str, by_density: bool = False, **fixed: Any
) -> Callable[..., torch.Tensor]:
    def twin(tensors: Tensors, values: Values) -> torch.Tensor:
        weights = _of(values, "weight")
        if by_density:
            pairs = zip(weights, _of(values, "density"), strict=True)
            weights = tuple(w * BLOCK / density_limit(d) for w, d in pairs)
        masks = _masks(tensors, values, kind)
        return merge(
            _tunes(tensors), tensors["base"], weights, masks, rescale=not by_density, **fixed
        )

    return twin


def _plain() -> tuple[Case, ...]:
    """Weighted sums: as fast as the memory."""
    fast, weight = (85, 12), {"weight": SHARES}
    return (
        Case(
            "linear", "linear", FOUR, None, 10,
            lambda t, v: slow.linear([t[n] for n in FOUR], _of(v, "weight")),
            fast, weight, turns=2,
        ),
        Case(
            "slerp", "slerp", ("base", "a"), "base", 6,
            lambda t, v: slow.slerp([t["base"], t["a"]], v.shared["t"]),
            fast, shared={"t": SHARES}, turns=2,
        ),
        Case(
            "nuslerp", "nuslerp", ("a", "b"), "base", 8,
            lambda t, v: slow.nuslerp([t["a"], t["b"]], t["base"], _of(v, "weight")),
            fast, weight, turns=2,
        ),
        Case(
            "task_arithmetic", "task_arithmetic", TUNES, "base", 10,
            lambda t, v: slow.task_arithmetic(_tunes(t), t["base"], _of(v, "weight")),
            fast, weight, turns=2,
        ),
        Case(
            "model_stock", "model_stock", TUNES, "base", 10,
            lambda t, _v: slow.model_stock(_tunes(t), t["base"]),
            fast, turns=2,
        ),
        Case(
            "multislerp", "multislerp", TUNES, "base", 10,
            lambda t, v: slow.multislerp(_tunes(t), t["base"], _of(v, "weight")),
            fast, weight, turns=2,
        ),
        *(
            Case(
                label, "karcher", TUNES, None, 8,
                lambda t, v: slow.karcher(_tunes(t), tol=v.shared["tol"]),
                (85, 300), shared={"tol": (0.9e-5, 1.1e-5)}, wide=wide,
            )
            for label, wide in (("karcher", False), ("karcher float32", True))
        ),
    )  # fmt: skip


def _sparse() -> tuple[Case, ...]:
    """Trimmed and dropped task vectors."""
    low, any_, high = (
        {"weight": SHARES, "density": span} for span in ((0.05, 0.15), SHARES, (0.85, 0.95))
    )
    gamma = any_ | {"gamma": (0.01, 0.05)}
    ranks = {"weight": SHARES, "density": (0.3, 0.7)}
    exact, drop, ranked = (40, 200), (30, 45), (30, 150)
    paper = {"rescaling": "density"}

    def case(label: str, twin: Any, wanted: Any, each: Any, **rest: Any) -> Case:
        method = label.split(" ")[0]
        return Case(label, method, TUNES, "base", 10, twin, wanted, each, **rest)

    total, voted = slow.dare_linear, slow.dare_ties
    return (
        case("ties", _trimmed(slow.ties), exact, any_),
        case("ties density 0.1", _trimmed(slow.ties), exact, low),
        case("ties density 0.9", _trimmed(slow.ties), exact, high),
        case("breadcrumbs", _trimmed(slow.breadcrumbs), exact, gamma),
        case("breadcrumbs_ties", _trimmed(slow.breadcrumbs, consensus=True), exact, gamma),
        case("dare_linear", _dropped(total, "random"), drop, any_, random=True, turns=2),
        case(
            "dare_linear density", _dropped(total, "random", True), drop, any_,
            ours=paper, random=True, turns=2,
        ),
        case("dare_ties", _dropped(voted, "random"), drop, any_, random=True, turns=2),
        case(
            "dare_ties density", _dropped(voted, "random", True), drop, any_,
            ours=paper, random=True, turns=2,
        ),
        case("della", _dropped(voted, "ranked", normalize=True), ranked, ranks, random=True),
        case("della_linear", _dropped(total, "ranked"), ranked, ranks, random=True),
    )  # fmt: skip


CASES = (*_plain(), *_sparse())
