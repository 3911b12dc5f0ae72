"""The ledger: each benchmark's items in three disjoint roles, by a hash of their content."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

from evals.errors import EvaluationError

_IDENTIFIERS = ("id", "_id", "idx", "index", "uid", "guid", "uuid")


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
class Document:
    """What the ledger knows of one document.

    Attributes:
        content: Its `content_hash`.
        likeness: Its `likeness`: the same for documents that differ in nothing that counts.
        stratum: What it is dealt evenly by: its subtask and, where there are few, its right answer.
        task: Its subtask: the same text under two subtasks of a group is two items of one role.
    """

    content: str
    likeness: str
    stratum: str = ""
    task: str = ""


@dataclass(frozen=True, slots=True)
class Split:
    """The items of one benchmark, as positions in its list of documents.

    Attributes:
        roles: Positions by role, in an order that is random but the same everywhere.
        duplicates: How many documents repeat an earlier one of their task and are left out.
        examples: How many are left out because they are among the few-shot examples.
        elsewhere: How many are kept out of a role because the same text has another one.
    """

    roles: Mapping[Role, tuple[int, ...]]
    duplicates: int
    examples: int = 0
    elsewhere: int = 0


def content_hash(document: Mapping[str, Any]) -> str:
    """sha256 of a document's canonical JSON: equal content, equal hash, whatever its position."""
    text = json.dumps(document, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def likeness(document: Any) -> str:
    """sha256 of a document without its identifiers, letter case and runs of white space.

    A repeated item often has another id, or a trailing blank; both would hide it from
    `content_hash`. If nothing but an identifier is there, it counts.
    """
    if isinstance(document, Mapping):
        entries = cast("Mapping[str, Any]", document)
        told = {key: value for key, value in entries.items() if not _identifies(key)}
        document = told or entries
    return content_hash({"": _plain(document)})


def split(
    task: str,
    documents: Sequence[Document],
    counts: Counts,
    seed: int,
    *,
    examples: Iterable[str] = (),
    taken: MutableMapping[str, Role] | None = None,
) -> Split:
    """Deal a benchmark's documents to the three roles.

    The order is by hash of (seed, likeness) within each stratum, and the strata take turns, so
    every stretch of it has each stratum's share to within one item; it doesn't depend on the
    file's order. Holdout comes first in it, then select, then search: asking for more search items
    later moves no item out of the other roles, and the fewer are a prefix of the more. Like
    documents of a task count once. Like documents of several tasks get one role or none, in this
    benchmark and, through `taken`, in all of a study.

    Args:
        task: Name for errors.
        documents: In the order of the file.
        counts: How many of each.
        seed: Of the order.
        examples: Likenesses of few-shot examples, which get no role.
        taken: The role of each likeness that has one already; what is dealt here is added.

    Raises:
        EvaluationError: If there are too few items.
    """
    taken = {} if taken is None else taken
    shown = set(examples)
    places = _first_places(documents)
    free = [at for at in places if documents[at].likeness not in shown]
    order = _mixed(documents, free, seed)
    wanted = {Role.HOLDOUT: counts.holdout, Role.SELECT: counts.select, Role.SEARCH: counts.search}
    roles: dict[Role, tuple[int, ...]] = {}
    for role, count in wanted.items():
        roles[role] = _deal(documents, order, role, count, taken)
        gone = set(roles[role])
        order = [at for at in order if at not in gone]
    elsewhere = sum(documents[at].likeness in taken for at in order)
    duplicates, hidden = len(documents) - len(places), len(places) - len(free)
    if any(len(roles[role]) < (1 if count is None else count) for role, count in wanted.items()):
        raise EvaluationError(_too_few(task, counts, len(free), duplicates, hidden, elsewhere))
    dealt = {role: roles[role] for role in Role}
    return Split(dealt, duplicates, hidden, elsewhere)


def _first_places(documents: Sequence[Document]) -> list[int]:
    places: dict[tuple[str, str], int] = {}
    for at, document in enumerate(documents):
        places.setdefault((document.task, document.likeness), at)
    return list(places.values())


def _mixed(documents: Sequence[Document], places: Sequence[int], seed: int) -> list[int]:
    """Positions in hash order, the strata taking turns in proportion to their sizes."""

    def draw(text: str) -> bytes:
        return hashlib.sha256(f"{seed}/{text}".encode()).digest()

    def shift(stratum: str) -> float:  # where a stratum's turns begin, so that small ones differ
        return int.from_bytes(draw(stratum)[:6]) / 2**48

    sizes = Counter(documents[at].stratum for at in places)
    shifts = {stratum: shift(stratum) for stratum in sizes}
    ordered = sorted(places, key=lambda at: (draw(documents[at].likeness), documents[at].content))
    ranks: Counter[str] = Counter()
    turns: dict[int, tuple[float, int]] = {}
    for number, at in enumerate(ordered):
        stratum = documents[at].stratum
        turns[at] = ((ranks[stratum] + shifts[stratum]) / sizes[stratum], number)
        ranks[stratum] += 1
    return sorted(ordered, key=turns.__getitem__)


def _deal(
    documents: Sequence[Document],
    order: Sequence[int],
    role: Role,
    count: int | None,
    taken: MutableMapping[str, Role],
) -> tuple[int, ...]:
    """The first documents in order that may have a role; None takes all of them."""
    chosen: list[int] = []
    for at in order:
        if len(chosen) == count:
            break
        if taken.setdefault(documents[at].likeness, role) is role:
            chosen.append(at)
    return tuple(chosen)


def _too_few(
    task: str, counts: Counts, free: int, duplicates: int, hidden: int, elsewhere: int
) -> str:
    wanted = f"search {counts.search}, select {counts.select}, holdout {counts.holdout}"
    causes = {
        "repeat others": duplicates,
        "are few-shot examples": hidden,
        "have another role in another task": elsewhere,
    }
    told = "; ".join(f"{number} more {why}" for why, number in causes.items() if number)
    return (
        f"task '{task}': has {free} different items{f' ({told})' if told else ''}, too few for "
        f"{wanted}; lower them under 'items'"
    )


def _identifies(key: str) -> bool:
    name = key.lower()
    return name in _IDENTIFIERS or name.endswith(("_id", "_idx", "_index"))


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join(value.split()).casefold()
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in cast("Any", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in cast("Any", value)]
    return value
