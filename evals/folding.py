"""The proof that scales of layers can be folded into weights, on the live model.

`merge_core.writers` finds from names which tensors a layer's scale multiplies. Here two ways are
compared: hooks multiply the stream as it enters each layer; or the stream is left alone and the
tensors are multiplied. The logits must be equal, whatever the architecture's code does.
"""

import contextlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from evals.activations import find_layers
from evals.resident import Resident

TOLERANCE = 1e-4  # of the logits' spread
# Sizes of the stream, none of them 1, so that each layer is tried. Powers of two multiply without
# rounding: 30 layers of SmolLM2 differ by 0. With scales of 0.7 to 1.4 they differ by 4e-5 of the
# spread in float32 and by 1.8 in bfloat16, which would hide any fault.
_SIZES = (0.5, 2.0)
_TOKENS = (2, 12)
_FINER = 1e-6


def refusal(resident: Resident, powers: Sequence[Mapping[str, int]], seed: int = 0) -> str | None:
    """Why scales of this model's layers can't be folded into its weights, or None.

    Norms add a small number to a variance, so folding is exact up to that number only. It is made
    a million times smaller meanwhile, or the proof would have to allow for it and be blind to small
    faults. All arithmetic is float32, whatever the live dtype: a kernel whose last bit follows
    addresses would move bfloat16's logits visibly. One layer at a time is widened, so it takes
    little memory. Weights are as they were when it returns; none is written to.

    Args:
        resident: The live model with a parent's weights, of any dtype.
        powers: For each live layer, the power (1 or -1) of the layer's factor that its tensors
            take, by checkpoint name; `merge_core.writers.powers`.
        seed: Of the stream's sizes and the tokens.
    """
    layers = find_layers(resident.model)
    if len(layers) != len(powers):
        return f"the live model shows {len(layers)} layers, not {len(powers)}"
    for number, (layer, names) in enumerate(zip(layers, powers, strict=True)):
        own = list(layer.parameters())
        if lost := next((name for name in names if not _is_in(resident, name, own)), None):
            return f"tensor '{lost}' is no weight of the live model's layer {number}"
    with torch.no_grad(), _fine_norms(resident.model):
        return _compare(resident, powers, seed)


@dataclass(frozen=True, slots=True)
class _Pass:
    """The stream as it enters and leaves each layer, `(2, 12, width)`, and the logits; float32."""

    entering: list[torch.Tensor]
    leaving: list[torch.Tensor]
    logits: torch.Tensor


def _compare(resident: Resident, powers: Sequence[Mapping[str, int]], seed: int) -> str | None:
    generator = torch.Generator().manual_seed(seed)
    model: Any = resident.model
    words = int(model.get_input_embeddings().weight.shape[0])
    tokens = torch.randint(words, _TOKENS, generator=generator).to(model.device)
    drawn = torch.randint(len(_SIZES), (len(powers),), generator=generator)
    products = [_SIZES[int(at)] for at in drawn]
    scales = [c / before for before, c in pairwise([1.0, *products])]
    merged = [
        {name: product**-power for name, power in names.items()}
        for names, product in zip(powers, products, strict=True)
    ]
    hooked = _run(resident, tokens, [{} for _ in powers], scales)
    other = _run(resident, tokens, merged, [1.0] * len(powers))
    gap = _gap(hooked.logits, other.logits)
    if gap <= TOLERANCE:
        return None
    pairs = enumerate(zip(hooked.leaving, other.leaving, products, strict=True))
    first = next((i for i, (a, b, c) in pairs if not _gap(a, b * c) <= TOLERANCE), None)
    told = f"{type(model).__name__}: logits differ by {gap:.2g} of their spread"
    if first is None:
        return f"{told}: what follows the last layer depends on the stream's size"
    return f"{told}: {_fault(resident, powers, tokens, first)}"


def _fault(
    resident: Resident, powers: Sequence[Mapping[str, int]], tokens: torch.Tensor, layer: int
) -> str:
    """What is wrong with the first layer that differs: silenced, it must add nothing."""
    writing = [name for name, power in powers[layer].items() if power > 0]
    if not writing:
        return f"no tensor of layer {layer} is taken to write to the residual stream"
    silenced = [dict.fromkeys(writing, 0.0) if i == layer else {} for i in range(len(powers))]
    found = _run(resident, tokens, silenced, [1.0] * len(powers))
    if torch.equal(found.entering[layer], found.leaving[layer]):
        return (
            f"layer {layer} reads the residual stream without a norm, or one of the tensors that "
            "are multiplied doesn't write to it"
        )
    if all(resident.slots[name].dim() == 1 for name in writing):
        return (
            f"the norms that end layer {layer}'s blocks ('{writing[0]}') still let something "
            "through when their weights are zero: they multiply by 1 + weight, so no factor of "
            "the weight multiplies what they write"
        )
    return (
        f"layer {layer} still writes to the residual stream when '{writing[0]}' and the like "
        f"({len(writing)} tensors) are zero: they aren't all that write"
    )


def _gap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference over the spread: the mean standard deviation of a position's values."""
    return float((one - other).abs().amax() / one.std(-1).mean())


def _run(
    resident: Resident,
    tokens: torch.Tensor,
    factors: Sequence[Mapping[str, float]],
    scales: Sequence[float],
) -> _Pass:
    """One pass in float32, with tensors multiplied and the stream scaled as each layer begins."""
    model: Any = resident.model
    layers, slots = find_layers(model), resident.slots
    entering: list[torch.Tensor] = []
    leaving: list[torch.Tensor] = []
    with contextlib.ExitStack() as stack:
        for module in _outer(model, layers):
            stack.enter_context(_widened(list(module.parameters(False)), module, slots, {}))
        for layer, own, scale in zip(layers, factors, scales, strict=True):
            stack.enter_context(_watched(layer, scale, entering, leaving))
            stack.enter_context(_widened(list(layer.parameters()), layer, slots, own))
        logits = model(input_ids=tokens, use_cache=False).logits
    return _Pass(entering, leaving, logits)


def _outer(model: nn.Module, layers: Sequence[nn.Module]) -> list[nn.Module]:
    """What has weights outside the layers: embeddings, the last norm, the head."""
    inside = {id(module) for layer in layers for module in layer.modules()}
    return [
        m for m in model.modules() if id(m) not in inside and any(True for _ in m.parameters(False))
    ]


@contextlib.contextmanager
def _watched(
    layer: nn.Module, scale: float, entering: list[torch.Tensor], leaving: list[torch.Tensor]
) -> Generator[None]:
    """Multiply what enters a layer, and note what enters and leaves."""

    def before(_: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        first, *others = args or (keywords["hidden_states"],)
        entering.append(first * scale)
        if args:
            return (entering[-1], *others), keywords
        return args, keywords | {"hidden_states": entering[-1]}

    def after(_layer: Any, _args: Any, output: Any) -> None:
        state = cast("torch.Tensor", output[0] if isinstance(output, tuple) else output)
        leaving.append(state)

    hooks = [
        layer.register_forward_pre_hook(before, with_kwargs=True),
        layer.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _widened(
    parameters: Sequence[nn.Parameter],
    module: nn.Module,
    slots: Mapping[str, torch.Tensor],
    factors: Mapping[str, float],
) -> Generator[None]:
    """While a module runs, its weights are other tensors: in float32, some of them multiplied."""
    originals: list[tuple[nn.Parameter, torch.Tensor]] = []

    def install(*_: Any) -> None:
        for parameter in parameters:
            mine = [(slots[n], f) for n, f in factors.items() if _within(slots[n], parameter)]
            if mine or (parameter.is_floating_point() and parameter.dtype is not torch.float32):
                originals.append((parameter, parameter.data))
                parameter.data = _multiplied(parameter, mine)

    def restore(*_: Any) -> None:
        while originals:
            parameter, original = originals.pop()
            parameter.data = original

    hooks = [module.register_forward_pre_hook(install), module.register_forward_hook(restore)]
    try:
        yield
    finally:
        restore()
        for hook in hooks:
            hook.remove()


def _multiplied(
    parameter: nn.Parameter, parts: Sequence[tuple[torch.Tensor, float]]
) -> torch.Tensor:
    """A float32 copy; the parts, views of it or all of it, are multiplied in the copy."""
    wide = parameter.data.to(torch.float32, copy=True)
    for part, factor in parts:
        at = (part.data_ptr() - parameter.data_ptr()) // part.element_size()
        wide.as_strided(part.shape, part.stride(), wide.storage_offset() + at).mul_(factor)
    return wide


def _is_in(resident: Resident, name: str, parameters: Sequence[nn.Parameter]) -> bool:
    slot = resident.slots.get(name)
    return slot is not None and any(_within(slot, parameter) for parameter in parameters)


def _within(part: torch.Tensor, parameter: torch.Tensor) -> bool:
    start = parameter.data_ptr()
    return start <= part.data_ptr() < start + parameter.nbytes


@contextlib.contextmanager
def _fine_norms(model: nn.Module) -> Generator[None]:
    """What norms add to a variance, made a million times smaller."""
    found = [
        (module, key, value)
        for module in model.modules()
        for key, value in vars(module).items()
        if "eps" in key and isinstance(value, float) and 0 < value < 1e-2
    ]
    try:
        for module, key, value in found:
            setattr(module, key, value * _FINER)
        with _FineFunctions():
            yield
    finally:
        for module, key, value in found:
            setattr(module, key, value)


class _FineFunctions(TorchFunctionMode):
    """The same for an eps that code states at the call, as OLMo's does."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        if isinstance(eps := keywords.get("eps"), float):
            keywords = keywords | {"eps": eps * _FINER}
        return func(*args, **keywords)
