"""Scales of layers as factors of weights: which tensors take them, and what they are.

An input scale s multiplies the residual stream as it enters a layer (Akiba et al. 2025,
https://doi.org/10.1038/s42256-024-00975-8). Layers read the stream through norms, which don't see
its size. So with c the product of all scales so far, the same function is had by multiplying what
a layer writes by 1/c instead, and what a layer reads without a norm by c. `evals.folding` proves
on a live model that the tensors found here do that.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

from merge_core.checkpoint import Checkpoint, TensorSpec
from merge_core.errors import RecipeError
from merge_core.kinds import layer_tables
from merge_core.naming import role
from merge_core.recipe import Parameters, Setting
from merge_core.roles import tensor_role

# What the field calls the last matrix of attention, of an MLP or expert, and of other mixers.
_LAST = re.compile(
    r"^(o_proj|out_proj|c_proj|w?o|dense|down_proj|dense_4h_to_h|fc_?2|fc_?out|w2|output_linear)$"
)
# Norms at the end of a block; `post_attention_layernorm` is one only beside one of the others.
_END = re.compile(r"^post_(feed_?forward|ffn|ff|mlp|moe|self_attn)_?(layer_?|rms_?)?norm$")
_AFTER_ATTENTION = re.compile(r"^post_(attention|attn)_?(layer_?|rms_?)?norm$")
_OWN_END = re.compile(r"^post_self_attn_")
_PLAIN = ("weight", "bias")


@dataclass(frozen=True, slots=True)
class Writers:
    """Filters (parts of names, as a recipe has them) of the tensors that a scale multiplies.

    Attributes:
        writing: Of all tensors, and no others, by which layers write to the residual stream.
        reading: Of those that read the stream without a norm; none in most families.
    """

    writing: tuple[str, ...]
    reading: tuple[str, ...] = ()


def find_writers(parent: Checkpoint) -> Writers:
    """Find them from names and shapes.

    Args:
        parent: An opened model of one stack.

    Raises:
        RecipeError: If they can't be known from names and shapes; says why.
    """
    where = f"scales of '{parent.name}'"
    if len(stacks := parent.layout.stacks) != 1:
        raise RecipeError(
            f"{where}: the model has several stacks ({', '.join(s.name for s in stacks)}), which "
            "read each other's streams; leave the scales out"
        )
    layers = layer_tables(parent)[stacks[0].name]
    writing = {spec.name for table in layers for spec in _writing(table)}
    reading = {spec.name for table in layers for spec in _reading(table)}
    _check_blocks(parent, layers, writing, where)
    _check_width(parent, writing, where)
    return Writers(
        _with_packed(_filters(sorted(writing), parent, where), writing, ".experts.down_proj"),
        _with_packed(_filters(sorted(reading), parent, where), reading, ".experts.gate_up_proj"),
    )


def scale_settings(writers: Writers, factor: float) -> Parameters:
    """Passthrough's settings for a layer whose writers are multiplied by `factor`.

    Args:
        writers: From `find_writers`.
        factor: From `folded`; above 0.
    """
    if factor == 1.0:
        return ()
    settings = [Setting(text, factor) for text in writers.writing]
    settings += [Setting(text, 1.0 / factor) for text in writers.reading]
    return (("scale", tuple(settings)),)


def folded(scales: Sequence[float]) -> tuple[float, ...]:
    """From each output layer's input scale to the factor of what it writes, 1/c.

    Args:
        scales: `(layers,)`, bottom to top; 1.0 where the stream enters as it is.

    Raises:
        RecipeError: If a scale is not above 0: a norm removes a size, not a sign.
    """
    for layer, scale in enumerate(scales):
        if not (math.isfinite(scale) and scale > 0):
            raise RecipeError(
                f"scale of layer {layer}: expected a number above 0, got {scale!r}; layers see "
                "the stream through norms, which keep its sign"
            )
    return tuple(1.0 / product for product in accumulate(scales, mul))


def powers(parent: Checkpoint, writers: Writers) -> tuple[Mapping[str, int], ...]:
    """By layer: the power of the layer's factor that each of its tensors takes, 1 or -1."""
    found: list[Mapping[str, int]] = []
    for layer in range(parent.layout.depth):
        names = parent.layers[layer]
        up = {name: 1 for name in names if _matches(writers.writing, name)}
        down = {name: -1 for name in names if _matches(writers.reading, name)}
        found.append(down | up)  # a recipe tries the writers' filters first
    return tuple(found)


def _writing(table: Mapping[str, TensorSpec]) -> Iterator[TensorSpec]:
    """The last step of each block: a norm where blocks end in norms, else the last matrix."""
    ends = _end_norms(table)
    for rest, spec in table.items():
        word = _words(rest)[-1]
        if word in ends if ends else _is_last(rest):
            yield spec


def _reading(table: Mapping[str, TensorSpec]) -> Iterator[TensorSpec]:
    """All other matrices of a layer that has no norm but those that end its blocks (OLMo-2)."""
    ends = _end_norms(table)
    if not ends or _norms(table) - ends:
        return
    for rest, spec in table.items():
        if len(spec.shape) > 1 and not _is_last(rest):
            yield spec


def _end_norms(table: Mapping[str, TensorSpec]) -> set[str]:
    """Of `{input, post_attention}` none (Llama); both of `{post_attention, post_mlp}` (OLMo-2)."""
    norms = _norms(table)
    ends = {word for word in norms if _END.match(word)}
    if ends and not any(_OWN_END.match(word) for word in ends):  # GLM-4 has one beside it
        ends |= {word for word in norms if _AFTER_ATTENTION.match(word)}
    return ends


def _norms(table: Mapping[str, TensorSpec]) -> set[str]:
    """Norms of the layer itself, not those within a block."""
    return {words[0] for rest in table if len(words := _words(rest)) == 1 and "norm" in words[0]}


def _is_last(rest: str) -> bool:
    return _LAST.match(_words(rest)[-1].removesuffix("_bias")) is not None


def _words(rest: str) -> list[str]:
    """`mlp.down_proj.weight` → mlp, down_proj; packed experts have no `weight` at the end."""
    words = rest.split(".")
    return words[:-1] if words[-1] in _PLAIN and len(words) > 1 else words


def _check_blocks(
    parent: Checkpoint,
    layers: Sequence[Mapping[str, TensorSpec]],
    writing: set[str],
    where: str,
) -> None:
    """Whatever has a matrix has to write; blocks that end in norms have one for each."""
    for table in layers:
        ends = _end_norms(table)
        blocks: dict[str, list[str]] = {}
        for rest, spec in table.items():
            kind = tensor_role(spec.name, parent.layout) or _words(rest)[0]
            if kind != "norm" and len(spec.shape) > 1:
                blocks.setdefault(kind, []).append(spec.name)
        silent = [names[0] for names in blocks.values() if not writing.intersection(names)]
        if (silent and not ends) or not blocks or (ends and len(ends) < len(blocks)):
            name = silent[0] if silent else next(iter(table.values())).name
            raise RecipeError(
                f"{where}: '{name}' is of a block of which no tensor is known to write to the "
                "residual stream; leave the scales out"
            )


def _check_width(parent: Checkpoint, writing: set[str], where: str) -> None:
    """What is added to the stream has the stream's width."""
    outer = [parent.tensors[name] for name in parent.layers[None] if role(name) == "embedding"]
    width = next((spec.shape[-1] for spec in outer if len(spec.shape) > 1), None)
    for name in sorted(writing):
        if width is not None and width not in (shape := parent.tensors[name].shape):
            raise RecipeError(
                f"{where}: '{name}' has shape {shape}, which is not of the residual stream's "
                f"width, {width}; leave the scales out"
            )


def _filters(names: Sequence[str], parent: Checkpoint, where: str) -> tuple[str, ...]:
    """The fewest words that are in these names and in no others of the model."""
    others = [name for name in parent.tensors if name not in set(names)]
    found: list[str] = []
    for name in names:
        if _matches(found, name):
            continue
        fitting = (t for t in _parts(name, parent) if not any(t in other for other in others))
        if (text := next(fitting, None)) is None:
            raise RecipeError(
                f"{where}: '{name}' writes to or reads the residual stream, but no part of its "
                "name tells it from the other tensors; leave the scales out"
            )
        found.append(text)
    return tuple(sorted(found))


def _with_packed(filters: tuple[str, ...], names: Iterable[str], packed: str) -> tuple[str, ...]:
    """For mergekit 0.1.5, which merges experts as transformers 5 packs them, by that name.

    Every conversion of transformers 5.23 that packs what experts write gives it this name.
    """
    experts = any("expert" in name or "moe" in name for name in names)
    return (*filters, packed) if experts and not _matches(filters, packed) else filters


def _parts(name: str, parent: Checkpoint) -> Iterator[str]:
    """`.down_proj.`, `.down_proj`, `.down_proj.weight`, then with the word before."""
    stack = parent.layout.stacks[0]
    rest = name.removeprefix(stack.prefix).partition(".")[2]
    words = _words(rest)
    tail = f".{rest}".removeprefix("." + ".".join(words))
    for start in range(len(words) - 1, -1, -1):
        path = "." + ".".join(words[start:])
        yield from dict.fromkeys([path + tail[:1], path, path + tail])


def _matches(filters: Iterable[str], name: str) -> bool:
    return any(text in name for text in filters)
