"""Where a tensor sits in its model, read from its name: stack, layer number and role.

No table per architecture. The layer number is the first number in a tensor's name; the stack is
what stands before it, proved by the depth that the configuration states. A model of several
stacks (encoder and decoder, vision and text) states several depths; the words that a stack's name
and its key in the configuration share say which belongs to which.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from merge_core.errors import CheckpointError

Key = tuple[str, ...]
"""Where a value stands in a configuration: `("text_config", "num_hidden_layers")`."""

DEFAULT = "default"
DEPTH_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "depth")
_PART_KEYS = ("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers")
_NUMBERED = re.compile(r"^(?P<prefix>(?:[^.]+\.)*?)(?P<layer>\d+)\.(?P<rest>.+)$")
_HEADS = ("lm_head", "embed_out", "output.weight", "cls.predictions")
_EMBEDDINGS = ("embed", "wte.", "wpe.", "shared.")
# Words by which the parts of a model are called; words of one line exclude those of the next.
_SIDES = ({"encoder": ("encoder",)}, {"decoder": ("decoder",)})
_SENSES = (
    {"text": ("text", "language")},
    {"vision": ("vision", "visual", "image")},
    {"audio": ("audio", "speech")},
)
_MODULES = {
    "vision": "vision_tower",
    "audio": "audio_tower",
    "encoder": "encoder",
    "text": "text_decoder",
    "decoder": "decoder",
}


@dataclass(frozen=True, slots=True)
class Stack:
    """One run of numbered layers.

    Attributes:
        name: What recipes call it under `modules`; `default` where it is the only one.
        prefix: What stands before the layer number, with its dot: `model.layers.`.
        depth: Number of layers.
        key: Where the configuration states the depth.
        root: The part of `prefix` that tells it from the other stacks; empty for the only one.
    """

    name: str
    prefix: str
    depth: int
    key: Key = DEPTH_KEYS[:1]
    root: str = ""

    def layer(self, name: str) -> int | None:
        """Layer of the tensor, or None for one that is not in this stack's layers."""
        found = _NUMBERED.match(name)
        return int(found["layer"]) if found and found["prefix"] == self.prefix else None


@dataclass(frozen=True, slots=True)
class Layout:
    """How a checkpoint numbers its layers: its stacks, in the order in which data runs."""

    stacks: tuple[Stack, ...]

    @property
    def depth(self) -> int:
        """Number of layers, all stacks together."""
        return sum(stack.depth for stack in self.stacks)

    def stack(self, name: str) -> Stack | None:
        """The stack in whose layers the tensor is."""
        found = _NUMBERED.match(name)
        prefix = found["prefix"] if found else None
        return next((stack for stack in self.stacks if stack.prefix == prefix), None)

    def layer(self, name: str) -> int | None:
        """Layer of the tensor, or None for one outside the layers (embeddings, norm, head)."""
        stack = self.stack(name)
        return stack.layer(name) if stack else None

    def moved(self, name: str, layer: int) -> str:
        """The name of the same tensor in another layer."""
        found = _NUMBERED.match(name)
        if found is None or all(found["prefix"] != stack.prefix for stack in self.stacks):
            return name
        return f"{found['prefix']}{layer}.{found['rest']}"

    def owner(self, name: str) -> Stack:
        """The stack with which a tensor outside the layers goes.

        By its name (`decoder.final_layer_norm` goes with the decoder), else embeddings with the
        first stack and everything else (a shared head, a projector) with the last.
        """
        mine = [stack for stack in self.stacks if name.startswith(stack.root)]
        if mine:
            return max(mine, key=lambda stack: len(stack.root))
        return self.stacks[0 if role(name) == "embedding" else -1]


def find_layout(names: Iterable[str], config: Mapping[str, Any], where: str) -> Layout:
    """Find the numbered layers of a model and prove them against its configuration.

    Args:
        names: All tensor names of the checkpoint.
        config: The parsed `config.json`.
        where: What to call the model in an error.

    Raises:
        CheckpointError: If a stated depth and the numbers in the names contradict each other.
    """
    depths = _depths(config, where)
    layers: dict[str, set[int]] = {}
    for name in names:
        if found := _NUMBERED.match(name):
            layers.setdefault(found["prefix"], set()).add(int(found["layer"]))
    claims: dict[Key, list[str]] = {}
    for prefix in layers:
        if key := _closest(prefix, depths):
            claims.setdefault(key, []).append(prefix)
    pairs = [
        (key, _proved(key, depths[key], {p: layers[p] for p in claims[key]}, where))
        for key in depths
        if key in claims
    ]
    if not pairs:
        raise _contradiction(next(iter(depths)), next(iter(depths.values())), {}, where)
    return _layout(pairs, depths)


@lru_cache(maxsize=1024)
def role(name: str) -> str:
    """Coarse role of a tensor outside the layers: `embedding`, `head` or `rest` (final norm)."""
    if any(part in name for part in _HEADS) or name.startswith("head."):
        return "head"
    return "embedding" if any(part in name for part in _EMBEDDINGS) else "rest"


def with_depth(
    config: Mapping[str, Any], key: Key, origins: Sequence[tuple[Mapping[str, Any], int]]
) -> dict[str, Any]:
    """A configuration for another stack of layers.

    Args:
        config: The parsed `config.json` of the model that gives the configuration.
        key: Where it states the depth of the stack.
        origins: For each output layer, the configuration of the model that it comes from and its
            number there, `(depth,)`.

    Returns:
        A copy with the new depth; lists with one entry per layer (`layer_types`) follow the
        layers that they describe.
    """
    name, *inside = key
    if inside:
        inner = [(cast("Mapping[str, Any]", giver[name]), layer) for giver, layer in origins]
        return {**config, name: with_depth(config[name], tuple(inside), inner)}
    depth = config[name]
    changed = dict(config)
    for other, value in config.items():
        if isinstance(value, list) and len(value) == depth and other != "architectures":  # pyright: ignore[reportUnknownArgumentType]
            changed[other] = [giver.get(other, value)[layer] for giver, layer in origins]
    # BART and Whisper state the encoder's depth twice.
    aliases = [alias for alias in DEPTH_KEYS if alias in config and name == "encoder_layers"]
    return changed | dict.fromkeys([name, *aliases], len(origins))


def _depths(config: Mapping[str, Any], where: str) -> dict[Key, int]:
    """Every depth that a configuration states, by where it stands."""
    depths = dict(_stated(config))
    for name, part in config.items():
        if isinstance(part, Mapping):
            depths |= {(name, *key): d for key, d in _stated(cast("Mapping[str, Any]", part))}
    if not depths:
        raise CheckpointError(
            f"{where}: config.json has none of {', '.join(DEPTH_KEYS)}, so its depth is unknown"
        )
    return depths


def _stated(config: Mapping[str, Any]) -> Iterator[tuple[Key, int]]:
    """The first general depth and those of named parts; several general ones are aliases."""
    general = [key for key in DEPTH_KEYS if isinstance(config.get(key), int)]
    parts = [key for key in _PART_KEYS if isinstance(config.get(key), int)]
    # BART's num_hidden_layers repeats its encoder_layers; T5's num_layers is its encoder's own.
    alone = not any("encoder" in key for key in parts)
    for key in [*general[: 1 if alone else 0], *parts]:
        yield (key,), config[key]


def _closest(prefix: str, depths: Mapping[Key, int]) -> Key | None:
    """The stated depth whose words speak of the prefix, or at least of nothing else.

    A prefix without such words (`model.layers.`) is the text part's where there is one.
    """
    mine = _words(prefix)
    words = {key: _words(" ".join(key)) for key in depths}
    fitting = [key for key in depths if not _exclude(mine, words[key])]
    plain = frozenset({"text"})
    return max(fitting, key=lambda k: (len(mine & words[k]), words[k] <= plain), default=None)


def _words(text: str) -> frozenset[str]:
    groups = (*_SIDES, *_SENSES)
    return frozenset(
        word for group in groups for word, forms in group.items() if any(f in text for f in forms)
    )


def _exclude(mine: frozenset[str], theirs: frozenset[str]) -> bool:
    for groups in (_SIDES, _SENSES):
        words = {word for group in groups for word in group}
        if mine & words and theirs & words and not mine & theirs & words:
            return True
    return False


def _proved(key: Key, depth: int, claims: Mapping[str, set[int]], where: str) -> str:
    """The one prefix with exactly the layers 0 to depth - 1; other numbered lists may be."""
    fitting = [prefix for prefix, seen in claims.items() if seen == set(range(depth))]
    if len(fitting) != 1:
        raise _contradiction(key, depth, claims, where)
    return fitting[0]


def _contradiction(
    key: Key, depth: int, claims: Mapping[str, set[int]], where: str
) -> CheckpointError:
    seen = {prefix: len(numbers) for prefix, numbers in sorted(claims.items())}
    return CheckpointError(
        f"{where}: config.json states {depth} layers, but the tensor names show "
        f"{seen or 'no numbered layers'}; expected exactly one prefix with the layers 0 to "
        f"{depth - 1} for '{'.'.join(key)}': state the depth that the weights have, or copy the "
        "missing files again"
    )


def _layout(pairs: Sequence[tuple[Key, str]], depths: Mapping[Key, int]) -> Layout:
    """Name the stacks and order them: encoders before decoders, other senses before text."""
    if len(pairs) == 1:
        key, prefix = pairs[0]
        return Layout((Stack(DEFAULT, prefix, depths[key], key),))
    prefixes = [prefix for _, prefix in pairs]
    names = [_name(key, prefix) for key, prefix in pairs]
    if len(set(names)) < len(names):
        names = [prefix.rstrip(".") for prefix in prefixes]
    stacks = [
        Stack(name, prefix, depths[key], key, _root(prefix, prefixes))
        for name, (key, prefix) in zip(names, pairs, strict=True)
    ]
    late = {"decoder", "text_decoder"}
    return Layout(tuple(sorted(stacks, key=lambda stack: (stack.name in late, stack.prefix))))


def _name(key: Key, prefix: str) -> str:
    """What mergekit calls the stack of a model of several."""
    words = _words(prefix) | _words(" ".join(key))
    for word, name in _MODULES.items():
        if word in words:
            return name
    return "text_decoder"  # beside a vision tower: model.layers


def _root(prefix: str, prefixes: Sequence[str]) -> str:
    """The shortest beginning of a prefix that no other prefix has."""
    parts = prefix.rstrip(".").split(".")
    roots = (".".join(parts[: n + 1]) + "." for n in range(len(parts)))
    others = [other for other in prefixes if other != prefix]
    return next((r for r in roots if not any(o.startswith(r) for o in others)), prefix)
