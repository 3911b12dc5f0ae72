"""Reading mappings strictly: unknown keys are errors that name the nearest known one."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, cast

from merge_core.errors import RecipeError

# What mergekit has and what has no meaning here, with what to do instead.
_NOT_HERE = {
    "override_architecture": "leave it out; layers and roles are found from the tensors' names",
    "residual_weight": "leave it out; mergekit reads it and never uses it",
    "input_model_parameters": "write 'parameters' under each model instead",
    "layer_range": "leave it out for all layers (mergekit reads past it here), or write slices: "
    "[{sources: [{model: …, layer_range: […]}]}]",
    "random_seed": "give it on the command line: outcross merge --seed; a study has search.seed",
}


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a name that is not known: the closest known one, or all of them."""
    known = tuple(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"


def check_keys(data: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    """Refuse what is not known.

    Raises:
        RecipeError: With the nearest known key, or with what to do instead of mergekit's.
    """
    for key in data:
        if key not in known:
            hint = _NOT_HERE.get(str(key)) or nearest(str(key), known)
            raise RecipeError(f"{where}: unknown key '{key}'; {hint}")


def read_model(value: object, where: str) -> str:
    """A reference to a model as text: `path[@revision][+adapter[@revision]]`.

    Args:
        value: The text itself, or `{model: {path, revision}, lora: {path, revision}}`, or
            `{path, revision}`.
        where: Its place, for errors.

    Raises:
        RecipeError: If it is neither.
    """
    if isinstance(value, str) and value:
        return value
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where}: expected a name, got {value!r}; a model is a path or a hub id")
    data = cast("Mapping[str, object]", value)
    if "path" in data:
        return _path(data, where)
    check_keys(data, ("model", "lora"), where)
    if "model" not in data:
        raise RecipeError(f"{where}: 'model' is missing")
    model = _path(data["model"], f"{where}.model")
    return model + (f"+{_path(data['lora'], f'{where}.lora')}" if data.get("lora") else "")


def _path(value: object, where: str) -> str:
    if isinstance(value, str) and value:
        return value
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where}: expected a path or {{path, revision}}, got {value!r}")
    data = cast("Mapping[str, object]", value)
    check_keys(data, ("path", "revision"), where)
    path, revision = data.get("path"), data.get("revision")
    if not isinstance(path, str) or not isinstance(revision, str | None):
        raise RecipeError(f"{where}: expected {{path: …, revision: …}}, got {dict(data)!r}")
    return path + (f"@{revision}" if revision else "")
