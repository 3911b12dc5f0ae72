# pyright: standard
"""Does a layer compute the same wherever it stands? Found by running it, not by a family's name.

All layers get the same weights and the same hidden states; those of one kind must then give the
same numbers, to the bit. GPT-2 with `scale_attn_by_inverse_layer_idx` doesn't: moved elsewhere, a
layer would be another function than the one that was trained.
"""

import contextlib
from collections.abc import Generator, Iterator
from typing import Any

import torch

from evals.configuration import Config, parse_config
from evals.errors import EvaluationError
from evals.resident import build_model
from evals.rewiring import Kind, Wiring

_Alike = tuple[Kind, tuple[tuple[str, torch.Size], ...]]
"""What makes two layers comparable: their kind and their tensors."""

_TOKENS = 8
_LARGEST = 10**9  # elements of a layer that is made of drawn numbers: 2 GB; Llama 70B has 0.86e9
_SPREAD = 0.1  # of the weights: large enough to be seen in bfloat16, small enough for no overflow


@torch.inference_mode()
def rooted(model: Any, wiring: Wiring) -> str | None:
    """Why a model's layers must keep their places; None if they may be moved.

    Weights and layers are afterwards what they were.

    Args:
        model: A live model; its weights don't matter.
        wiring: Its layers.
    """
    if not wiring.layers:
        return f"{_family(model)}: its layers are in no single list of modules"
    before, seen = wiring.present, dict[_Alike, tuple[int, torch.Tensor]]()
    try:
        for config in wiring.turns():
            try:
                wiring.rewire(config)
            except EvaluationError:
                break  # kinds that can't change places; a plan that tries is refused by itself
            if reason := _difference(model, wiring, seen):
                return reason
    except Exception as error:  # whatever a family does
        return f"{_family(model)}: its layers can't be compared: {error}"
    finally:
        wiring.rewire(before)
    return None


def rooted_form(config: Config, where: str) -> str | None:
    """As `rooted`, of a model that isn't loaded: its form at full depth, weights for one layer.

    Args:
        config: The `config.json` of the model, or of one that is deeper.
        where: What to call it in an error.

    Raises:
        EvaluationError: If transformers can't build it, or one layer is larger than 2 GB.
    """

    def build(other: Config) -> Any:
        return build_model(other, where, torch.bfloat16, empty=True)

    try:
        model = build(config)
        wiring = Wiring(model, config, lambda other: parse_config(other, where), build)
    except EvaluationError:
        raise
    except Exception as error:  # whatever a family does
        raise EvaluationError(f"{where}: its form can't be built: {error}") from None
    _stand_in(model)
    largest = max((_elements(layer) for layer in wiring.layers), default=0)
    if largest > _LARGEST:
        raise EvaluationError(f"{where}: a layer of {largest:,} numbers is too large to be tried")
    # Without the head, whose matrix would be the largest of all and says nothing of layers.
    return rooted(model.eval().base_model, wiring)


def _family(model: Any) -> str:
    """What to call a model, the same with its head and without."""
    return type(model.base_model).__name__


def _stand_in(model: torch.nn.Module) -> None:
    """Give a model without weights ones of a single number each, until a layer's are drawn."""
    for module in model.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                number = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
                module._parameters[name] = torch.nn.Parameter(number, requires_grad=False)


def _elements(layer: torch.nn.Module) -> int:
    return sum(tensor.numel() for _, tensor in _weights(layer))


def _difference(
    model: Any, wiring: Wiring, seen: dict[_Alike, tuple[int, torch.Tensor]]
) -> str | None:
    """The first layer that gives something else than one like it did."""
    outputs = _outputs(model, wiring)
    for at, (kind, layer) in enumerate(zip(wiring.kinds, wiring.layers, strict=True)):
        alike = kind, tuple((name, tensor.shape) for name, tensor in _weights(layer))
        where, expected = seen.setdefault(alike, (at, outputs[at]))
        if not torch.equal(outputs[at], expected):
            return (
                f"layers of {_family(model)} must keep their places: with the same weights "
                f"and inputs, layer {at} doesn't give what layer {where} does"
            )
    return None


def _outputs(model: Any, wiring: Wiring) -> list[torch.Tensor]:
    """What each layer gives for the same weights and hidden states, `(1, tokens, hidden)` each."""
    layers, found = wiring.layers, list[torch.Tensor]()
    tokens = torch.ones(1, _TOKENS, dtype=torch.int64, device=model.device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_same_weights(layers))
        for layer in layers:
            hook = layer.register_forward_pre_hook(_same_input, with_kwargs=True)
            stack.callback(hook.remove)
            hook = layer.register_forward_hook(lambda _m, _i, out: found.append(_state(out)))
            stack.callback(hook.remove)
        model(input_ids=tokens, use_cache=False)
    return found


def _same_input(_layer: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    if args:
        return (_drawn(args[0]), *args[1:]), keywords
    return args, keywords | {"hidden_states": _drawn(keywords["hidden_states"])}


def _state(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


@contextlib.contextmanager
def _same_weights(layers: tuple[torch.nn.Module, ...]) -> Generator[None]:
    """Have every layer's tensors be drawn ones, the same for the same name and shape."""
    drawn: dict[tuple[str, torch.Size], torch.Tensor] = {}
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        for layer in layers:
            for name, tensor in _weights(layer):
                kept.append((tensor, tensor.data))
                key = name, tensor.shape
                if key not in drawn:
                    drawn[key] = _drawn(tensor) * _SPREAD
                tensor.data = drawn[key]
        yield
    finally:
        for tensor, data in reversed(kept):
            tensor.data = data


def _weights(layer: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in layer.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            yield name, tensor


def _drawn(like: torch.Tensor) -> torch.Tensor:
    """Normally distributed numbers, the same for every tensor of a shape."""
    chance = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, generator=chance).to(like)
