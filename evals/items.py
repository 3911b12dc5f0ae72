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
        cluster: What it shares with other documents, a passage for one, which then all get one
            role or none; empty for a document that stands alone.
    """

    content: str
    likeness: str
    stratum: str = ""
    task: str = ""
    cluster: str = ""


@dataclass(frozen=True, slots=True)
class Split:
    """The items of one benchmark, as positions in its list of documents.

    Attributes:
        roles: Positions by role, in an order that is random but the same everywhere.
        duplicates: How many documents repeat an earlier one of their task and are left out.
        examples: How many are left out because they are among the few-shot examples.
        elsewhere: How many are kept out of a role because the same text has another one.
        apart: How many are kept out because an item of their cluster has another role.
    """

    roles: Mapping[Role, tuple[int, ...]]
    duplicates: int
    examples: int = 0
    elsewhere: int = 0
    apart: int = 0


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

    So do documents of one cluster. Holdout and select take whole clusters, in an order by hash of
    the cluster; the last one only as far as it is needed, and the rest of it gets no role. Search
    takes items one by one of what is left, since many clusters tell more than a few whole ones. A
    cluster goes by the stratum that most of its items have, and strata take turns by their items.
    Where each stratum is one cluster (a subject that is both), that leaves a random order of
    clusters.

    Args:
        task: Name for errors.
        documents: In the order of the file.
        counts: How many of each.
        seed: Of the order.
        examples: Likenesses of few-shot examples, which get no role.
        taken: The role of each likeness and cluster that has one already; what is dealt here is
            added.

    Raises:
        EvaluationError: If there are too few items or clusters.
    """
    taken = {} if taken is None else taken
    shown = set(examples)
    places = _first_places(documents)
    free = [at for at in places if documents[at].likeness not in shown]
    wholes = _mixed(documents, _clusters(documents, free, seed), seed)
    singly = _mixed(documents, [(at,) for at in free], seed)
    wanted = {Role.HOLDOUT: counts.holdout, Role.SELECT: counts.select, Role.SEARCH: counts.search}
    roles: dict[Role, tuple[int, ...]] = {}
    left = set(free)
    for role, count in wanted.items():
        order = [at for at in (singly if role is Role.SEARCH else wholes) if at in left]
        roles[role] = _deal(documents, order, role, count, taken)
        left.difference_update(roles[role])
    elsewhere = sum(documents[at].likeness in taken for at in left)
    apart = sum(_apart(documents[at], taken) for at in left)
    duplicates, hidden = len(documents) - len(places), len(places) - len(free)
    dealt = Split({role: roles[role] for role in Role}, duplicates, hidden, elsewhere, apart)
    if any(len(roles[role]) < (1 if count is None else count) for role, count in wanted.items()):
        raise EvaluationError(_too_few(task, [documents[at] for at in free], counts, dealt))
    for role, places in roles.items():
        _refuse_one_cluster(task, role, [documents[at] for at in places])
    return dealt


def _first_places(documents: Sequence[Document]) -> list[int]:
    places: dict[tuple[str, str], int] = {}
    for at, document in enumerate(documents):
        places.setdefault((document.task, document.likeness), at)
    return list(places.values())


def _clusters(
    documents: Sequence[Document], places: Sequence[int], seed: int
) -> list[tuple[int, ...]]:
    """The positions of each cluster, in hash order within it."""
    found: dict[str | int, list[int]] = {}
    for at in places:
        found.setdefault(documents[at].cluster or at, []).append(at)
    return [
        tuple(sorted(part, key=lambda at: _key(documents[at], seed))) for part in found.values()
    ]


def _mixed(documents: Sequence[Document], units: Sequence[tuple[int, ...]], seed: int) -> list[int]:
    """Positions in hash order of their units, the strata taking turns in proportion to their sizes.

    Args:
        documents: All.
        units: Positions that stay together: clusters, or single documents.
        seed: Of the order.
    """

    def key(unit: tuple[int, ...]) -> tuple[bytes, str]:
        first = documents[unit[0]]
        return (_draw(_name(first), seed), first.content) if len(unit) > 1 else _key(first, seed)

    def shift(stratum: str) -> float:  # where a stratum's turns begin, so that small ones differ
        return int.from_bytes(_draw(stratum, seed)[:6]) / 2**48

    ordered = sorted(units, key=key)
    strata = [_stratum(documents, unit) for unit in ordered]
    sizes: Counter[str] = Counter()
    for unit, stratum in zip(ordered, strata, strict=True):
        sizes[stratum] += len(unit)
    shifts = {stratum: shift(stratum) for stratum in sizes}
    before: Counter[str] = Counter()
    turns: list[tuple[float, int]] = []
    for number, (unit, stratum) in enumerate(zip(ordered, strata, strict=True)):
        # A stratum of one cluster has its turn at a random place, however large it is.
        turn = (before[stratum] + shifts[stratum] * len(unit)) / sizes[stratum]
        turns.append((turn, number))
        before[stratum] += len(unit)
    return [at for _, number in sorted(turns) for at in ordered[number]]


def _stratum(documents: Sequence[Document], unit: tuple[int, ...]) -> str:
    """What most of a unit's documents are dealt by; of equals the first by name."""
    counts = Counter(documents[at].stratum for at in unit)
    return min(counts, key=lambda stratum: (-counts[stratum], stratum))


def _name(document: Document) -> str:
    return document.cluster or document.likeness


def _key(document: Document, seed: int) -> tuple[bytes, str]:
    return _draw(document.likeness, seed), document.content


def _draw(text: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{text}".encode()).digest()


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
        names = {documents[at].likeness, _name(documents[at])}
        if all(taken.get(name, role) is role for name in names):
            taken.update(dict.fromkeys(names, role))
            chosen.append(at)
    return tuple(chosen)


def _apart(document: Document, taken: Mapping[str, Role]) -> bool:
    """Whether it is only for its cluster that a document has no role."""
    return document.likeness not in taken and document.cluster in taken


def _too_few(task: str, free: Sequence[Document], counts: Counts, dealt: Split) -> str:
    search = "rest" if counts.search is None else counts.search
    wanted = f"search {search}, select {counts.select}, holdout {counts.holdout}"
    causes = {
        "repeat others": dealt.duplicates,
        "are few-shot examples": dealt.examples,
        "have another role in another task": dealt.elsewhere,
    }
    told = "; ".join(f"{number} more {why}" for why, number in causes.items() if number)
    many = "1 item" if len(free) == 1 else f"{len(free)} different items"
    start = f"task '{task}': has {many}{f' ({told})' if told else ''}"
    if not any(document.cluster for document in free):
        return f"{start}, too few for {wanted}; lower them under 'items'"
    sizes = Counter(map(_name, free))
    return (
        f"{start} in {len(sizes)} clusters, the largest of {max(sizes.values())}, too few for "
        f"{wanted}, since a cluster has one role only ({dealt.apart} items are left over for it); "
        "lower them under 'items', or name a field with smaller clusters as the objective's "
        "'cluster'"
    )


def _refuse_one_cluster(task: str, role: Role, dealt: Sequence[Document]) -> None:
    """Nothing would tell how much clusters differ."""
    if len(dealt) > 1 and dealt[0].cluster and len({d.cluster for d in dealt}) == 1:
        raise EvaluationError(
            f"task '{task}': all {len(dealt)} {role} items would be of one cluster, which says "
            f"nothing of others; ask for more {role} items under 'items', so that a second cluster "
            "is begun, or name a field with smaller clusters as the objective's 'cluster'"
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
