"""Roles of tensors, and mergekit filters that mean the same tensors.

A role is read from the words of a tensor's name, as layers are: no table per architecture. What
has none of the words (the mixer of a state-space model, a layer's scale) has no role. Filters are
proved: each is tried on every tensor of every parent, in the order in which mergekit tries them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from merge_core.errors import RecipeError
from merge_core.naming import Layout
from merge_core.naming import role as outer_role

ROLES = ("attention", "mlp", "norm", "embedding", "head")
_NORM = re.compile(r"norm|^ln(_?\d+|_\w+)$", re.IGNORECASE)
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_MLP = re.compile(
    r"mlp|ffn|feed_?forward|moe|expert|^ff$|^fc_?(1|2|in|out)$|^intermediate$|^output$|"
    r"dense_?relu_?dense|^dense_(h_to_4h|4h_to_h)$",
    re.IGNORECASE,
)
# A norm inside of attention is a norm, so its filters come first.
_ORDER = ("norm", "embedding", "head", "attention", "mlp")

Filter = tuple[str | None, int]
"""Part of a tensor's name (None: any), and the place of its group."""


def tensor_role(name: str, layout: Layout) -> str | None:
    """The role of a tensor: one of ROLES, or None."""
    found = _found(name, layout)
    return found[0] if found else None


def role_filters(
    groups: Sequence[str], tensors: Mapping[str, Layout]
) -> tuple[tuple[Filter, ...], tuple[str, ...]]:
    """Filters that give every tensor to the group of its role.

    Args:
        groups: Roles, and perhaps "*" for all other tensors.
        tensors: The layout of the model that each tensor is of, by the tensor's name.

    Returns:
        The filters in the order in which they are to be tried, and the roles that no tensor has.

    Raises:
        RecipeError: If no filters tell the groups apart; names a tensor.
    """
    found = {name: _found(name, layout) for name, layout in tensors.items()}
    rest = groups.index("*") if "*" in groups else None
    target = {
        name: groups.index(hit[0]) if hit and hit[0] in groups else rest
        for name, hit in found.items()
    }
    missing = tuple(
        group for group in groups if group != "*" and groups.index(group) not in target.values()
    )
    filters = _candidates(groups, rest, {hit for hit in found.values() if hit})
    last: list[Filter] = [] if rest is None else [(None, rest)]
    for one in [f for f in filters if f[1] == rest]:  # most protect nothing
        fewer = [f for f in filters if f != one]
        if _wrong([*fewer, *last], target) is None:
            filters = fewer
    filters += last
    if (name := _wrong(filters, target)) is not None:
        raise RecipeError(
            f"by: '{name}' can't be told from tensors of another role by a part of its name"
            + ("" if rest is not None else '; add "*", the rest, to the groups')
        )
    return tuple(filters), missing


def _found(name: str, layout: Layout) -> tuple[str, str] | None:
    """Role and the filter that the word in the name gives."""
    stack = layout.stack(name)
    inner = name.removeprefix(stack.prefix).partition(".")[2] if stack else name
    words = inner.split(".")[:-1] or [inner]
    if norm := [word for word in words if _NORM.search(word)]:
        return "norm", _filter(name, norm[-1])
    if stack is None:
        role = outer_role(name)
        return None if role == "rest" else (role, _filter(name, _outer_word(words, role)))
    for role, pattern in (("attention", _ATTENTION), ("mlp", _MLP)):
        if word := next((word for word in words if pattern.search(word)), None):
            return role, _filter(name, word)
    return None


def _outer_word(words: list[str], role: str) -> str:
    """The first word that makes it an embedding or a head alone, else the first of all."""
    return next((word for word in words if outer_role(f"{word}.weight") == role), words[0])


def _filter(name: str, word: str) -> str:
    """The word between its dots, so that it is no part of another word."""
    padded = f".{name}."
    at = padded.index(f".{word}.")
    return padded[max(at, 1) : min(at + len(word) + 2, len(padded) - 1)]


def _candidates(
    groups: Sequence[str], rest: int | None, found: Iterable[tuple[str, str]]
) -> list[Filter]:
    places = {role: groups.index(role) if role in groups else rest for role in _ORDER}
    ordered = sorted(found, key=lambda hit: (_ORDER.index(hit[0]), hit[1]))
    return [(text, place) for role, text in ordered if (place := places[role]) is not None]


def _wrong(filters: Sequence[Filter], target: Mapping[str, int | None]) -> str | None:
    """A tensor that the filters give to another group than its own."""
    for name, wanted in target.items():
        got = next((place for text, place in filters if text is None or text in name), None)
        if got != wanted:
            return name
    return None
