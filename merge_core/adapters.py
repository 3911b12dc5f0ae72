"""LoRA adapters (peft's format) as parents: W' = W + scale * B A, made when first asked for.

LoRA: arXiv:2106.09685; its rank-stabilised scale: arXiv:2312.03732; DoRA: arXiv:2402.09353. All
arithmetic is in float32 (float64 if W is) and is rounded once, to the dtype of W.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from merge_core.checkpoint import Checkpoint, Derivation, Reader, TensorSpec, read_header
from merge_core.errors import CheckpointError
from merge_core.naming import role

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PART = re.compile(
    r"^(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|"
    r"lora_magnitude_vector)(\.default)?(\.weight)?$"
)
# What changes the forward pass in ways that no weight of the model can hold, or that hold only
# while the adapter is not merged.
_REFUSED = {
    "lora_bias": "it adds biases that the model has no place for; train it without lora_bias",
    "layer_replication": "it repeats layers; write them as slices of the recipe",
    "alora_invocation_tokens": "it acts after certain tokens only, which no weights can express",
    "trainable_token_indices": "it trains single tokens; merge it with peft's merge_and_unload",
    "use_qalora": "it is made for a quantised base; merge it with peft's merge_and_unload",
}
# Other ways to start (pissa, olora, corda, loftq) change the base when the adapter is loaded.
_STARTS = (True, False, None, "gaussian", "eva")


@dataclass(frozen=True, slots=True)
class Replaced:
    """A tensor that the adapter brings whole (`modules_to_save`, biases)."""

    path: Path
    key: str
    dtype: torch.dtype

    @property
    def files(self) -> tuple[Path, ...]:
        """The adapter's weights."""
        return (self.path,)

    def build(self, reader: Reader) -> torch.Tensor:
        """The adapter's tensor in the model's dtype."""
        return reader.stored(self.path, self.key).to(self.dtype)


@dataclass(frozen=True, slots=True)
class LowRank:
    """A weight with a low-rank change.

    Attributes:
        of: The model without it.
        name: The weight.
        folder: The adapter.
        down: Key of A, `(rank, in)`.
        up: Key of B, `(out, rank)`.
        magnitude: Key of DoRA's column norms, `(out,)`.
        scale: Factor of B A.
        transposed: Whether the weight is stored as `(in, out)`: GPT-2's, and embeddings.
    """

    of: Checkpoint
    name: str
    folder: Path
    down: str
    up: str
    magnitude: str | None
    scale: float
    transposed: bool

    @property
    def files(self) -> tuple[Path, ...]:
        """The adapter, and what a replaced weight depends on."""
        before = self.of.derived.get(self.name)
        own = (self.folder / CONFIG, self.folder / WEIGHTS)
        return (*(before.files if before else ()), *own)

    def build(self, reader: Reader) -> torch.Tensor:
        """W + scale * B A; with DoRA each output row then gets its trained length."""
        weight = reader.of(self.of, self.name)
        path = self.folder / WEIGHTS
        wide = torch.promote_types(weight.dtype, torch.float32)
        up, down = (reader.stored(path, key).to(wide) for key in (self.up, self.down))
        change = (up @ down).mul_(self.scale)
        changed = (change.T if self.transposed else change) + weight.to(wide)
        if self.magnitude is not None:
            length = reader.stored(path, self.magnitude).to(wide).reshape(-1)
            rows = changed.T if self.transposed else changed
            rows.mul_((length / rows.square().sum(dim=1).sqrt()).unsqueeze(1))
        return changed.to(weight.dtype).contiguous()


def with_adapter(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """A model with an adapter merged into it, from headers alone.

    Args:
        checkpoint: The model that the adapter was trained on.
        folder: A peft folder: `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
        The same model with derived tensors where the adapter changes it.

    Raises:
        CheckpointError: If the folder is no LoRA adapter, or doesn't fit the model.
    """
    where = f"adapter {folder} of model '{checkpoint.name}'"
    config = _read_config(folder, where)
    stored = _read_weights(folder, where)
    whole, parts = _sorted_out(stored)
    replaced = _with_replaced(checkpoint, folder, whole, where)
    changed: dict[str, Derivation] = dict(replaced.derived)
    for module, keys in parts.items():
        name = _target(checkpoint, f"{module}.weight", next(iter(keys.values())).name, where)
        changed[name] = _low_rank(replaced, folder, config, module, name, keys, where)
    return replace(replaced, derived=changed)


def _read_config(folder: Path, where: str) -> Mapping[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{where}: there is no {CONFIG}; give a folder that peft has saved")
    try:
        config: object = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{where}: {CONFIG} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{where}: {CONFIG} holds no JSON object")
    config = cast("dict[str, Any]", config)
    _check_kind(config, where)
    return config


def _check_kind(config: Mapping[str, Any], where: str) -> None:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise CheckpointError(
            f"{where}: it is a {kind} adapter, and only LoRA is a change of weights that can be "
            "merged here; merge it into its model with peft and name the result"
        )
    for key, reason in _REFUSED.items():
        if config.get(key):
            raise CheckpointError(f"{where}: {key} is set: {reason}")
    if (start := config.get("init_lora_weights", True)) not in _STARTS:
        raise CheckpointError(
            f"{where}: init_lora_weights '{start}' changes the base model when it is loaded; "
            "save it with peft's path_initial_model_for_weight_conversion"
        )


def _read_weights(folder: Path, where: str) -> Mapping[str, TensorSpec]:
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        raise CheckpointError(
            f"{where}: there is no {WEIGHTS}"
            + (
                "; adapter_model.bin is pickled and is never loaded, so save it again with "
                "safe_serialization"
                if pickled
                else "; copy the adapter again"
            )
        )
    return read_header(folder / WEIGHTS, where)


def _sorted_out(
    stored: Mapping[str, TensorSpec],
) -> tuple[dict[str, TensorSpec], dict[str, dict[str, TensorSpec]]]:
    """Whole tensors by the model's name for them, and the parts of each low-rank change."""
    whole: dict[str, TensorSpec] = {}
    parts: dict[str, dict[str, TensorSpec]] = {}
    for key, spec in stored.items():
        name = key.removeprefix(_PREFIX)
        if found := _PART.match(name):
            parts.setdefault(found["module"], {})[found["part"]] = spec
        else:
            plain = name.replace(".modules_to_save.default.", ".").replace(".base_layer.", ".")
            whole[plain.replace(".modules_to_save.", ".")] = spec
    return whole, parts


def _with_replaced(
    checkpoint: Checkpoint, folder: Path, whole: Mapping[str, TensorSpec], where: str
) -> Checkpoint:
    changed: dict[str, Derivation] = dict(checkpoint.derived)
    for name, spec in whole.items():
        target = _target(checkpoint, name, spec.name, where)
        own = checkpoint.tensors[target]
        if own.shape != spec.shape:
            raise CheckpointError(
                f"{where}: tensor '{spec.name}' has shape {spec.shape} but '{target}' of the model "
                f"has {own.shape}; an adapter that resizes its model (a longer vocabulary) has to "
                "be merged into it with peft first"
            )
        changed[target] = Replaced(folder / WEIGHTS, spec.name, own.dtype)
    return replace(checkpoint, derived=changed)


def _target(checkpoint: Checkpoint, name: str, key: str, where: str) -> str:
    """The model's name for a tensor; some models are saved without their head's prefix, or with."""
    for candidate in _spellings(name, checkpoint.tensors):
        if candidate in checkpoint.tensors:
            return candidate
    tied = checkpoint.ties_embeddings and role(name) == "head"
    raise CheckpointError(
        f"{where}: tensor '{key}' belongs to '{name}', which the model does not have; "
        + (
            "it ties its head to its embeddings, so merge the adapter with peft and save untied"
            if tied
            else "give the model that the adapter was trained on"
        )
    )


def _spellings(name: str, known: Mapping[str, TensorSpec]) -> Iterator[str]:
    yield name
    yield name.partition(".")[2]
    longer = [own for own in known if own.endswith(f".{name}")]
    if len(longer) == 1:
        yield longer[0]


def _low_rank(
    of: Checkpoint,
    folder: Path,
    config: Mapping[str, Any],
    module: str,
    name: str,
    keys: Mapping[str, TensorSpec],
    where: str,
) -> LowRank:
    embedding = "lora_embedding_A" in keys
    down, up = (keys.get(f"lora_{'embedding_' if embedding else ''}{part}") for part in "AB")
    if down is None or up is None:
        raise CheckpointError(f"{where}: module '{module}' lacks lora_A or lora_B; save it again")
    magnitude = keys.get("lora_magnitude_vector")
    if embedding and magnitude is not None:
        raise CheckpointError(
            f"{where}: DoRA on the embedding '{module}' can't be merged here; merge the adapter "
            "into its model with peft and name the result"
        )
    shape = of.tensors[name].shape
    transposed = _transposed(down, up, shape, bool(config.get("fan_in_fan_out")) or embedding)
    if transposed is None:
        raise CheckpointError(
            f"{where}: {up.shape} x {down.shape} of module '{module}' does not give the shape "
            f"{shape} of '{name}'; give the model that the adapter was trained on"
        )
    scale = _scale(config, module, down.shape[0], where)
    dora = magnitude.name if magnitude else None
    return LowRank(of, name, folder, down.name, up.name, dora, scale, transposed)


def _transposed(
    down: TensorSpec, up: TensorSpec, shape: tuple[int, ...], stated: bool
) -> bool | None:
    """Whether the weight is stored transposed; None if it fits neither way.

    peft writes one `fan_in_fan_out` for a whole model, though GPT-2's head is an ordinary layer:
    the shape decides, and the flag where both fit.
    """
    if len(down.shape) != 2 or len(up.shape) != 2 or up.shape[1] != down.shape[0]:
        return None
    change = (up.shape[0], down.shape[1])
    fitting = {False: change == shape, True: change[::-1] == shape}
    return next((way for way in (stated, not stated) if fitting[way]), None)


def _scale(config: Mapping[str, Any], module: str, rank: int, where: str) -> float:
    """Alpha / rank, or alpha / sqrt(rank) with use_rslora; a pattern for the module goes first."""
    alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise CheckpointError(f"{where}: lora_alpha must be a number, got {alpha!r}")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pattern(patterns: object, module: str, default: object) -> object:
    """The value of the first pattern that ends the module's name; peft's rule."""
    for pattern, value in cast("Mapping[str, object]", patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
