"""The model that every candidate is poured into: built once, never reloaded."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers.core_model_loading as loading
from accelerate import (  # pyright: ignore[reportMissingTypeStubs]
    init_empty_weights,  # pyright: ignore[reportUnknownVariableType]
)
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.initialization import no_init_weights

from evals.configuration import parse_config
from evals.errors import EvaluationError
from evals.packing import unpack
from evals.rewiring import Wiring


@dataclass(frozen=True, slots=True)
class Resident:
    """A live model without weights of its own.

    Attributes:
        model: In evaluation mode, on its device; its content is undefined until slots are filled.
        tokenizer: The donor's.
        slots: The model's tensors by checkpoint name, each storage once.
        wiring: Gives it the layers of another plan.
        packs: Tensors that hold several slots as views, with the slots' names.
    """

    model: PreTrainedModel
    tokenizer: Any
    slots: dict[str, torch.Tensor]
    wiring: Wiring | None = None
    packs: tuple[tuple[torch.Tensor, tuple[str, ...]], ...] = ()


def build_resident(
    config: Mapping[str, Any],
    folder: Path,
    names: Iterable[str],
    dtype: torch.dtype,
    device: torch.device,
) -> Resident:
    """Build a causal language model whose every tensor a merge will write.

    Args:
        config: The `config.json` that describes it; of several plans that it will hold, that of
            the deepest.
        folder: Model folder with the tokenizer and, perhaps, a generation configuration.
        names: The tensors that merges will write, in checkpoint names.
        dtype: Of parameters and arithmetic.
        device: Where it lives.

    Raises:
        EvaluationError: If the family is unknown, has code of its own, or has tensors that no
            merge writes or lacks some that it does.
    """
    model = build_model(config, folder, dtype).to(device)  # pyright: ignore
    wiring = Wiring(
        model,
        config,
        lambda other: parse_config(other, str(folder)),
        lambda other: build_model(other, folder, dtype, empty=True),
    )
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)  # pyright: ignore
    places = list(_places(model, names))
    slots = _match(model, places)
    return Resident(model.eval(), load_tokenizer(folder), slots, wiring, _packs(model, places))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder.

    Raises:
        EvaluationError: If it can't be loaded.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)  # pyright: ignore
    except Exception as error:  # every tokenizer family fails in its own way
        raise EvaluationError(f"{folder}: its tokenizer can't be loaded: {error}") from None


def match_slots(model: PreTrainedModel, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Pair checkpoint names with a model's tensors, one name per storage.

    transformers renames some tensors when it loads them (a prefix is missing, `embed_out` is now
    `lm_head`) and packs others (the experts of a layer); its own rules are asked.

    Raises:
        EvaluationError: If the two don't cover each other, or a packing can't be written in place.
    """
    return _match(model, list(_places(model, names)))


def _match(model: PreTrainedModel, places: Iterable["_Place"]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = dict(model.state_dict(keep_vars=True))
    slots: dict[str, torch.Tensor] = {}
    taken: set[int] = set()
    packed: dict[str, list[_Place]] = {}
    for place in places:
        if (tensor := tensors.get(place.live)) is None:
            _check_ignored(model, place.stored)
        elif place.rule is not None:
            packed.setdefault(place.live, []).append(place)
        elif tensor.data_ptr() not in taken:
            taken.add(tensor.data_ptr())
            # The parameter itself, which a merge may rebind; it is never trained.
            slots[place.stored] = tensor.requires_grad_(False)
    for live, parts in packed.items():
        taken.add(tensors[live].data_ptr())
        slots |= _unpack(tensors[live].data, parts)
    missing = [name for name, tensor in tensors.items() if tensor.data_ptr() not in taken]
    if missing:
        raise EvaluationError(
            f"{type(model).__name__} needs tensor '{missing[0]}' (and {len(missing) - 1} more), "
            "which the checkpoint does not have"
        )
    return slots


@dataclass(frozen=True, slots=True)
class _Place:
    """A checkpoint's tensor, where transformers puts it, and by which rule if it packs it."""

    stored: str
    live: str
    pattern: str
    rule: loading.WeightConverter | None


def _packs(
    model: PreTrainedModel, places: Iterable[_Place]
) -> tuple[tuple[torch.Tensor, tuple[str, ...]], ...]:
    tensors = dict(model.state_dict(keep_vars=True))
    packed: dict[str, list[str]] = {}
    for place in places:
        if place.rule is not None:
            packed.setdefault(place.live, []).append(place.stored)
    return tuple((tensors[live], tuple(names)) for live, names in packed.items())


def _places(model: PreTrainedModel, names: Iterable[str]) -> Iterator[_Place]:
    """Each checkpoint name with the name under which transformers would load it."""
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, loading.WeightRenaming)]
    packings = [rule for rule in rules if isinstance(rule, loading.WeightConverter)]
    by_pattern = {pattern: rule for rule in packings for pattern in rule.source_patterns}
    live = dict(model.state_dict())
    for name in names:
        place, pattern = loading.rename_source_key(  # pyright: ignore[reportUnknownMemberType]
            name, renamings, packings, model.base_model_prefix, live
        )
        yield _Place(name, place, pattern or "", by_pattern[pattern] if pattern else None)


def _unpack(tensor: torch.Tensor, places: list[_Place]) -> dict[str, torch.Tensor]:
    names: dict[str, list[str]] = {}
    for place in places:
        names.setdefault(place.pattern, []).append(place.stored)
    assert places[0].rule is not None
    return unpack(tensor, places[0].rule, names)


def _check_ignored(model: PreTrainedModel, name: str) -> None:
    """A tensor without a place is an error unless transformers leaves it out too."""
    # Causal masks that old checkpoints store as buffers, for one.
    ignored: list[str] = list(model._keys_to_ignore_on_load_unexpected or ())  # pyright: ignore
    if not any(re.search(pattern, name) for pattern in ignored):
        raise EvaluationError(
            f"tensor '{name}' of the checkpoint has no place in {type(model).__name__}; "
            "this family stores its weights in another form than it uses, which isn't "
            "supported yet"
        )


def build_model(
    config: Mapping[str, Any], where: Path | str, dtype: torch.dtype, *, empty: bool = False
) -> PreTrainedModel:
    """A model whose weights are undefined; an empty one's take no memory.

    Args:
        config: The `config.json` that describes it.
        where: What to call it in an error.
        dtype: Of its parameters.
        empty: Whether only its buffers are made.

    Raises:
        EvaluationError: If transformers has no such causal language model.
    """
    parsed = parse_config(config, str(where))
    space = init_empty_weights(include_buffers=False) if empty else contextlib.nullcontext()
    try:
        with no_init_weights(), space:  # a 7B model takes a minute to fill with unread numbers
            model = AutoModelForCausalLM.from_config(parsed, dtype=dtype)  # pyright: ignore
    except (ValueError, TypeError) as error:
        raise EvaluationError(f"{where}: no causal language model in it: {error}") from None
    model = cast("PreTrainedModel", model)
    model.tie_weights()  # pyright: ignore[reportUnknownMemberType]
    return model
