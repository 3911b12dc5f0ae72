"""Execute what methods decided: compiled loops over whole models, or torch piece by piece."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from merge_core import codes
from merge_core.backends import address, fused_loops, native, native_loops
from merge_core.combination import (
    Bernoulli,
    Combination,
    Elementwise,
    Linear,
    Nothing,
    Scored,
    Selection,
    TaskVectors,
    Window,
)
from merge_core.fused import execute_fused
from merge_core.geometry import TensorGroup
from merge_core.tiled import divisor, execute_tiled, sources

_RUN = 32  # tiles that one candidate takes in turn: with four parents, a quarter of a 1 MiB cache
_LINE = 64  # bytes that the processor's cache takes together
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
            _execute_with_torch(job)
        else:
            kind = (type(job.combination), len(places))
            batches.setdefault(kind, []).append((job, places))
    for (kind, _), batch in batches.items():
        (_run_linear if kind is Linear else _run_task_vectors)(batch)


def _execute_with_torch(job: Job) -> None:
    plain = isinstance(job.combination, Elementwise) or not fused_loops(job.out.device.type)
    (execute_tiled if plain else execute_fused)(job.combination, job.group, job.out)


def _places(job: Job) -> list[tuple[int, int]] | None:
    """Addresses and dtype codes of output, base and inputs, or None where torch has to do it."""
    group, form = job.group, job.combination
    if group.dtype is not None or not isinstance(form, Linear | TaskVectors) or not native_loops():
        return None
    refs = sources(form, group)
    if isinstance(form, TaskVectors):
        assert group.base is not None  # the method asked for it; planned so
        refs = (group.base, *refs)
    found = [address(job.out), *map(group.geometry.place, refs)]
    places = [place for place in found if place is not None]
    return places if len(places) == len(found) else None


def _run_linear(batch: _Batch) -> None:
    jobs, parts = _tables(batch, 1)
    parts["factor"] = [job.combination.coefficients for job, _ in batch]  # pyright: ignore
    fits = _short(jobs, parts) & (1 < parts.shape[1] < 5)
    first = _run_lines(native().linear_lines, jobs, parts, batch, fits)
    _spread(native().linear, jobs, parts, batch, first)


def _run_task_vectors(batch: _Batch) -> None:
    jobs, parts = _tables(batch, 2)
    jobs["base"], jobs["base_code"] = ([places[1][i] for _, places in batch] for i in (0, 1))
    forms: list[Any] = [job.combination for job, _ in batch]
    parts["weight"] = [form.weights for form in forms]
    parts["factor"] = [form.factors for form in forms]
    for name in ("scale", "consensus", "normalize"):
        jobs[name] = [getattr(form, name) for form in forms]
    jobs["divisor"] = [divisor(form) for form in forms]
    for row, form in zip(parts, forms, strict=True):
        for part, selection in zip(row, form.selections, strict=True):
            _describe(selection, part)
    jobs["loop"] = _loops(jobs, parts)
    loops = native()
    quick = loops.two_task_vectors if parts.shape[1] == 2 else loops.three_task_vectors
    whole, general = (jobs["loop"] == code for code in (codes.WHOLE, codes.GENERAL))
    first = _run_lines(loops.task_vector_lines, jobs, parts, batch, whole)
    for loop, chosen in ((loops.task_vectors, general | whole), (quick, ~(general | whole))):
        if (chosen := np.flatnonzero(chosen)).size:
            some = [batch[int(i)] for i in chosen]
            _spread(loop, jobs[chosen], parts[chosen], some, first[chosen])


def _run_lines(
    loop: Any, jobs: np.ndarray, parts: np.ndarray, batch: _Batch, fits: np.ndarray
) -> np.ndarray:
    """Run a loop over the whole tiles of the jobs that fit it.

    Candidates that share all they read are taken by four, the others one by one.

    Returns:
        Tiles of each job that are done.
    """
    whole = np.where(fits & (jobs["out"] % _LINE == 0), jobs["numel"] // native().TILE, 0)
    chosen = np.flatnonzero(whole)
    fours = np.array(_fours(jobs, parts, chosen), np.int64).reshape(-1, 4)
    for groups in (fours, np.setdiff1d(chosen, fours)[:, None]):
        if len(groups):
            leaders = [batch[int(i)] for i in groups[:, 0]]
            none = np.zeros(len(groups), np.int64)
            _spread(loop, jobs[groups], parts[groups], leaders, none, whole[groups[:, 0]])
    return whole


def _fours(jobs: np.ndarray, parts: np.ndarray, chosen: np.ndarray) -> list[np.ndarray]:
    """Jobs of several candidates that share base and sources, by four."""
    alike: dict[tuple[int, int, bytes], list[int]] = {}
    for number in chosen if len(chosen) > 3 else ():
        base, numel = jobs["base"].item(number), jobs["numel"].item(number)
        key = (base, numel, parts["address"][number].tobytes())
        alike.setdefault(key, []).append(number)
    return [
        np.array(numbers[i : i + 4])
        for numbers in alike.values()
        for i in range(0, len(numbers) - 3, 4)
    ]


def _tables(batch: _Batch, first: int) -> tuple[np.ndarray, np.ndarray]:
    """The jobs and their parents, which begin at the given place, as far as addresses go."""
    table = np.array([places for _, places in batch], np.int64)
    jobs = np.zeros(len(batch), codes.JOB)
    jobs["out"], jobs["out_code"] = table[:, 0].T
    jobs["numel"] = [job.out.numel() for job, _ in batch]
    parts = np.zeros((len(batch), table.shape[1] - first), codes.PART)
    parts["first"] = parts["last"] = -1
    parts["address"], parts["code"] = table[:, first:].transpose(2, 0, 1)
    return jobs, parts


def _describe(selection: Selection, part: np.void) -> None:
    """Write a selection into a parent's row of the table."""
    match selection:
        case None:
            part["kind"] = codes.EVERYTHING
        case Window(first, last):
            part["kind"] = codes.WINDOW
            if first is not None:
                part["upper"], part["first"] = first.threshold, first.index
            if last is not None:
                part["lower"], part["last"] = last.threshold, last.index
        case Bernoulli(limit, stream):
            part["kind"], part["limit"], part["half"] = codes.BERNOULLI, limit, stream.half
            part["source"] = stream.key - (1 << 64) if stream.key >= 1 << 63 else stream.key
        case Scored(limit, _, scores):
            part["kind"], part["limit"] = codes.SCORED, limit
            part["source"] = scores.data_ptr()
        case Nothing():
            part["kind"] = codes.NOTHING


def _loops(jobs: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """The fastest loop that can take each job: for two or three parents in bfloat16."""
    kinds, windows = parts["kind"], parts["kind"] == codes.WINDOW
    whole = kinds == codes.EVERYTHING
    choice = np.select(
        [
            whole.all(1) & (jobs["consensus"] == 0),
            (whole | (windows & (parts["first"] < 0))).all(1),
            (whole | windows).all(1),
            (whole | (kinds == codes.BERNOULLI)).all(1),
            (whole | (kinds == codes.SCORED)).all(1),
        ],
        [codes.WHOLE, codes.LARGE, codes.BETWEEN, codes.RANDOM, codes.RANKED],
        codes.GENERAL,
    )
    fits = _short(jobs, parts) & (jobs["base_code"] == codes.BFLOAT16) & (1 < parts.shape[1] < 4)
    return np.where(fits, choice, codes.GENERAL)


def _short(jobs: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Whether a job's output and sources are in bfloat16, and all of them count."""
    kinds = np.column_stack([jobs["out_code"], parts["code"]])
    # a factor of 0 leaves a parent out, whatever it holds: 0 * inf would be NaN
    return (kinds == codes.BFLOAT16).all(1) & (parts["factor"] != 0).all(1)


def _spread(
    loop: Any,
    jobs: np.ndarray,
    parts: np.ndarray,
    batch: _Batch,
    first: np.ndarray,
    stop: np.ndarray | None = None,
) -> None:
    """Run a loop over tiles, shared among as many threads as torch uses.

    Args:
        loop: One of `native`.
        jobs: `(jobs,)` or `(groups, candidates)`.
        parts: As the loop wants them.
        batch: The jobs, or the first of each group.
        first: Their first tile.
        stop: The tile to stop before; default the end.
    """
    numel = jobs["numel"].reshape(len(batch), -1)[:, 0]
    runs = _runs(batch, first, -(-numel // native().TILE) if stop is None else stop)
    if not len(runs):
        return
    threads = max(1, min(torch.get_num_threads(), len(runs) // _FEW_RUNS))

    def run(part: np.ndarray) -> None:
        scratch = np.empty(native().scratch_bytes(parts.shape[-1]) + _LINE, np.uint8)
        aligned = -(-scratch.ctypes.data // _LINE) * _LINE
        loop(jobs, parts, part, aligned)

    if threads == 1:
        run(runs)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, np.array_split(runs, threads)))


def _runs(batch: _Batch, begin: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Job, first tile and end of each run, `(runs, 3)`, of jobs from their first tile to their end.

    Jobs of one output tensor, which are those of several candidates, take turns run by run: the
    sources come from memory for the first and from the cache for the others.
    """
    counts = -(-(stop - begin) // _RUN)
    jobs = np.repeat(np.arange(len(batch)), counts)
    first = (np.arange(len(jobs)) - np.repeat(counts.cumsum() - counts, counts)) * _RUN + begin[
        jobs
    ]
    runs = np.stack([jobs, first, np.minimum(first + _RUN, stop[jobs])], 1)
    tensors: dict[str, int] = {}
    tensor = np.array([tensors.setdefault(job.group.name, len(tensors)) for job, _ in batch])
    if len(tensors) < len(batch):
        runs = runs[np.lexsort((jobs, first, tensor[jobs]))]
    return runs
