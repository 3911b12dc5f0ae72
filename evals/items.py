"""The ledger: each benchmark's items in three disjoint roles, by a hash of their content."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from evals.errors import EvaluationError


class Role(StrEnum):
    """What an item may be used for. The holdout is read by the final comparison only."""

    SEARCH = "search"
    SELECT = "select"
    HOLDOUT = "holdout"


@dataclass(frozen=True, slots=True)
class Counts:
    """How many items of each benchmark play each role; None takes what the others leave."""

    search: int | None
    select: int
    holdout: int


@dataclass(frozen=True, slots=True)
class Split:
    """The items of one benchmark, as positions in its list of documents.

    Attributes:
        roles: Positions by role, in hash order, which is random but the same everywhere.
        duplicates: How many documents repeat an earlier one's content and are left out.
    """

    roles: Mapping[Role, tuple[int, ...]]
    duplicates: int


def content_hash(document: Mapping[str, Any]) -> str:
    """sha256 of a document's canonical JSON: equal content, equal hash, whatever its position."""
    text = json.dumps(document, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def split(task: str, hashes: Iterable[str], counts: Counts, seed: int) -> Split:
    """Deal a benchmark's documents to the three roles.

    The order is by hash of (seed, content), so it doesn't depend on the file's order. Holdout
    comes first in it, then select, then search: asking for more search items later moves no item
    out of the other roles. Equal documents count once, so none can be in two roles.

    Args:
        task: Name for errors.
        hashes: `content_hash` of every document, in document order.
        counts: How many of each.
        seed: Of the order.

    Raises:
        EvaluationError: If there are too few items.
    """
    places: dict[str, int] = {}
    total = 0
    for total, value in enumerate(hashes, 1):
        places.setdefault(value, total - 1)
    order = sorted(places, key=lambda value: hashlib.sha256(f"{seed}/{value}".encode()).digest())
    held, chosen = counts.holdout, counts.holdout + counts.select
    end = len(order) if counts.search is None else chosen + counts.search
    if end > len(order) or end <= chosen:
        wanted = f"search {counts.search}, select {counts.select}, holdout {counts.holdout}"
        raise EvaluationError(
            f"task '{task}': has {len(order)} different items, too few for {wanted}; lower them "
            "under 'items'"
        )
    parts = {
        Role.SEARCH: order[chosen:end],
        Role.SELECT: order[held:chosen],
        Role.HOLDOUT: order[:held],
    }
    roles = {role: tuple(places[value] for value in part) for role, part in parts.items()}
    return Split(roles, total - len(order))
