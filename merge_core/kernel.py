"""Execute what methods decided: compiled loops over whole models, or torch piece by piece."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from merge_core.backends import address, native, native_loops
from merge_core.combination import (
    Bernoulli,
    Combination,
    Linear,
    Nothing,
    Scored,
    Selection,
    TaskVectors,
    Window,
)
from merge_core.geometry import TensorGroup
from merge_core.tiled import divisor, execute_tiled, sources

_RUN = 64  # tiles that one candidate takes in turn: with four parents, a quarter of a 1 MiB cache
_FEW_RUNS = 4  # per thread: below, starting threads costs more than they save


@dataclass(frozen=True, slots=True)
class Job:
    """One tensor to write: what the method decided, its inputs, and where it goes.

    `out` is contiguous, of the inputs' shape and any floating dtype; overwritten.
    """

    combination: Combination
    group: TensorGroup
    out: torch.Tensor


_Batch = list[tuple[Job, list[tuple[int, int]]]]
"""Jobs with the addresses and dtype codes of output, base and inputs."""


def execute(jobs: Iterable[Job]) -> None:
    """Write merged tensors, in float32 arithmetic with one rounding at the end."""
    batches: dict[tuple[type, int], _Batch] = {}
    for job in jobs:
        places = _places(job)
        if places is None:
            execute_tiled(job.combination, job.group, job.out)
        else:
            kind = (type(job.combination), len(places))
            batches.setdefault(kind, []).append((job, places))
    for (kind, _), batch in batches.items():
        (_run_linear if kind is Linear else _run_task_vectors)(batch)


def _places(job: Job) -> list[tuple[int, int]] | None:
    """Addresses and dtype codes of output, base and inputs, or None where torch has to do it."""
    group, form = job.group, job.combination
    if group.dtype is not None or not isinstance(form, Linear | TaskVectors) or not native_loops():
        return None
    tensor = group.geometry.tensor
    tensors = [job.out, *(tensor(ref) for ref in sources(form, group))]
    if isinstance(form, TaskVectors):
        assert group.base is not None  # the method asked for it; planned so
        tensors.insert(1, tensor(group.base))
    places: list[tuple[int, int]] = []
    for each in tensors:
        if (place := address(each)) is None:
            return None
        places.append(place)
    return places


def _run_linear(batch: _Batch) -> None:
    table = np.array([places for _, places in batch], np.int64)
    weights = np.array([job.combination.coefficients for job, _ in batch], np.float32)  # pyright: ignore
    numel = np.array([job.out.numel() for job, _ in batch], np.int64)
    codes = np.ascontiguousarray(table[:, 1:, 1])
    addresses = np.ascontiguousarray(table[:, 1:, 0])
    head = np.ascontiguousarray(table[:, 0].T)
    _spread(native().linear, (head[0], head[1], addresses, codes, weights, numel), batch, numel)


def _run_task_vectors(batch: _Batch) -> None:
    table = np.array([places for _, places in batch], np.int64)
    forms: list[Any] = [job.combination for job, _ in batch]
    numel = np.array([job.out.numel() for job, _ in batch], np.int64)
    shape = (len(forms), len(forms[0].weights))
    kinds = np.zeros(shape, np.int64)
    reals = np.zeros((*shape, 4), np.float32)
    wholes = np.full((*shape, 3), -1, np.int64)
    for row, form in enumerate(forms):
        reals[row, :, 0] = form.weights
        reals[row, :, 1] = form.factors
        for column, selection in enumerate(form.selections):
            kinds[row, column] = _describe(selection, reals[row, column], wholes[row, column])
    short = (table[:, :, 1] == native().BFLOAT16)[:, 1:].all(1)
    options = np.array(
        [_options(form, bool(b)) for form, b in zip(forms, short, strict=True)], np.float32
    )
    head = np.ascontiguousarray(table[:, :2].transpose(1, 2, 0))
    addresses, codes = (np.ascontiguousarray(table[:, 2:, i]) for i in (0, 1))
    arguments = (*head[0], *head[1], addresses, codes, numel, kinds, reals, wholes, options)
    _spread(native().task_vectors, arguments, batch, numel)


def _options(form: TaskVectors, short: bool) -> tuple[float, ...]:
    plain = (
        short
        and not form.consensus
        and all(selection is None for selection in form.selections)
        and 0 not in form.factors  # whatever that parent holds: 0 * inf would be NaN
    )
    return (form.scale, divisor(form), form.consensus, form.normalize, plain)


def _describe(selection: Selection, reals: np.ndarray, wholes: np.ndarray) -> int:
    """A selection as the loops read it: its kind, thresholds and whole numbers."""
    match selection:
        case None:
            return 0
        case Window(first, last):
            if first is not None:
                reals[2], wholes[0] = first.threshold, first.index
            if last is not None:
                reals[3], wholes[1] = last.threshold, last.index
            return 1
        case Bernoulli(limit, stream):
            key = stream.key - (1 << 64) if stream.key >= 1 << 63 else stream.key
            wholes[:] = (limit, key, stream.half)
            return 2
        case Scored(limit, _, scores):
            wholes[:2] = (limit, scores.data_ptr())
            return 3
        case Nothing():
            return 4


def _spread(loop: Any, arguments: Sequence[Any], batch: _Batch, numel: np.ndarray) -> None:
    """Run a loop over all tiles, shared among as many threads as torch uses."""
    runs = _runs(batch, numel)
    threads = max(1, min(torch.get_num_threads(), len(runs) // _FEW_RUNS))

    def run(part: np.ndarray) -> None:
        scratch = np.empty(native().scratch_bytes(len(batch[0][1])) + 64, np.uint8)
        aligned = -(-scratch.ctypes.data // 64) * 64
        loop(*arguments, part, aligned)

    if threads == 1:
        run(runs)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, np.array_split(runs, threads)))


def _runs(batch: _Batch, numel: np.ndarray) -> np.ndarray:
    """Job, first tile and end of each run, `(runs, 3)`.

    Jobs of one output tensor, which are those of several candidates, take turns run by run: the
    sources come from memory for the first and from the cache for the others.
    """
    tiles = -(-numel // native().TILE)
    counts = -(-tiles // _RUN)
    jobs = np.repeat(np.arange(len(batch)), counts)
    first = (np.arange(len(jobs)) - np.repeat(counts.cumsum() - counts, counts)) * _RUN
    runs = np.stack([jobs, first, np.minimum(first + _RUN, tiles[jobs])], 1)
    tensors: dict[str, int] = {}
    tensor = np.array([tensors.setdefault(job.group.name, len(tensors)) for job, _ in batch])
    if len(tensors) < len(batch):
        runs = runs[np.lexsort((jobs, first, tensor[jobs]))]
    return runs
