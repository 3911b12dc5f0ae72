"""The `tokenizer` block of a recipe: whose vocabulary the output has, and whose rows its tokens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from merge_core.errors import RecipeError
from merge_core.keys import check_keys, read_model

UNION, BASE = "union", "base"
_KINDS = ("zero", "model_token")


@dataclass(frozen=True, slots=True)
class TokenSource:
    """Where the rows of one token come from.

    Attributes:
        token: The token of the output.
        model: The model that gives its rows; None for rows of zeros.
        take: The giver's token, or its number in the giver; None for the token itself.
        force: Whether models that have the token give up their own row too.
    """

    token: str
    model: str | None
    take: str | int | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class TokenizerBlock:
    """Which tokenizer the output has.

    Attributes:
        source: `union`, `base`, or a model.
        tokens: Tokens whose rows are given explicitly, sorted by token.
        pad_to_multiple_of: Rows of the output's matrices are a multiple of it.
    """

    source: str = UNION
    tokens: tuple[TokenSource, ...] = ()
    pad_to_multiple_of: int | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """The models that it names."""
        named = (self.source,) if self.source not in (UNION, BASE) else ()
        return tuple(dict.fromkeys([*named, *(t.model for t in self.tokens if t.model)]))

    def renamed(self, name: Callable[[str], str]) -> "TokenizerBlock":
        """The same block with other names for its models."""
        source = self.source if self.source in (UNION, BASE) else name(self.source)
        tokens = (replace(t, model=name(t.model) if t.model else None) for t in self.tokens)
        return replace(self, source=source, tokens=tuple(tokens))


def read_tokenizer(recipe: Mapping[str, Any]) -> TokenizerBlock | None:
    """Read `tokenizer_source` or `tokenizer` of a recipe; None if it has neither.

    Raises:
        RecipeError: If it has both, or a key or value that is not known.
    """
    short, block = recipe.get("tokenizer_source"), recipe.get("tokenizer")
    if short is not None and block is not None:
        raise RecipeError("recipe: give 'tokenizer_source' or 'tokenizer', not both")
    if short is not None:
        return TokenizerBlock(read_model(short, "recipe.tokenizer_source"))
    if block is None:
        return None
    data = _mapping(block, "recipe.tokenizer")
    check_keys(data, ("source", "tokens", "pad_to_multiple_of"), "recipe.tokenizer")
    source = read_model(data.get("source", UNION), "recipe.tokenizer.source")
    tokens = _mapping(data.get("tokens") or {}, "recipe.tokenizer.tokens")
    read = sorted((_token(str(t), entry) for t, entry in tokens.items()), key=lambda t: t.token)
    return TokenizerBlock(source, tuple(read), _multiple(data.get("pad_to_multiple_of")))


def tokenizer_dict(block: TokenizerBlock | None) -> dict[str, Any] | None:
    """The block in mergekit's dictionary form; the inverse of `read_tokenizer`."""
    if block is None:
        return None
    tokens = {t.token: _token_dict(t) for t in block.tokens}
    found = {
        "source": block.source,
        "tokens": tokens,
        "pad_to_multiple_of": block.pad_to_multiple_of,
    }
    return {key: value for key, value in found.items() if value}


def _token(token: str, entry: object) -> TokenSource:
    where = f"recipe.tokenizer.tokens.{token}"
    data = _mapping(entry, where)
    check_keys(data, ("source", "force"), where)
    force = data.get("force", False)
    if not isinstance(force, bool):
        raise RecipeError(f"{where}.force: expected true or false, got {force!r}")
    if "source" not in data:
        raise RecipeError(f"{where}: 'source' is missing; name a model, or {{kind: zero}}")
    source = data["source"]
    if not isinstance(source, Mapping) or "kind" not in source:
        return TokenSource(
            token, read_model(cast("object", source), f"{where}.source"), None, force
        )
    return _kind(token, cast("Mapping[str, Any]", source), f"{where}.source", force)


def _kind(token: str, data: Mapping[str, Any], where: str, force: bool) -> TokenSource:
    if data["kind"] not in _KINDS:
        raise RecipeError(f"{where}.kind: expected {' or '.join(_KINDS)}, got {data['kind']!r}")
    if data["kind"] == "zero":
        check_keys(data, ("kind",), where)
        return TokenSource(token, None, None, force)
    check_keys(data, ("kind", "model", "token", "token_id"), where)
    model = read_model(data.get("model"), f"{where}.model")
    take, number = data.get("token"), data.get("token_id")
    if (take is None) == (number is None):
        raise RecipeError(f"{where}: give 'token' or 'token_id', one of them")
    if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
        raise RecipeError(f"{where}.token_id: expected a whole number, got {number!r}")
    return TokenSource(token, model, str(take) if number is None else number, force)


def _token_dict(source: TokenSource) -> dict[str, Any]:
    given: Any = source.model
    if source.model is None:
        given = {"kind": "zero"}
    elif source.take is not None:
        key = "token_id" if isinstance(source.take, int) else "token"
        given = {"kind": "model_token", "model": source.model, key: source.take}
    return {"source": given} | ({"force": True} if source.force else {})


def _multiple(value: object) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise RecipeError(
        f"recipe.tokenizer.pad_to_multiple_of: expected a whole number above 0, got {value!r}"
    )


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where}: expected a mapping, got {value!r}")
    return cast("Mapping[str, Any]", value)
