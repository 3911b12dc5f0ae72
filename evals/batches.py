"""Requests laid out in batches of tokens, once per study: every candidate runs the same ones.

A row holds trees of tokens in depth-first order. A token sees the header, its ancestors and
itself. In depth-first order the tokens below a token are the run that follows it, so one number
for each, where that run ends, says who sees whom.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evals.prefixes import Group, Ids, Unit

# Rows after a header are filled up to this many tokens: few enough that attention to each other's
# (masked) tokens stays small beside the header, enough for the matrix products.
_ROW = 256
# Logits of one pass, in bytes. On a CPU small enough to come from the heap: what is larger is
# mapped anew each time, and its first touch costs more than the arithmetic on it.
_LOGITS = {"cpu": 24 << 20, "cuda": 512 << 20}


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass.

    Attributes:
        tokens: Input ids, `(rows, width)`.
        positions: Each token's distance from the beginning of its text, `(rows, width)`; None
            where rows are plain texts, which start at 0.
        ends: Where the run of tokens that see a token ends, `(rows, width)`; None likewise.
        wanted: Which tokens' logits are needed, flat, `(logits,)`.
        rows: For each predicted token its place in `wanted`, `(predictions,)`.
        targets: The predicted tokens, `(predictions,)`.
        numbers: The windows that they belong to, `(predictions,)`; on the host.
    """

    tokens: torch.Tensor
    positions: torch.Tensor | None
    ends: torch.Tensor | None
    wanted: torch.Tensor
    rows: torch.Tensor
    targets: torch.Tensor
    numbers: Ids

    @property
    def size(self) -> int:
        """Tokens, padding included."""
        return self.tokens.numel()


@dataclass(frozen=True, slots=True)
class Section:
    """Batches that continue one header.

    Attributes:
        header: Its ids, `(1, header)`, or None.
        batches: What follows it.
    """

    header: torch.Tensor | None
    batches: tuple[Batch, ...]


@dataclass(frozen=True, slots=True)
class _Tree:
    """A unit in depth-first order; positions count from the beginning of the text."""

    tokens: Ids
    positions: Ids
    ends: Ids
    wanted: tuple[tuple[int, Ids, Ids], ...]  # window's number, nodes, targets

    @property
    def chain(self) -> bool:
        return bool((self.ends == len(self.tokens)).all())

    @property
    def logits(self) -> int:
        return len({node for _, nodes, _ in self.wanted for node in nodes.tolist()})


@dataclass(frozen=True, slots=True)
class _Limits:
    """What one forward pass may have: tokens with padding, and rows of logits."""

    tokens: int
    logits: int


def lay_out(
    groups: Sequence[Group], tokens: int, vocabulary: int, device: torch.device
) -> tuple[Section, ...]:
    """Form batches of at most so many tokens (or of one row, if that has more).

    Args:
        groups: The requests.
        tokens: Per forward pass, padding included.
        vocabulary: Logits per token.
        device: Where the tensors go.
    """
    logits = _LOGITS.get(device.type, _LOGITS["cuda"]) // (4 * vocabulary)
    limits = _Limits(tokens, max(1, logits))
    return tuple(_section(group, limits, device) for group in groups)


def _section(group: Group, limits: "_Limits", device: torch.device) -> Section:
    length = len(group.header)
    header = _put(group.header, device)[None] if length else None
    trees = [_tree(unit, length) for unit in group.units]
    # Plain texts stay among themselves: they need no mask.
    kinds = (
        [trees] if length else [[t for t in trees if t.chain], [t for t in trees if not t.chain]]
    )
    rows = [row for kind in kinds for row in _rows(kind, _ROW if length else 0, limits)]
    return Section(header, tuple(_batch(batch, header is not None, device) for batch in rows))


def _tree(unit: Unit, header: int) -> _Tree:
    tokens: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    path: list[int] = []  # the nodes of the present request
    wanted: list[tuple[int, Ids, Ids]] = []
    for request, common in zip(unit.requests, unit.common, strict=True):
        _close(ends, path, common - header)
        for position in range(common, len(request.tokens)):
            path.append(len(tokens))
            tokens.append(int(request.tokens[position]))
            positions.append(position)
            ends.append(0)
        nodes = np.array(path[request.first - header :], np.int64)
        wanted.append((request.number, nodes, request.targets))
    _close(ends, path, 0)
    return _Tree(_ids(tokens), _ids(positions), _ids(ends), tuple(wanted))


def _close(ends: list[int], path: list[int], depth: int) -> None:
    for node in path[depth:]:
        ends[node] = len(ends)
    del path[depth:]


def _ids(values: Sequence[int]) -> Ids:
    return np.array(values, np.int64)


def _rows(trees: Sequence[_Tree], width: int, limits: _Limits) -> Iterator[list[list[_Tree]]]:
    """Fill batches from the largest tree to the smallest, first row that has room."""
    rows: list[list[_Tree]] = []
    room: list[int] = []
    wide = logits = 0
    for tree in sorted(trees, key=lambda tree: -len(tree.tokens)):
        size, more = len(tree.tokens), tree.logits
        place = next((i for i, left in enumerate(room) if left >= size), None) if width else None
        needed = (len(rows) + (place is None)) * wide
        if rows and (needed > limits.tokens or logits + more > limits.logits):
            yield rows
            rows, room, logits, place = [], [], 0, None
        if not rows:
            wide = max(size, width)
        if place is None:
            place = len(rows)
            rows.append([])
            room.append(wide)
        rows[place].append(tree)
        room[place] -= size
        logits += more
    if rows:
        yield rows


def _batch(rows: Sequence[Sequence[_Tree]], headed: bool, device: torch.device) -> Batch:
    width = max(sum(len(tree.tokens) for tree in row) for row in rows)
    tokens = np.zeros((len(rows), width), np.int64)
    positions = np.zeros_like(tokens)
    ends = np.tile(np.arange(1, width + 1), (len(rows), 1))  # padding sees itself only
    nodes: list[Ids] = []
    targets: list[Ids] = []
    numbers: list[Ids] = []
    for i, row in enumerate(rows):
        start = 0
        for tree in row:
            end = start + len(tree.tokens)
            tokens[i, start:end] = tree.tokens
            positions[i, start:end] = tree.positions
            ends[i, start:end] = tree.ends + start
            for number, places, wanted in tree.wanted:
                nodes.append(i * width + start + places)
                targets.append(wanted)
                numbers.append(np.full(len(wanted), number))
            start = end
    wanted, inverse = np.unique(np.concatenate(nodes), return_inverse=True)
    plain = not headed and all(len(row) == 1 and row[0].chain for row in rows)
    return Batch(
        _put(tokens, device),
        None if plain else _put(positions, device),
        None if plain else _put(ends, device),
        _put(wanted, device),
        _put(inverse.reshape(-1), device),
        _put(np.concatenate(targets), device),
        np.concatenate(numbers),
    )


def _put(values: Ids, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(values).to(device)  # pyright: ignore[reportUnknownMemberType]
