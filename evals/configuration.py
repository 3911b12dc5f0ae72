# pyright: standard
"""`config.json` as transformers reads it, and what it says of each layer."""

from collections.abc import Iterator, Mapping
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from evals.errors import EvaluationError

Config = Mapping[str, Any]
_DEEPER = 4  # times a parent's depth: what a rule says of layers that a plan may add
_ENTRIES = (bool, int, float, str, type(None))


def parse_config(config: Config, where: str) -> Any:
    """Make transformers' configuration object.

    Args:
        config: The `config.json`; it isn't changed.
        where: What to call it in an error.

    Raises:
        EvaluationError: If the family is unknown or the class refuses a value.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in CONFIG_MAPPING:
        own = "; it brings code of its own, which is never run" if "auto_map" in config else ""
        raise EvaluationError(f"{where}: transformers knows no model_type '{family}'{own}")
    # A copy to the bottom: configuration classes change nested values in place.
    clean = {key: _decoded(value) for key, value in config.items() if key != "quantization_config"}
    try:
        return CONFIG_MAPPING[family].from_dict(clean)
    except Exception as error:  # a configuration class may fail in any way on what it didn't expect
        reason = " ".join(str(error).split())
        raise EvaluationError(f"{where}: its config.json can't be read: {reason}") from None


def decoder_config(parsed: Any) -> Any:
    """The part of a configuration object that describes the language model's layers."""
    return parsed.get_text_config(decoder=True)


def decoder_part(parsed: Any) -> str | None:
    """Under which key that part stands; None where it is the configuration itself."""
    found = decoder_config(parsed)
    return next((name for name, part in vars(parsed).items() if part is found), None)


def layer_lists(part: Any) -> tuple[str, ...]:
    """Names of the lists with one entry per layer in the language model's configuration."""
    depth = part.num_hidden_layers
    return tuple(
        name
        for name, value in vars(part).items()
        if isinstance(value, list)
        and len(value) == depth
        and (depth == 1 or value != list(range(depth)))  # numbers of layers, here of all
        and name != "architectures"
        and not name.endswith("token_id")
        and all(isinstance(entry, _ENTRIES) for entry in value)
    )


def with_layer_lists(config: Config) -> Config:
    """State what a configuration leaves to a rule by a layer's number, as lists with an entry each.

    Gemma 2 and 3 alternate sliding and full attention (`sliding_window_pattern`), Qwen 2 begins to
    slide at `max_window_layers`, SmolLM3 leaves out rotary positions in every fourth layer. Stated
    layer by layer, that goes with the layers where a plan moves them, and every version of
    transformers that derives the lists reads them too.

    Returns:
        The same where nothing depends on a layer's number, or where transformers doesn't know the
        family.
    """
    try:
        parsed = parse_config(config, "")
    except EvaluationError:
        return config  # whoever builds a model of it says so
    key = decoder_part(parsed)
    stated: Config = config if key is None else config.get(key) or {}
    found = dict(_ruled(config, key, stated, parsed))
    if not found:
        return config
    return {**config, **found} if key is None else {**config, key: {**stated, **found}}


def _ruled(
    config: Config, key: str | None, stated: Config, parsed: Any
) -> Iterator[tuple[str, list[Any]]]:
    """The lists that aren't stated and whose entries differ, here or in a deeper model."""
    part = decoder_config(parsed)
    missing = [name for name in layer_lists(part) if stated.get(name) is None]
    deeper = _deeper(config, key, stated, part) if missing else None
    for name in missing:
        entries = list(getattr(part, name))
        more = getattr(deeper, name, None) or entries
        if len({*entries, *more}) > 1:
            yield name, entries


def _deeper(config: Config, key: str | None, stated: Config, part: Any) -> Any:
    """The same part of a deeper model's configuration; None if its class refuses it."""
    names = (part.attribute_map.get("num_hidden_layers"), "num_hidden_layers")
    depths = {name: _DEEPER * stated[name] for name in names if name in stated}
    changed = {**stated, **depths}
    try:
        deeper = parse_config(changed if key is None else {**config, key: changed}, "")
    except EvaluationError:
        return None
    return decoder_config(deeper)


def _decoded(value: object) -> object:
    """A copy, its infinities read: they are written as `{"__float__": "Infinity"}`."""
    if isinstance(value, Mapping):
        if "__float__" in value:
            return float(str(value["__float__"]))
        return {key: _decoded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_decoded(entry) for entry in value]
    return value
