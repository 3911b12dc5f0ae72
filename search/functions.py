"""A user's own function as an objective: `function: ./scorer.py:name`.

The study names the file, so running it is asked for.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch

from search.errors import ScorerError


@dataclass(frozen=True, slots=True)
class Scorer:
    """A user's function.

    Attributes:
        name: As the study calls it.
        function: From the live model and its tokenizer to a figure.
        digest: sha256 of the file that it is from.
    """

    name: str
    function: Callable[[Any, Any], Any]
    digest: str

    def figure(self, model: Any, tokenizer: Any, seed: int) -> float:
        """What the function says of a live model.

        Args:
            model: The transformers model, which the function leaves as it is.
            tokenizer: Its tokenizer.
            seed: Of torch, so that all candidates meet the same chance.

        Raises:
            ScorerError: If it fails, or gives no finite number.
        """
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        try:
            with torch.inference_mode():
                given = self.function(model, tokenizer)
                found = _mean(given)
        except (Exception, SystemExit) as error:  # a user's own code can fail in any way
            reason = f"{type(error).__name__}: {error}"
            raise ScorerError(f"function '{self.name}' failed: {reason}") from error
        if found is None or not math.isfinite(found):
            raise ScorerError(
                f"function '{self.name}' gave {str(given)[:60]}; expected a finite number, or a "
                "list of them"
            )
        return found


def load_scorer(text: str, folder: Path) -> Scorer:
    """Run a file and take a function from it.

    Args:
        text: `file.py:name`.
        folder: What a relative path is relative to.

    Raises:
        ScorerError: If there is no such file or function, the file fails, or the function can't be
            called with a model and a tokenizer.
    """
    place, _, name = text.rpartition(":")
    path = (folder / Path(place).expanduser()).resolve()
    if not path.is_file():
        raise ScorerError(f"there is no file {path}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    spec = spec_from_file_location(f"outcross_scorer_{digest[:16]}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's own code
        raise ScorerError(f"{path} fails: {type(error).__name__}: {error}") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise ScorerError(f"{path} has no function '{name}'")
    _check_arguments(function, f"{path}: '{name}'")
    return Scorer(name, function, digest)


def _check_arguments(function: Callable[..., Any], where: str) -> None:
    """Refuse what can't be called as it will be; it isn't called."""
    try:
        known = signature(function)
    except (TypeError, ValueError):  # compiled code need not say what it takes
        return
    try:
        known.bind(None, None)
    except TypeError as error:
        raise ScorerError(
            f"{where} is called with the model and its tokenizer, but takes {known}: {error}"
        ) from None


def _mean(given: Any) -> float | None:
    """A number, or the mean of a list of them; None for anything else."""
    plain = cast("Any", given.tolist()) if isinstance(given, torch.Tensor) else given  # pyright: ignore[reportUnknownMemberType]
    if isinstance(plain, Sequence) and not isinstance(plain, str | bytes):
        values = cast("Sequence[Any]", plain)
        return sum(map(float, values)) / len(values) if values else None
    return float(plain)
