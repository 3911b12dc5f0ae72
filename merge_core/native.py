"""The compiled loops for the CPU (numba): whole models in one call, tile by tile.

A tile of every source is widened to float32 in the first-level cache, combined there and rounded
once on its way out, past the cache. Sources are addresses, so that one compiled function serves
every number, size and dtype of parents, and so are the rows in between: slices would count
references. Arithmetic is strict (no reordering), so equal inputs give equal bits.

Only inner loops that are functions of their own are vectorised. Calling one costs as much as
thirty elements, so the common cases (two or three parents in bfloat16) have loops that do
everything in one go. They are written so that a choice becomes a masked instruction: `0 if dropped
else product`, `sum if opposed else sum + x`, signs as bits. They take elements in pairs, as 32
bits: a shift and a mask widen them, where single ones would be shuffled, which half of a core's
vector units can't do. And they are without a word that makes numba count references: an atomic
count waits until all stores past the cache are done. Plain sums are vectors by hand (`_sum_lines`).

One file for all of them: numba's cache of compiled code sees changes in a function's own file only.
"""

# numba compiles this file's functions; its decorators have no types and its loops no other form.
# pyright: basic, reportPrivateImportUsage=false, reportCallIssue=false

import numba as nb
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from merge_core.codes import (
    BERNOULLI,
    BETWEEN,
    BFLOAT16,
    EVERYTHING,
    FLOAT16,
    FLOAT32,
    LARGE,
    NOTHING,
    RANDOM,
    RANKED,
    SCORED,
    WINDOW,
)

TILE = 1024
"""Elements of a tile: what a loop works on stays in the first-level cache."""

_HALF_TILE = TILE // 2
_STEP = 1024
_LINE = 32  # elements of 16 bits in a line of the cache
_SPAN = 256  # what is searched one by one where a rare element was seen
_ROW = TILE + 48  # rows a power of two apart would fall on the same cache lines
# Rows of the scratch memory; parents come after them.
_SUM, _BASE, _NUMBERS, _MORE, _SHARE, _OUT, _PARENTS = range(7)

_F = np.float32
_U = np.uint32
_ZERO = np.float32(0)
_ONE = np.float32(1)
_NAN = np.float32(np.nan)
_SIGN = np.uint32(0x80000000)
_A16 = np.zeros(1, np.uint16)
_A32 = np.zeros(1, np.float32)
_B32 = np.zeros(1, np.uint32)

_COMPILED = {"boundscheck": False, "error_model": "numpy", "nogil": True}


def scratch_bytes(parents: int) -> int:
    """Bytes of scratch memory that the loops need."""
    return 4 * _ROW * (_PARENTS + parents)


@nb.njit(cache=True, **_COMPILED)
def linear(jobs, parts, runs, scratch):
    """Write runs of tiles of the jobs' tensors: sum of factors times sources.

    Args:
        jobs: `codes.JOB`, `(jobs,)`.
        parts: `codes.PART`, `(jobs, sources)`.
        runs: What to write in which order: job, first tile, tile to stop before, `(runs, 3)`.
        scratch: Address of `scratch_bytes(sources)` bytes.
    """
    for run in range(runs.shape[0]):
        job = jobs[runs[run, 0]]
        for tile in range(runs[run, 1], runs[run, 2]):
            start = tile * TILE
            n = min(TILE, job.numel - start)
            acc = _row(scratch, _SUM, n)
            begun = False
            for k in range(parts.shape[1]):
                part = parts[runs[run, 0], k]
                if part.factor == _ZERO:
                    continue
                wide = _row(scratch, _BASE, n)
                _widen(wide, part.address, part.code, start)
                if begun:
                    _add(acc, wide, part.factor)
                else:
                    _set(acc, wide, part.factor)
                begun = True
            if not begun:
                _clear(acc)
            _store(job.out, job.out_code, start, scratch, n)


@nb.njit(cache=True, **_COMPILED)
def linear_lines(jobs, parts, runs, scratch):
    """As `linear`, of one or four candidates that share their sources, whole tiles only.

    Two to four sources and the outputs are in bfloat16; outputs lie on 64-byte lines.

    Args:
        jobs: `codes.JOB`, `(groups, candidates)`.
        parts: `codes.PART`, `(groups, candidates, sources)`.
        runs: Group, first tile, tile to stop before, `(runs, 3)`.
        scratch: As in `linear`.
    """
    for run in range(runs.shape[0]):
        group, at = runs[run, 0], 2 * TILE * runs[run, 1]
        lines = (runs[run, 2] - runs[run, 1]) * (TILE // _LINE)
        if parts.shape[2] == 2:
            _weigh_two(jobs, parts, group, at, lines, scratch)
        elif parts.shape[2] == 3:
            _weigh_three(jobs, parts, group, at, lines, scratch)
        else:
            _weigh_four(jobs, parts, group, at, lines, scratch)


@nb.njit(cache=True, **_COMPILED)
def task_vector_lines(jobs, parts, runs, scratch):
    """As `linear_lines`: a base plus weighted sums of two or three task vectors."""
    for run in range(runs.shape[0]):
        group, at = runs[run, 0], 2 * TILE * runs[run, 1]
        lines = (runs[run, 2] - runs[run, 1]) * (TILE // _LINE)
        if parts.shape[2] == 2:
            _shift_two(jobs, parts, group, at, lines, scratch)
        else:
            _shift_three(jobs, parts, group, at, lines, scratch)


@nb.njit(cache=True, **_COMPILED)
def task_vectors(jobs, parts, runs, scratch):
    """Write runs of tiles of the jobs' tensors: base plus merged task vectors.

    Args:
        jobs: `codes.JOB`, `(jobs,)`.
        parts: `codes.PART`, `(jobs, parents)`.
        runs: What to write in which order: job, first tile, tile to stop before, `(runs, 3)`.
        scratch: Address of `scratch_bytes(parents)` bytes.
    """
    parents = parts.shape[1]
    for run in range(runs.shape[0]):
        number = runs[run, 0]
        job = jobs[number]
        for tile in range(runs[run, 1], runs[run, 2]):
            start = tile * TILE
            n = min(TILE, job.numel - start)
            _widen(_row(scratch, _BASE, n), job.base, job.base_code, start)
            for k in range(parents):
                _select(parts[number, k], parts[number, max(k - 1, 0)], k, start, n, scratch)
            if job.consensus == 0 or parents == 1:
                _total(job, parts[number, 0], parents, n, scratch)
            else:
                _agree(job, parts, number, n, scratch)
            _store(job.out, job.out_code, start, scratch, n)


@nb.njit(cache=True, **_COMPILED)
def two_task_vectors(jobs, parts, runs, scratch):
    """As `task_vectors`, of two parents in bfloat16 for which `codes.JOB` names another loop."""
    for run in range(runs.shape[0]):
        job, a, b = jobs[runs[run, 0]], parts[runs[run, 0], 0], parts[runs[run, 0], 1]
        for tile in range(runs[run, 1], runs[run, 2]):
            start = tile * TILE
            n = min(TILE, job.numel - start)
            _two(job, a, b, start, n, scratch)
            _stream(job.out + 2 * start, _place(scratch, _OUT), 2 * n)


@nb.njit(cache=True, **_COMPILED)
def three_task_vectors(jobs, parts, runs, scratch):
    """As `two_task_vectors`, of three parents."""
    for run in range(runs.shape[0]):
        job, a, b = jobs[runs[run, 0]], parts[runs[run, 0], 0], parts[runs[run, 0], 1]
        c = parts[runs[run, 0], 2]
        for tile in range(runs[run, 1], runs[run, 2]):
            start = tile * TILE
            n = min(TILE, job.numel - start)
            _three(job, a, b, c, start, n, scratch)
            _stream(job.out + 2 * start, _place(scratch, _OUT), 2 * n)


@nb.njit(cache=True, **_COMPILED)
def histogram(base, base_code, src, code, numel, block, counts, grid):
    """Count |delta| by the upper half of its float32 pattern.

    Args:
        base: Address, or 0 for no base.
        base_code: Its dtype code.
        src: Address.
        code: Its dtype code.
        numel: Number of elements.
        block: Elements of a block, a multiple of the tile.
        counts: int64, `(32768,)`: all elements by bin; added to.
        grid: uint32, `(blocks, 32768)`: by block, those with a zero lower half; added to.
    """
    memory = np.empty(2 * _ROW, _F)
    for start in range(0, numel, TILE):
        n = min(TILE, numel - start)
        bits = _delta(memory.ctypes.data, n, base, base_code, src, code, start).view(_U)
        row = grid[start // block]
        for i in range(n):
            size = bits[i] & ~_SIGN
            counts[size >> _U(16)] += 1
            row[size >> _U(16)] += _U(1) if size & _U(0xFFFF) == _U(0) else _U(0)


@nb.njit(cache=True, **_COMPILED)
def find_tie(base, base_code, src, code, start, stop, size, rank):
    """Position of the rank-th element (from 1) of one size in `start` to `stop`, or -1."""
    memory = np.empty(2 * _ROW, _F)
    left = rank
    short = base != 0 and base_code == BFLOAT16 and code == BFLOAT16
    for at in range(start, stop, TILE):
        n = min(TILE, stop - at)
        if short and n % 2 == 0:
            here = _count16(base + 2 * at, src + 2 * at, n, size)
        else:
            here = _count(_delta(memory.ctypes.data, n, base, base_code, src, code, at), size)
        if here >= left:
            delta = _delta(memory.ctypes.data, n, base, base_code, src, code, at)
            for i in range(n):
                if abs(delta[i]) == size:
                    left -= 1
                    if left == 0:
                        return at + i
        left -= here
    return -1


@nb.njit(cache=True, **_COMPILED)
def off_grid(base, base_code, src, code, numel, number, sizes, places):
    """Collect the elements of one bin of the histogram whose lower half is not zero.

    Args:
        base: Address, or 0 for no base.
        base_code: Its dtype code.
        src: Address.
        code: Its dtype code.
        numel: Number of elements.
        number: The bin.
        sizes: float32, long enough for all of them: their |delta|; written.
        places: int64, as long: their positions; written.
    """
    memory = np.empty(2 * _ROW, _F)
    found = 0
    low = _U(_U(number << 16) + _U(1))
    short = base != 0 and base_code == BFLOAT16 and code == BFLOAT16
    for start in range(0, numel, _SPAN):
        n = min(_SPAN, numel - start)
        paired = short and n % 2 == 0
        if paired and not _inside16(base + 2 * start, src + 2 * start, n, low):
            continue
        delta = _delta(memory.ctypes.data, n, base, base_code, src, code, start)
        if not paired and not _inside(delta, low):
            continue
        for i in range(n):
            if _in_bin(delta[i], low):
                sizes[found] = abs(delta[i])
                places[found] = start + i
                found += 1
        if found == sizes.size:
            return


@nb.njit(cache=True, **_COMPILED)
def row_ranks(sizes, ranks):
    """Places of the elements in the ascending order of their row; equal ones keep theirs.

    A radix sort by eight bits at a time: an order of magnitude below a comparing sort.

    Args:
        sizes: float32, none negative, NaN the largest: `(rows, columns)`.
        ranks: int32, `(rows, columns)`; written.
    """
    columns = sizes.shape[1]
    order, turn = np.empty(columns, np.int32), np.empty(columns, np.int32)
    counts = np.empty((4, 256), np.int32)
    for row in range(sizes.shape[0]):
        keys = sizes[row].view(_U)
        _count_bytes(keys, counts)
        for i in range(columns):
            order[i] = i
        for byte in range(4):
            _move_by_byte(keys, counts[byte], _U(8 * byte), order, turn)
            order, turn = turn, order
        for place in range(columns):
            ranks[row, order[place]] = place


@nb.njit(inline="always")
def _sources2(parts, group, at):
    return parts[group, 0, 0].address + at, parts[group, 0, 1].address + at


@nb.njit(inline="always")
def _sources3(parts, group, at):
    a, b = _sources2(parts, group, at)
    return a, b, parts[group, 0, 2].address + at


@nb.njit(inline="always")
def _sources4(parts, group, at):
    a, b, c = _sources3(parts, group, at)
    return a, b, c, parts[group, 0, 3].address + at


@nb.njit(inline="always")
def _factors2(parts, group, k):
    return parts[group, k, 0].factor, parts[group, k, 1].factor


@nb.njit(inline="always")
def _factors3(parts, group, k):
    return parts[group, k, 0].factor, parts[group, k, 1].factor, parts[group, k, 2].factor


@nb.njit(inline="always")
def _factors4(parts, group, k):
    a, b, c = _factors3(parts, group, k)
    return a, b, c, parts[group, k, 3].factor


@nb.njit(inline="always")
def _no_base(jobs, group, at):
    return ()


@nb.njit(inline="always")
def _base(jobs, group, at):
    return (jobs[group, 0].base + at,)


@nb.njit(inline="always")
def _no_scale(job):
    return ()


@nb.njit(inline="always")
def _scale_of(job):
    return (job.scale / job.divisor,)


def _writer(sources, factors, base, scale):
    """What writes lines of one candidate, or of four.

    Args:
        sources: Gives the sources' addresses.
        factors: Gives a candidate's factors.
        base: Gives the base's address, if there is one.
        scale: Gives what a candidate's sum is multiplied with before the base is added.
    """

    @nb.njit(**_COMPILED)
    def write(jobs, parts, g, at, lines, scratch):
        end, first, half = at + 64 * lines, _place(scratch, _SUM), 2 * _HALF_TILE
        if jobs.shape[1] == 1:
            job, rows, ends = jobs[g, 0], (factors(parts, g, 0),), (scale(jobs[g, 0]),)
            for here in range(at, end, 2 * half):
                origin, inputs = base(jobs, g, here), sources(parts, g, here)
                _sum_lines((first,), origin, inputs, rows, ends, TILE // _LINE)
                _copy_lines(job.out + here, first, TILE // _LINE)
        else:
            a, b, c, d = jobs[g, 0], jobs[g, 1], jobs[g, 2], jobs[g, 3]
            p, q = factors(parts, g, 0), factors(parts, g, 1)
            r, t = factors(parts, g, 2), factors(parts, g, 3)
            rows, ends = (p, q, r, t), (scale(a), scale(b), scale(c), scale(d))
            outs = (first, first + half, first + 2 * half, first + 3 * half)
            for here in range(at, end, half):
                origin, inputs = base(jobs, g, here), sources(parts, g, here)
                _sum_lines(outs, origin, inputs, rows, ends, _HALF_TILE // _LINE)
                _copy_lines(a.out + here, outs[0], _HALF_TILE // _LINE)
                _copy_lines(b.out + here, outs[1], _HALF_TILE // _LINE)
                _copy_lines(c.out + here, outs[2], _HALF_TILE // _LINE)
                _copy_lines(d.out + here, outs[3], _HALF_TILE // _LINE)

    return write


@nb.njit(**_COMPILED)
def _two(job, a, b, start, n, scratch):
    """A tile of two parents in bfloat16: runs of elements between which no window changes sides."""
    if job.loop == RANDOM:
        _numbers(a, a, _NUMBERS, start, n, scratch)
        _numbers(b, a, _MORE, start, n, scratch)
    begin = 0
    while begin < n:
        count = _evenly(_side(_side(n, begin, a, start), begin, b, start) - begin)
        target, at = _target(scratch, begin), start + begin
        root = _read(job.base, at, count, 0, scratch)
        x, y = _read(a.address, at, count, 1, scratch), _read(b.address, at, count, 2, scratch)
        p, q = _rule(a, at), _rule(b, at)
        if job.loop == RANKED:
            k, m = _scores(a, at, count, 4, scratch), _scores(b, at, count, 5, scratch)
            _ranked_two(job, target, root, x, y, k, m, p, q, count)
        else:
            i = _drawn(_NUMBERS, begin, scratch)
            j = _drawn(_NUMBERS if _shared(a, b) else _MORE, begin, scratch)
            _any_two(job, target, root, x, y, i, j, p, q, count)
        begin += count


@nb.njit(**_COMPILED)
def _three(job, a, b, c, start, n, scratch):
    """As `_two`, of three parents."""
    if job.loop == RANDOM:
        _numbers(a, a, _NUMBERS, start, n, scratch)
        _numbers(b, a, _MORE, start, n, scratch)
        _numbers(c, a, _SHARE, start, n, scratch)
    begin = 0
    while begin < n:
        end = _side(_side(_side(n, begin, a, start), begin, b, start), begin, c, start)
        count = _evenly(end - begin)
        target, at = _target(scratch, begin), start + begin
        root = _read(job.base, at, count, 0, scratch)
        x, y = _read(a.address, at, count, 1, scratch), _read(b.address, at, count, 2, scratch)
        z = _read(c.address, at, count, 3, scratch)
        p, q, r = _rule(a, at), _rule(b, at), _rule(c, at)
        if job.loop == RANKED:
            k, m = _scores(a, at, count, 4, scratch), _scores(b, at, count, 5, scratch)
            o = _scores(c, at, count, 6, scratch)
            _ranked_three(job, target, root, x, y, z, k, m, o, p, q, r, count)
        else:
            i = _drawn(_NUMBERS, begin, scratch)
            j = _drawn(_NUMBERS if _shared(a, b) else _MORE, begin, scratch)
            h = _drawn(_NUMBERS if _shared(a, c) else _SHARE, begin, scratch)
            _any_three(job, target, root, x, y, z, i, j, h, p, q, r, count)
        begin += count


@nb.njit(inline="always")
def _large(delta, rule, number):
    """What a parent adds of an element: those of at least rule[1]; what is no number is kept."""
    return _ZERO if abs(delta) < rule[1] else rule[0] * delta


@nb.njit(inline="always")
def _between(delta, rule, number):
    """And below rule[2]."""
    return rule[0] * delta if (not abs(delta) < rule[1]) & (not abs(delta) >= rule[2]) else _ZERO


@nb.njit(inline="always")
def _random(delta, rule, number):
    """Where a number is at most rule[5]."""
    return rule[0] * delta if number <= rule[5] else _ZERO


@nb.njit(inline="always")
def _sum2(x, y, p, q, scale, plain):
    return (x + y) * scale


@nb.njit(inline="always")
def _sum3(x, y, z, p, q, r, scale, plain):
    return (x + y + z) * scale


@nb.njit(inline="always")
def _vote2(x, y, p, q, scale, plain):
    """The sum of those with the sum's sign; `_agree2` where no weights are needed."""
    sign = _sign(x + y)
    x, y = _turned(x, sign), _turned(y, sign)
    total = x if not x <= _ZERO else _ZERO
    return _turned(total + y if not y <= _ZERO else total, sign) * scale


@nb.njit(inline="always")
def _vote3(x, y, z, p, q, r, scale, plain):
    sign = _sign(x + y + z)
    x, y, z = _turned(x, sign), _turned(y, sign), _turned(z, sign)
    total = x if not x <= _ZERO else _ZERO
    total = total + y if not y <= _ZERO else total
    return _turned(total + z if not z <= _ZERO else total, sign) * scale


@nb.njit(inline="always")
def _agree2(x, y, p, q, scale, plain):
    """The sum of those with the sum's sign, over the sum of their weights unless it is plain."""
    sign = _sign(x + y)
    x, y = _turned(x, sign), _turned(y, sign)
    a, b = not x <= _ZERO, not y <= _ZERO  # neither opposed nor left out
    total = x if a else _ZERO
    total = total + y if b else total
    weight = p[3] if a else _ZERO
    weight = weight + q[3] if b else weight
    return _turned(total if (weight == _ZERO) | plain else total / weight, sign) * scale


@nb.njit(inline="always")
def _agree3(x, y, z, p, q, r, scale, plain):
    sign = _sign(x + y + z)
    x, y, z = _turned(x, sign), _turned(y, sign), _turned(z, sign)
    a, b, c = not x <= _ZERO, not y <= _ZERO, not z <= _ZERO
    total = x if a else _ZERO
    total = total + y if b else total
    total = total + z if c else total
    weight = p[3] if a else _ZERO
    weight = weight + q[3] if b else weight
    weight = weight + r[3] if c else weight
    return _turned(total if (weight == _ZERO) | plain else total / weight, sign) * scale


@nb.njit(inline="always")
def _none(at, i, rule):
    """The number of an element that needs none."""
    return _U(0)


@nb.njit(inline="always")
def _even(at, i, rule):
    """The random number of the first element of the pair i."""
    return _U(_u32(at)[i] & rule[4])


@nb.njit(inline="always")
def _odd(at, i, rule):
    """And of the second."""
    return _U(_u32(at)[i + _HALF_TILE] & rule[4])


@nb.njit(inline="always")
def _first(at, i, rule):
    """The score of the first element of the pair i, on top."""
    return _U(_u32(at)[i] << _U(16))


@nb.njit(inline="always")
def _second(at, i, rule):
    """And of the second; the first one's below decides nothing."""
    return _u32(at)[i]


_NO_NUMBERS = (_none, _none)
_DRAWN = (_even, _odd)
_SCORES = (_first, _second)


def _loop2(numbers, kept, merged):
    """A loop over two parents in bfloat16 that does all: select, merge, add the base, round.

    Args:
        numbers: What gives the number of a pair's first and second element.
        kept: What a parent adds.
        merged: The sum of that.
    """
    first, second = numbers

    @nb.njit(**_COMPILED)
    def loop(target, base, x, y, k, m, p, q, scale, plain, n):
        out, roots, xs, ys = _pairs(target, n), _pairs(base, n), _pairs(x, n), _pairs(y, n)
        for i in range(xs.size):
            root = _low(roots[i])
            a = kept(_low(xs[i]) - root, p, first(k, i, p))
            b = kept(_low(ys[i]) - root, q, first(m, i, q))
            low = merged(a, b, p, q, scale, plain) + root
            root = _high(roots[i])
            a = kept(_high(xs[i]) - root, p, second(k, i, p))
            b = kept(_high(ys[i]) - root, q, second(m, i, q))
            out[i] = _pair(low, merged(a, b, p, q, scale, plain) + root)

    return loop


def _loop3(numbers, kept, merged):
    """As `_loop2`, over three."""
    first, second = numbers

    @nb.njit(**_COMPILED)
    def loop(target, base, x, y, z, k, m, o, p, q, r, scale, plain, n):
        out, roots, xs = _pairs(target, n), _pairs(base, n), _pairs(x, n)
        ys, zs = _pairs(y, n), _pairs(z, n)
        for i in range(xs.size):
            root = _low(roots[i])
            a = kept(_low(xs[i]) - root, p, first(k, i, p))
            b = kept(_low(ys[i]) - root, q, first(m, i, q))
            c = kept(_low(zs[i]) - root, r, first(o, i, r))
            low = merged(a, b, c, p, q, r, scale, plain) + root
            root = _high(roots[i])
            a = kept(_high(xs[i]) - root, p, second(k, i, p))
            b = kept(_high(ys[i]) - root, q, second(m, i, q))
            c = kept(_high(zs[i]) - root, r, second(o, i, r))
            out[i] = _pair(low, merged(a, b, c, p, q, r, scale, plain) + root)

    return loop


def _masked(loop, numbers, add, agree, vote):
    """The loop that a job names, over elements that are kept by their numbers; as `_loops`."""
    loose, agreed, voted = (loop(numbers, _random, merged) for merged in (add, agree, vote))

    @nb.njit(**_COMPILED)
    def masked(job, *rows_and_count):
        scale = job.scale if job.consensus else job.scale / job.divisor
        plain = job.normalize == 0
        rows, n = rows_and_count[:-1], rows_and_count[-1]
        if job.consensus and plain:
            voted(*rows, scale, plain, n)
        elif job.consensus:
            agreed(*rows, scale, plain, n)
        else:
            loose(*rows, scale, plain, n)

    return masked


def _loops(loop, add, agree, vote):
    """The loop that a job names, over any kept elements; and over those with scores alone.

    Args:
        loop: `_loop2` or `_loop3`; the others merge as many.
        add: Without consensus.
        agree: With it.
        vote: With it, where no weights are needed.
    """
    none = _NO_NUMBERS
    large, large_agree = loop(none, _large, add), loop(none, _large, agree)
    between, between_agree, between_vote = (
        loop(none, _between, merged) for merged in (add, agree, vote)
    )
    random = _masked(loop, _DRAWN, add, agree, vote)

    @nb.njit(**_COMPILED)
    def any_kept(job, *rows_and_count):
        scale = job.scale if job.consensus else job.scale / job.divisor
        plain = job.normalize == 0
        rows, n = rows_and_count[:-1], rows_and_count[-1]
        if job.loop == LARGE and job.consensus:
            large_agree(*rows, scale, plain, n)
        elif job.loop == LARGE:
            large(*rows, scale, plain, n)
        elif job.loop == BETWEEN and job.consensus:
            if plain:
                between_vote(*rows, scale, plain, n)
            else:
                between_agree(*rows, scale, plain, n)
        elif job.loop == BETWEEN:
            between(*rows, scale, plain, n)
        else:
            random(job, *rows_and_count)

    return any_kept, _masked(loop, _SCORES, add, agree, vote)


_any_two, _ranked_two = _loops(_loop2, _sum2, _agree2, _vote2)
_any_three, _ranked_three = _loops(_loop3, _sum3, _agree3, _vote3)


@nb.njit(**_COMPILED)
def _rule(part, at):
    """How a parent's elements from `at` on are chosen and counted, as the loops read it.

    Returns:
        Factor, smallest size, size to stay below, weight; which bits of a random number count, and
        the largest number to keep.
    """
    low, high = _limits(part, at)
    half = part.kind == BERNOULLI and part.half == 0
    # 65536 keeps whatever number there is, so a parent that keeps all needs none
    limit = _U(part.limit - 1) if half else _U((part.limit << 16) - 1)
    limit = _U(0xFFFFFFFF) if part.kind == EVERYTHING else limit
    return part.factor, low, high, part.weight, _U(0xFFFF) if half else _U(0xFFFFFFFF), limit


@nb.njit(**_COMPILED)
def _limits(part, at):
    """Smallest size that is kept from `at` on, and the size to stay below; NaN for none."""
    if part.kind != WINDOW:
        return _ZERO, _NAN
    low = _ZERO if part.last < 0 else (part.lower if at < part.last else _after(part.lower))
    high = _NAN if part.first < 0 else (part.upper if at < part.first else _after(part.upper))
    if low != low:  # beyond infinity: nothing but what is no number
        return _ZERO, _ZERO
    return low, high


@nb.njit(inline="always")
def _side(end, begin, part, start):
    """The end of a run, or where an element of a window's threshold changes sides before it."""
    if part.kind == WINDOW:
        if begin < part.first - start:
            end = min(end, part.first - start)
        if begin < part.last - start:
            end = min(end, part.last - start)
    return end


@nb.njit(inline="always")
def _shared(first, part):
    """Whether a parent takes the other half of the first one's random numbers."""
    both = first.kind == BERNOULLI and part.kind == BERNOULLI
    return both and first.source == part.source


@nb.njit(**_COMPILED)
def _numbers(part, first, row, start, n, scratch):
    """A parent's random numbers, unless they are in the first one's row: even places, then odd."""
    if part.kind == BERNOULLI and (row == _NUMBERS or not _shared(first, part)):
        numbers = _row(scratch, row, TILE).view(_U)
        _draw(numbers[: (n + 1) // 2], part.source, start, 2)
        _draw(numbers[_HALF_TILE : _HALF_TILE + n // 2], part.source, start + 1, 2)


@nb.njit(inline="always")
def _drawn(row, begin, scratch):
    """Address of the random numbers from an even place on."""
    return _place(scratch, row) + 2 * begin


@nb.njit(inline="always")
def _scores(part, at, count, slot, scratch):
    """As `_read`, of a parent's scores; of one that keeps all, whatever lies there."""
    address = part.source if part.kind == SCORED else part.address
    return _read(address, at, count, slot, scratch)


@nb.njit(inline="always")
def _evenly(left):
    """How many of the elements left to take next: an even number, or the last one alone."""
    return left - left % 2 if left > 1 else left


@nb.njit(inline="always")
def _read(address, at, count, slot, scratch):
    """Address of 16-bit numbers from `at` on, of which pairs can be read.

    Behind a single one there may be nothing, so it is copied.
    """
    here = address + 2 * at
    if count > 1:
        return here
    copy = _place(scratch, _BASE) + 64 * slot
    _u16(copy)[0] = _u16(here)[0]
    return copy


@nb.njit(inline="always")
def _target(scratch, begin):
    return _place(scratch, _OUT) + 2 * begin


@nb.njit(inline="always")
def _pairs(address, count):
    """16-bit numbers as pairs; of a single one, which is written and read as a pair, too."""
    return nb.carray(_u32(address), ((count + 1) // 2,))


@nb.njit(inline="always")
def _low(pair):
    """A pair's first number."""
    return _U(pair << _U(16)).view(_F)


@nb.njit(inline="always")
def _high(pair):
    """And its second."""
    return _U(pair & _U(0xFFFF0000)).view(_F)


@nb.njit(inline="always")
def _pair(low, high):
    """Two numbers, rounded, as a pair."""
    return _U(_U(_rounded(low) >> _U(16)) | _U(_rounded(high) & _U(0xFFFF0000)))


@nb.njit(inline="always")
def _bf16(address, count):
    return nb.carray(_u16(address), (count,))


@nb.njit(**_COMPILED)
def _select(part, before, k, start, n, scratch):
    """Fill a parent's row: factor times the kept elements of its task vector, zeros between."""
    row, root = _row(scratch, _PARENTS + k, n), _row(scratch, _BASE, n)
    if part.factor == _ZERO or part.kind == NOTHING:
        _clear(row)  # whatever the parent holds: 0 * inf would be NaN
        return
    _widen(row, part.address, part.code, start)
    if part.kind == WINDOW:
        begin = 0
        while begin < n:
            end = _side(n, begin, part, start)
            low, high = _limits(part, start + begin)
            _window(row[begin:end], root[begin:end], part.factor, low, high)
            begin = end
        return
    _scale(row, root, part.factor)
    if part.kind == BERNOULLI:
        numbers = _row(scratch, _NUMBERS, n).view(_U)
        if k == 0 or before.factor == _ZERO or not _shared(before, part):
            _draw(numbers, part.source, start, 1)
        _drop_random(row, numbers, _U(16 * part.half), _U(part.limit))
    elif part.kind == SCORED:
        _drop_scored(row, _bf16(part.source + 2 * start, n), _U(part.limit))


@nb.njit(**_COMPILED)
def _window(row, root, factor, low, high):
    for i in range(row.size):
        d = row[i] - root[i]
        row[i] = factor * d if (not abs(d) < low) & (not abs(d) >= high) else _ZERO


@nb.njit(**_COMPILED)
def _scale(row, root, factor):
    for i in range(row.size):
        row[i] = factor * (row[i] - root[i])


@nb.njit(**_COMPILED)
def _draw(bits, key, start, step):
    """Random numbers of every step-th place of a tile, as `masks.random_bits` makes them."""
    block = np.uint64(start >> 16) * np.uint64(0x9E3779B97F4A7C15)
    mixed = _splitmix64(np.uint64(key) + block)
    ahead, within = _U(mixed & np.uint64(0xFFFFFFFF)), _U(mixed >> np.uint64(32))
    golden = _U(0x9E3779B9)
    _fill(bits, _U(_U(_U(start & 0xFFFF) * golden) + ahead), _U(_U(step) * golden), within)


@nb.njit(**_COMPILED)
def _fill(bits, begin, step, within):
    x = begin
    for i in range(bits.size):
        y = _U(x ^ _U(x >> _U(16)))
        y = _U(y * _U(0x7FEB352D))
        y = _U(y ^ _U(y >> _U(15)))
        y = _U(y ^ within)
        y = _U(y * _U(0x846CA68B))
        bits[i] = _U(y ^ _U(y >> _U(16)))
        x = _U(x + step)


@nb.njit(**_COMPILED)
def _drop_random(row, numbers, shift, limit):
    for i in range(row.size):
        row[i] = row[i] if _U(_U(numbers[i] >> shift) & _U(0xFFFF)) < limit else _ZERO


@nb.njit(**_COMPILED)
def _drop_scored(row, scores, limit):
    for i in range(row.size):
        row[i] = row[i] if _U(scores[i]) < limit else _ZERO


@nb.njit(**_COMPILED)
def _total(job, first, parents, n, scratch):
    """Sum the parents' rows; scale and add the base. One parent agrees with itself."""
    acc = _row(scratch, _SUM, n)
    _set(acc, _row(scratch, _PARENTS, n), _ONE)
    for k in range(1, parents):
        _accumulate(acc, _row(scratch, _PARENTS + k, n))
    scale = job.scale / job.divisor
    if job.consensus:
        weighted = job.normalize and first.weight != _ZERO
        scale = job.scale / first.weight if weighted else job.scale
    _finish(acc, _row(scratch, _BASE, n), scale)


@nb.njit(**_COMPILED)
def _finish(acc, root, scale):
    for i in range(acc.size):
        acc[i] = acc[i] * scale + root[i]


@nb.njit(inline="always")
def _agree(job, parts, number, n, scratch):
    """As `_agree3`, of any number of parents: votes, total and weight have rows of their own."""
    votes, acc = _row(scratch, _NUMBERS, n), _row(scratch, _SUM, n)
    total, weight = _row(scratch, _MORE, n), _row(scratch, _SHARE, n)
    _clear(votes)
    _clear(total)
    _clear(weight)
    for k in range(parts.shape[1]):
        _accumulate(votes, _row(scratch, _PARENTS + k, n))
    for k in range(parts.shape[1]):
        _join(total, weight, votes, _row(scratch, _PARENTS + k, n), parts[number, k].weight)
    _share(acc, _row(scratch, _BASE, n), votes, total, weight, job.scale, job.normalize == 0)


@nb.njit(**_COMPILED)
def _share(acc, root, votes, total, weight, scale, plain):
    for i in range(acc.size):
        divisor = _ONE if (weight[i] == _ZERO) | plain else weight[i]
        acc[i] = _turned(total[i] / divisor, _sign(votes[i])) * scale + root[i]


@nb.njit(**_COMPILED)
def _join(total, weight, votes, row, w):
    for i in range(total.size):
        x = _turned(row[i], _sign(votes[i]))
        total[i] = total[i] if x <= _ZERO else total[i] + x
        weight[i] = weight[i] if x <= _ZERO else weight[i] + w


@nb.njit(**_COMPILED)
def _accumulate(acc, row):
    for i in range(acc.size):
        acc[i] += row[i]


@nb.njit(**_COMPILED)
def _clear(row):
    for i in range(row.size):
        row[i] = _ZERO


@nb.njit(**_COMPILED)
def _set(acc, x, w):
    for i in range(acc.size):
        acc[i] = w * x[i]


@nb.njit(**_COMPILED)
def _add(acc, x, w):
    for i in range(acc.size):
        acc[i] += w * x[i]


@nb.njit(**_COMPILED)
def _delta(memory, n, base, base_code, src, code, start):
    """A tile of a task vector, or of a parent without a base; `memory` has room for two rows."""
    delta, root = nb.carray(_f(memory), (n,)), nb.carray(_f(memory + 4 * _ROW), (n,))
    _widen(delta, src, code, start)
    if base != 0:
        _widen(root, base, base_code, start)
        for i in range(n):
            delta[i] -= root[i]
    return delta


@nb.njit(**_COMPILED)
def _count_bytes(keys, counts):
    """How often each value of each byte occurs, then where its first one goes."""
    for i in range(counts.size):
        counts.flat[i] = 0
    for i in range(keys.size):
        key = keys[i]
        for byte in range(4):
            counts[byte, (key >> _U(8 * byte)) & _U(0xFF)] += 1
    for byte in range(4):
        place = 0
        for value in range(256):
            here = counts[byte, value]
            counts[byte, value] = place
            place += here


@nb.njit(**_COMPILED)
def _move_by_byte(keys, places, shift, order, moved):
    for i in range(order.size):
        value = (keys[order[i]] >> shift) & _U(0xFF)
        moved[places[value]] = order[i]
        places[value] += 1


@nb.njit(**_COMPILED)
def _count(delta, size):
    found = _U(0)
    for i in range(delta.size):
        found += _U(1) if abs(delta[i]) == size else _U(0)
    return found


@nb.njit(**_COMPILED)
def _count16(base, x, n, size):
    """As `_count`, of an even number of bfloat16 at two addresses."""
    roots, xs = _pairs(base, n), _pairs(x, n)
    found = _U(0)
    for i in range(xs.size):
        found += _U(1) if abs(_low(xs[i]) - _low(roots[i])) == size else _U(0)
        found += _U(1) if abs(_high(xs[i]) - _high(roots[i])) == size else _U(0)
    return found


@nb.njit(inline="always")
def _in_bin(delta, low):
    """Whether its size is one of the 65535 patterns from `low` on."""
    return _U(_U(_F(delta).view(_U) & ~_SIGN) - low) < _U(0xFFFF)


@nb.njit(**_COMPILED)
def _inside(delta, low):
    found = _U(0)
    for i in range(delta.size):
        found += _U(1) if _in_bin(delta[i], low) else _U(0)
    return found


@nb.njit(**_COMPILED)
def _inside16(base, x, n, low):
    """As `_inside`, of an even number of bfloat16 at two addresses."""
    roots, xs = _pairs(base, n), _pairs(x, n)
    found = _U(0)
    for i in range(xs.size):
        found += _U(1) if _in_bin(_low(xs[i]) - _low(roots[i]), low) else _U(0)
        found += _U(1) if _in_bin(_high(xs[i]) - _high(roots[i]), low) else _U(0)
    return found


@nb.njit(**_COMPILED)
def _widen(row, address, code, start):
    n = row.size
    if code == BFLOAT16:
        x = nb.carray(_u16(address + 2 * start), (n,))
        for i in range(n):
            row[i] = _f32(x[i])
    elif code == FLOAT16:
        h = nb.carray(_u16(address + 2 * start), (n,))
        for i in range(n):
            row[i] = _half(h[i])
    else:
        f = nb.carray(_f(address + 4 * start), (n,))
        for i in range(n):
            row[i] = f[i]


@nb.njit(**_COMPILED)
def _store(address, code, start, scratch, n):
    acc = _row(scratch, _SUM, n)
    if code == FLOAT32:
        _stream(address + 4 * start, scratch, 4 * n)
        return
    store = _place(scratch, _OUT)
    narrow = nb.carray(_u16(store), (n,))
    if code == BFLOAT16:
        _narrow(narrow, acc)
    else:
        for i in range(n):
            narrow[i] = _to_half(acc[i])
    _stream(address + 2 * start, store, 2 * n)


@nb.njit(**_COMPILED)
def _narrow(narrow, acc):
    for i in range(acc.size):
        narrow[i] = _b16(acc[i])


@nb.njit(**_COMPILED)
def _stream(target, source, count):
    """Copy bytes past the cache where the target lies on its lines."""
    lines = count // 64 if target % 64 == 0 else 0
    _copy_lines(target, source, lines)
    done = 64 * lines
    t = nb.carray(_u16(target + done), ((count - done) // 2,))
    s = nb.carray(_u16(source + done), ((count - done) // 2,))
    for i in range(t.size):
        t[i] = s[i]


@nb.njit(inline="always")
def _place(scratch, number):
    """Address of a row of the scratch memory."""
    return scratch + 4 * _ROW * number


@nb.njit(inline="always")
def _row(scratch, number, n):
    return nb.carray(_f(_place(scratch, number)), (n,))


@nb.njit(inline="always")
def _sign(x):
    return _U(_F(x).view(_U) & _SIGN)


@nb.njit(inline="always")
def _turned(x, sign):
    """Times the sign, as bits: what agrees with it is positive."""
    return _U(_F(x).view(_U) ^ sign).view(_F)


@nb.njit(inline="always")
def _f32(x):
    return _U(_U(x) << _U(16)).view(_F)


@nb.njit(inline="always")
def _b16(x):
    """Round to the nearest bfloat16, ties to even; a NaN stays one."""
    bits = _F(x).view(_U)
    odd = _U(_U(bits >> _U(16)) & _U(1))
    rounded = _U(_U(_U(bits + _U(0x7FFF)) + odd) >> _U(16))
    return np.uint16(rounded if x == x else _U(0x7FC0))


@nb.njit(inline="always")
def _rounded(x):
    """As `_b16`, in the upper half, of what was made of bfloat16 only: NaNs end in zeros there."""
    bits = _F(x).view(_U)
    odd = _U(_U(bits >> _U(16)) & _U(1))
    return _U(_U(bits + _U(0x7FFF)) + odd)


@nb.njit(inline="always")
def _half(h):
    """A float16 pattern's value: exponent moved by a multiplication, infinities restored."""
    magnitude = _U(_U(h & 0x7FFF) << _U(13))
    value = magnitude.view(_F) * _F(5.192296858534828e33)  # 2 ** 112
    special = _U(magnitude | _U(0x7F800000)).view(_F)
    value = special if (h & 0x7FFF) >= 0x7C00 else value
    return _U(_F(value).view(_U) | _U(_U(h & 0x8000) << _U(16))).view(_F)


@nb.njit(inline="always")
def _to_half(x):
    """Round to the nearest float16 pattern, ties to even, subnormals and infinities included."""
    bits = _F(x).view(_U)
    sign = _U((bits >> _U(16)) & _U(0x8000))
    size = _U(bits & _U(0x7FFFFFFF))
    normal = _U((size + _U(0xC8000FFF) + ((size >> _U(13)) & _U(1))) >> _U(13))
    small = _U(_F(size.view(_F) + _F(0.5)).view(_U) - _U(0x3F000000))
    result = small if size < _U(0x38800000) else normal
    result = _U(0x7C00) if size >= _U(0x477FF000) else result
    result = _U(0x7E00) if size > _U(0x7F800000) else result
    return np.uint16(result | sign)


@nb.njit(inline="always")
def _after(x):
    """The next larger float32 of a number that is not negative."""
    return _U(_F(x).view(_U) + _U(1)).view(_F)


@nb.njit(inline="always")
def _splitmix64(x):
    x = np.uint64(x + np.uint64(0x9E3779B97F4A7C15))
    x = np.uint64((x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9))
    x = np.uint64((x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB))
    return np.uint64(x ^ (x >> np.uint64(31)))


@intrinsic
def _pointer(typing_context, address, like):
    """An address as a pointer to elements like an array's."""
    pointer = types.CPointer(like.dtype)

    def generate(context, builder, signature, values):
        return builder.inttoptr(values[0], context.get_value_type(pointer))

    return pointer(types.int64, like), generate


@nb.njit(inline="always")
def _u16(address):
    return _pointer(address, _A16)


@nb.njit(inline="always")
def _u32(address):
    return _pointer(address, _B32)


@nb.njit(inline="always")
def _f(address):
    return _pointer(address, _A32)


@intrinsic
def _sum_lines(typing_context, outs, base, sources, factors, scales, lines):
    """Write 64-byte lines of sums of bfloat16 to memory on lines.

    Vectors by hand: sources are widened once for all candidates, whose number and that of the
    sources make another program each. A vector of 16 pairs is as wide as a line; narrower machines
    take it in parts.

    Args:
        typing_context: Numba's.
        outs: Where the candidates' sums go.
        base: The address of what sources are taken from and sums added to, or nothing.
        sources: Their addresses.
        factors: Of the sources, by candidate.
        scales: By candidate what its sum is multiplied with, or nothing.
        lines: How many.
    """

    def generate(context, builder, signature, values):
        def unpacked(value, like):
            return cgutils.unpack_tuple(builder, value, len(like))

        def spread(value, like):
            rows = zip(unpacked(value, like), like, strict=True)
            return [[_splat(builder, x) for x in unpacked(row, one)] for row, one in rows]

        def at(addresses):
            pointers = [builder.add(x, offset) for x in addresses]
            return [builder.inttoptr(x, _WORDS.as_pointer()) for x in pointers]

        def read(pointer):
            return _halves(builder, builder.load(pointer, align=2))

        starts = [unpacked(values[i], like) for i, like in enumerate((outs, base, sources))]
        rows = list(zip(spread(values[3], factors), spread(values[4], scales), strict=True))
        with cgutils.for_range(builder, values[5]) as loop:
            offset = builder.mul(loop.index, ir.Constant(ir.IntType(64), 64))
            targets, roots, inputs = map(at, starts)
            roots, inputs = [read(x) for x in roots], [read(x) for x in inputs]
            for target, (row, scale) in zip(targets, rows, strict=True):
                halves = [_combined(builder, inputs, roots, row, scale, half) for half in (0, 1)]
                builder.store(_paired(builder, *halves), target, align=64)
        return context.get_dummy_value()

    return types.void(outs, base, sources, factors, scales, lines), generate


_WORDS, _FLOATS = ir.VectorType(ir.IntType(32), 16), ir.VectorType(ir.FloatType(), 16)


def _combined(builder, inputs, roots, row, scale, half):
    """A vector of one half of the pairs: weighted sources, or base and weighted task vectors."""
    parts = [halves[half] for halves in inputs]
    if roots:
        parts = [builder.fsub(part, roots[0][half]) for part in parts]
    total, *others = map(builder.fmul, row, parts)
    for other in others:
        total = builder.fadd(total, other)
    if roots:
        total = builder.fadd(builder.fmul(total, scale[0]), roots[0][half])
    return total


def _words(number):
    return ir.Constant(_WORDS, [number] * 16)


def _splat(builder, number):
    """A number in every place of a vector."""
    nothing = ir.Constant(_FLOATS, ir.Undefined)
    first = builder.insert_element(nothing, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, nothing, _words(0))


def _halves(builder, pairs):
    """The first and the second numbers of pairs, as `_low` and `_high`."""
    low, high = builder.shl(pairs, _words(16)), builder.and_(pairs, _words(0xFFFF0000))
    return builder.bitcast(low, _FLOATS), builder.bitcast(high, _FLOATS)


def _paired(builder, *halves):
    """As `_pair`."""
    rounded = []
    for half in halves:
        bits = builder.bitcast(half, _WORDS)
        odd = builder.and_(builder.lshr(bits, _words(16)), _words(1))
        rounded.append(builder.add(builder.add(bits, _words(0x7FFF)), odd))
    low, high = builder.lshr(rounded[0], _words(16)), builder.and_(rounded[1], _words(0xFFFF0000))
    return builder.or_(low, high)


@intrinsic
def _copy_lines(typing_context, target, source, lines):
    """Copy 64-byte lines with non-temporal stores; the target lies on a line."""

    def generate(context, builder, signature, values):
        note = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        with cgutils.for_range(builder, values[2]) as loop:
            offset = builder.mul(loop.index, ir.Constant(ir.IntType(64), 64))
            to, here = (
                builder.inttoptr(builder.add(value, offset), _WORDS.as_pointer())
                for value in values[:2]
            )
            store = builder.store(builder.load(here, align=2), to, align=64)
            store.set_metadata("nontemporal", note)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


_weigh_two = _writer(_sources2, _factors2, _no_base, _no_scale)
_weigh_three = _writer(_sources3, _factors3, _no_base, _no_scale)
_weigh_four = _writer(_sources4, _factors4, _no_base, _no_scale)
_shift_two = _writer(_sources2, _factors2, _base, _scale_of)
_shift_three = _writer(_sources3, _factors3, _base, _scale_of)
