"""What differs between two protocols: one line for each place."""

import json
from collections.abc import Iterator
from typing import Any, cast

_NAMES = ("name", "group", "task", "text", "model", "function")  # by what a list's entries go
_LONGEST = 60  # characters of a value; of a longer one those around the first difference
_BEFORE = 20


def differences(stored: Any, stated: Any, where: str = "") -> list[str]:
    """Where two JSON values differ; a key that is missing is the same as null.

    Entries of lists are found again by their names, wherever they stand.

    Args:
        stored: As it was.
        stated: As it is.
        where: The place of both.
    """
    if isinstance(stored, dict) and isinstance(stated, dict):
        return list(_of_keys(cast("Any", stored), cast("Any", stated), where))
    if isinstance(stored, list) and isinstance(stated, list):
        return list(_of_lists(cast("Any", stored), cast("Any", stated), where))
    return list(_of_values(stored, stated, where))


def _of_keys(stored: dict[str, Any], stated: dict[str, Any], where: str) -> Iterator[str]:
    for key in sorted({*stored, *stated}):
        path = f"{where}.{key}" if where else key
        yield from differences(stored.get(key), stated.get(key), path)


def _of_lists(stored: list[Any], stated: list[Any], where: str) -> Iterator[str]:
    before, after = _by_name(stored), _by_name(stated)
    if before is None or after is None:
        if len(stored) != len(stated) or not any(isinstance(one, dict) for one in stored):
            yield from _of_values(stored, stated, where)
            return
        before, after = dict(enumerate(stored)), dict(enumerate(stated))
    yield from (f"{where}: '{name}' is gone" for name in before if name not in after)
    yield from (f"{where}: '{name}' is new" for name in after if name not in before)
    both = [name for name in before if name in after]
    for name in both:
        yield from differences(before[name], after[name], f"{where}[{name}]")
    order = [name for name in after if name in before]
    yield from _of_values(both, order, f"{where}, the order")


def _of_values(stored: Any, stated: Any, where: str) -> Iterator[str]:
    one, two = json.dumps(stored), json.dumps(stated)
    if one == two:
        return
    same = next((at for at, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), 0)
    start = max(0, same - _BEFORE)
    was = "was not given" if stored is None else f"was {_cut(one, start)}"
    now = "is not given" if stated is None else f"is {_cut(two, start)}"
    yield f"{where}: {was}, {now}"


def _cut(text: str, start: int) -> str:
    if len(text) <= _LONGEST:
        return text
    end = start + _LONGEST
    return f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}"


def _by_name(entries: list[Any]) -> dict[Any, Any] | None:
    """A list's entries by their names; None if not all have one of their own."""
    named = {name: one for one in entries if (name := _name(one)) is not None}
    return named if len(named) == len(entries) else None


def _name(entry: Any) -> str | None:
    """What an entry is called: a dimension begins with its name, others have a key for it."""
    if isinstance(entry, list):
        first = next(iter(cast("list[Any]", entry)), None)
        return first if isinstance(first, str) else None
    if not isinstance(entry, dict):
        return None
    known = cast("dict[str, Any]", entry)
    given = next((known[key] for key in _NAMES if known.get(key) is not None), None)
    return given if isinstance(given, str) else _name(given) if isinstance(given, dict) else None
