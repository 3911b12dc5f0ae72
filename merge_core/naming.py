"""Where a tensor sits in its model, read from its name: layer number and role.

No table per architecture: the layer number is the first number in a tensor's name, under the
prefix whose numbers run from 0 to the depth that the configuration states.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merge_core.errors import CheckpointError

DEPTH_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_NUMBERED = re.compile(r"^(?P<prefix>(?:[^.]+\.)*?)(?P<layer>\d+)\.(?P<rest>.+)$")
_HEADS = ("lm_head", "embed_out", "output.weight")
_EMBEDDINGS = ("embed", "wte.", "wpe.")


@dataclass(frozen=True, slots=True)
class Layout:
    """How a checkpoint numbers its layers.

    Attributes:
        prefix: What stands before the layer number, with its dot: `model.layers.`.
        depth: Number of layers.
    """

    prefix: str
    depth: int

    def layer(self, name: str) -> int | None:
        """Layer of the tensor, or None for one outside the layers (embeddings, norm, head)."""
        found = _NUMBERED.match(name)
        if found is None or found["prefix"] != self.prefix:
            return None
        return int(found["layer"])

    def moved(self, name: str, layer: int) -> str:
        """The name of the same tensor in another layer."""
        found = _NUMBERED.match(name)
        if found is None or found["prefix"] != self.prefix:
            return name
        return f"{self.prefix}{layer}.{found['rest']}"


def find_layout(names: Iterable[str], config: Mapping[str, Any], where: str) -> Layout:
    """Find the numbered layers of a model and prove them against its configuration.

    Args:
        names: All tensor names of the checkpoint.
        config: The parsed `config.json`.
        where: What to call the model in an error.

    Raises:
        CheckpointError: If no prefix has exactly the layers 0 to depth - 1.
    """
    depth = stated_depth(config, where)
    layers: dict[str, set[int]] = {}
    for name in names:
        if found := _NUMBERED.match(name):
            layers.setdefault(found["prefix"], set()).add(int(found["layer"]))
    fitting = [prefix for prefix, seen in layers.items() if seen == set(range(depth))]
    if len(fitting) != 1:
        seen = {prefix: len(numbers) for prefix, numbers in layers.items()}
        raise CheckpointError(
            f"{where}: config.json states {depth} layers, but the tensor names show "
            f"{seen or 'no numbered layers'}; expected exactly one prefix with {depth} layers. "
            "Models of several parts (encoder-decoder, vision) can't be opened yet"
        )
    return Layout(fitting[0], depth)


def stated_depth(config: Mapping[str, Any], where: str) -> int:
    """Number of layers that a configuration states.

    Raises:
        CheckpointError: If it states none.
    """
    for key in DEPTH_KEYS:
        if isinstance(depth := config.get(key), int):
            return depth
    raise CheckpointError(
        f"{where}: config.json has none of {', '.join(DEPTH_KEYS)}, so its depth is unknown"
    )


def role(name: str) -> str:
    """Coarse role of a tensor outside the layers: `embedding`, `head` or `rest` (final norm)."""
    if any(part in name for part in _HEADS):
        return "head"
    return "embedding" if any(part in name for part in _EMBEDDINGS) else "rest"


def with_depth(
    config: Mapping[str, Any], origins: Sequence[tuple[Mapping[str, Any], int]]
) -> dict[str, Any]:
    """A configuration for another stack of layers.

    Args:
        config: The parsed `config.json` of the model that gives the configuration.
        origins: For each output layer, the configuration of the model that it comes from and its
            number there, `(depth,)`.

    Returns:
        A copy with the new depth; lists with one entry per layer (`layer_types`) follow the
        layers that they describe.
    """
    key = next((key for key in DEPTH_KEYS if isinstance(config.get(key), int)), DEPTH_KEYS[0])
    depth = config.get(key)
    changed = dict(config)
    for name, value in config.items():
        if isinstance(value, list) and len(value) == depth and name != "architectures":  # pyright: ignore[reportUnknownArgumentType]
            changed[name] = [giver.get(name, value)[layer] for giver, layer in origins]
    return changed | {key: len(origins)}
