"""Do two parents fit: family, stacks and configuration, before any tensor is looked at.

Equal shapes don't mean equal functions: 4 heads of width 8 and 8 heads of width 4 have the same
matrices. Configurations are compared word by word; what only shifts the function is a warning.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch

from merge_core.checkpoint import Checkpoint
from merge_core.errors import RecipeError

# Words in keys under which equal matrices hold different things.
_MEANING = re.compile(
    r"(^|_)heads($|_)|^n_head$|head_dim|^d_kv$|(^|_)act($|_)|activation|feed_forward_proj"
    r"|multi_query|^alibi$|^parallel_attn$|parallel_residual|position_embedding_type"
)
# Keys that say nothing of the function, or of which the plan itself takes care.
_SILENT = re.compile(
    r"version|^_|^architectures$|dtype$|use_cache|cache_implementation|token_id|token_index"
    r"|vocab_size|layers$|^n_layers?$|^depth$|dropout|drop$|initializer|max_position|max_sequence"
    r"|^n_positions$|^n_ctx$|max_length|pretraining_tp|tp_plan|parallel_degree|tokenizer|^init_|auto_map|label|quantization"
    r"|^tie_|return_dict|^output_|gradient_checkpointing|task_specific|name_or_path|^summary_"
    r"|layer_types|^unsloth|^torchscript|^chunk_size|problem_type|router_aux|router_jitter"
)

# What packed weights are stored as; int64 and bool are of buffers, which nobody quantises.
_PACKED = (torch.int8, torch.uint8, torch.int16, torch.int32)


def check_fit(parent: Checkpoint, donor: Checkpoint) -> tuple[str, ...]:
    """Check that a parent is of the donor's family and that its weights mean the same.

    Returns:
        What differs in the configurations and shifts the function without changing what the
        weights mean (rope_theta, norm epsilon), one sentence each.

    Raises:
        RecipeError: If the two can't be merged; names the reason and the repair.
    """
    _check_family(parent, donor)
    _check_quantised(parent)
    _check_stacks(parent, donor)
    warnings: list[str] = []
    for key, mine, theirs in _differences(parent.config, donor.config):
        where = f"config.json: '{key}' of model '{parent.name}' is {mine!r}"
        if _MEANING.search(key.rpartition(".")[2]):
            raise RecipeError(
                f"{where} but '{donor.name}' has {theirs!r}, so equal tensors mean different "
                "things; leave one of them out, or correct the config.json that is wrong"
            )
        warnings.append(f"{where}; the merge takes {theirs!r} of '{donor.name}'")
    return tuple(warnings)


def _check_family(parent: Checkpoint, donor: Checkpoint) -> None:
    mine, theirs = parent.config.get("model_type"), donor.config.get("model_type")
    if mine != theirs:
        raise RecipeError(
            f"model '{parent.name}' is a {mine} but '{donor.name}' is a {theirs}; models of one "
            "recipe must be of one family: leave it out, or, if both compute the same, give it "
            "the other's model_type and architectures in its config.json"
        )


def _check_quantised(parent: Checkpoint) -> None:
    """Packed weights are codes: neither they nor their scales can be averaged.

    A configuration that speaks of it beside plain weights is a left-over of training.
    """
    stated = next(_quantisations(parent.config), None)
    packed = next((s for s in parent.tensors.values() if s.dtype in _PACKED), None)
    if stated is None or packed is None:
        return
    method = stated.get("quant_method")
    raise RecipeError(
        f"model '{parent.name}' is quantised{f' ({method})' if method else ''}: tensor "
        f"'{packed.name}' holds {str(packed.dtype).removeprefix('torch.')} and its config.json "
        "has a quantization_config; packed weights can't be merged: dequantise it first, or take "
        "the model that it was made from"
    )


def _quantisations(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What the configuration and those of its parts say of quantisation."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            inside = cast("Mapping[str, Any]", value)
            if key == "quantization_config":
                yield inside
            else:
                yield from _quantisations(inside)


def _check_stacks(parent: Checkpoint, donor: Checkpoint) -> None:
    mine, theirs = parent.layout.stacks, donor.layout.stacks
    names = [stack.name for stack in mine], [stack.name for stack in theirs]
    if names[0] != names[1]:
        raise RecipeError(
            f"model '{parent.name}' has the parts {', '.join(names[0])} but '{donor.name}' has "
            f"{', '.join(names[1])}; save both from the same class of transformers"
        )
    for one, other in zip(mine, theirs, strict=True):
        if not (one.prefix.endswith(other.prefix) or other.prefix.endswith(one.prefix)):
            raise RecipeError(
                f"model '{parent.name}' calls its layers '{one.prefix}…' but '{donor.name}' calls "
                f"them '{other.prefix}…'; load and save both with transformers' save_pretrained"
            )


def _differences(
    mine: Mapping[str, Any], theirs: Mapping[str, Any]
) -> Iterator[tuple[str, object, object]]:
    """Keys that both state and on which they differ; what one leaves out is its default."""
    one, other = dict(_flat(mine)), dict(_flat(theirs))
    for key in sorted(one.keys() & other.keys()):
        if one[key] != other[key] and not _SILENT.search(key.rpartition(".")[2]):
            yield key, one[key], other[key]


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every value by its dotted key; rope's own mapping counts as part of its configuration."""
    for key, value in config.items():
        if not isinstance(value, Mapping):
            if value is not None:
                yield prefix + key, value
        elif not _SILENT.search(key):
            inside = prefix if key in {"rope_parameters", "rope_scaling"} else f"{prefix}{key}."
            yield from _flat(cast("Mapping[str, Any]", value), inside)
