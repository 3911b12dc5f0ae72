"""Which token sequences have their beginnings in common, found once per study.

Log-likelihood requests repeat themselves: the options of an item share its context, the items of
a task share its few-shot examples. Sorted, sequences with a common beginning stand side by side.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evals.errors import EvaluationError

Ids = npt.NDArray[np.int64]

Window = tuple[list[int], list[int]]
"""Token ids of a context and of the continuation whose log-likelihood is asked for."""

# A pass for a header of its own has to save this share of a group's tokens, and this many.
_WORTHWHILE_SHARE = 0.1
_WORTHWHILE_TOKENS = 64
_UNIT = 256  # tokens that a unit may have beyond its longest request
_DEEPEST = 32  # of headers tried within headers


@dataclass(frozen=True, slots=True)
class Request:
    """A window as the model sees it.

    Attributes:
        number: Its place among the study's windows.
        tokens: Input ids, the last `max_length` of context and continuation without its last
            token, `(length,)`.
        targets: The continuation; the logits at the last `len(targets)` inputs predict it.
    """

    number: int
    tokens: Ids
    targets: Ids

    @property
    def first(self) -> int:
        """The first position whose logits are wanted; what comes before may be shared."""
        return len(self.tokens) - len(self.targets)


@dataclass(frozen=True, slots=True)
class Unit:
    """Neighbours that share much of what follows the header: an item's options.

    Attributes:
        requests: In lexicographic order of their tokens.
        common: For each, the length of the beginning that it shares with the one before it (the
            header's for the first).
    """

    requests: tuple[Request, ...]
    common: tuple[int, ...]

    @property
    def size(self) -> int:
        """Tokens after the header, each shared one counted once."""
        lengths = zip(self.requests, self.common, strict=True)
        return sum(len(request.tokens) - shared for request, shared in lengths)


@dataclass(frozen=True, slots=True)
class Group:
    """Units with a common header.

    Attributes:
        header: The ids that all begin with, `(header,)`; empty where a pass of its own for them
            doesn't pay.
        units: What follows it, with the header's ids still in front.
    """

    header: Ids
    units: tuple[Unit, ...]


def find_groups(windows: Sequence[Window], max_length: int) -> tuple[Group, ...]:
    """Find the headers that are worth a pass of their own.

    Args:
        windows: What is asked, in any order.
        max_length: The model's longest input in tokens; longer ones lose their beginning.

    Raises:
        EvaluationError: If a context or a continuation is empty or a continuation is too long.
    """
    made = [_request(number, window, max_length) for number, window in enumerate(windows)]
    # Big-endian bytes sort as the ids do, and compare at the speed of memcmp.
    keyed = sorted(made, key=lambda request: request.tokens.astype(">u4").tobytes())
    common = [0, *(_common(a.tokens, b.tokens) for a, b in itertools.pairwise(keyed))]
    chosen = _divide(keyed, common, 0)[1] if keyed else []
    plain = tuple(unit for group in chosen if not len(group.header) for unit in group.units)
    headed = tuple(group for group in chosen if len(group.header))
    return headed + ((Group(np.empty(0, np.int64), plain),) if plain else ())


def _request(number: int, window: Window, max_length: int) -> Request:
    context, continuation = window
    if not context or not continuation:
        part = "continuation" if context else "context"
        raise EvaluationError(
            f"log-likelihood request {number}: its {part} has no tokens, so nothing can be scored; "
            "look at the task's doc_to_choice or doc_to_target"
        )
    if len(continuation) > max_length:
        raise EvaluationError(
            f"log-likelihood request {number}: its continuation has {len(continuation)} tokens, "
            f"more than the {max_length} that the model takes"
        )
    tokens = (context + continuation)[-(max_length + 1) :][:-1]
    return Request(number, np.array(tokens, np.int64), np.array(continuation, np.int64))


def _common(one: Ids, other: Ids) -> int:
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length


def _divide(
    requests: Sequence[Request], common: Sequence[int], depth: int
) -> tuple[int, list[Group]]:
    """The cheapest headers for a sorted run of requests, and the tokens that they cost.

    Either all of it gets its longest common beginning as a header, or it is divided where it
    first branches and each part is looked at alone, or there is no header.
    """
    branch = min(common[1:], default=0)
    length = min(branch, *(request.first for request in requests))
    plain = _group(requests, common, 0)
    best, chosen = _cost(plain), [plain]
    if len(requests) < 3 or depth == _DEEPEST:
        return best, chosen
    if length:
        shared = _group(requests, common, length)
        best, chosen = _cheaper((best, chosen), (_cost(shared), [shared]))
    parts = [_divide(*part, depth + 1) for part in _parts(requests, common, branch)]
    divided = sum(cost for cost, _ in parts), [group for _, groups in parts for group in groups]
    return _cheaper((best, chosen), divided)


def _cheaper(
    known: tuple[int, list[Group]], other: tuple[int, list[Group]]
) -> tuple[int, list[Group]]:
    """The other only if it saves enough: every header is one more pass and a masked attention."""
    saved = known[0] - other[0]
    return other if saved >= max(_WORTHWHILE_SHARE * known[0], _WORTHWHILE_TOKENS) else known


def _parts(
    requests: Sequence[Request], common: Sequence[int], branch: int
) -> Iterator[tuple[Sequence[Request], Sequence[int]]]:
    cuts = [0, *(i for i in range(1, len(requests)) if common[i] == branch), len(requests)]
    for start, end in itertools.pairwise(cuts):
        yield requests[start:end], common[start:end]


def _group(requests: Sequence[Request], common: Sequence[int], header: int) -> Group:
    return Group(requests[0].tokens[:header], tuple(_units(requests, common, header)))


def _units(requests: Sequence[Request], common: Sequence[int], header: int) -> Iterator[Unit]:
    """Cut a sorted run where a request shares less than half of itself with the one before.

    A unit stays within one row, so it is also cut where it outgrows what an item may have.
    """
    longest = max(len(request.tokens) for request in requests) - header
    limit = longest + _UNIT
    start, size = 0, len(requests[0].tokens) - header
    for at in range(1, len(requests)):
        length, shared = len(requests[at].tokens) - header, common[at] - header
        size += length - shared
        if 2 * shared < max(length, 1) or size > limit:
            yield Unit(tuple(requests[start:at]), (header, *common[start + 1 : at]))
            start, size = at, length
    yield Unit(tuple(requests[start:]), (header, *common[start + 1 :]))


def _cost(group: Group) -> int:
    return len(group.header) + sum(unit.size for unit in group.units)
