"""The compiled loops for the CPU (numba): whole models in one call, tile by tile.

A tile of every source is widened to float32 in the first-level cache, combined there and rounded
once on its way out, past the cache. Sources are addresses, so that one compiled function serves
every number, size and dtype of parents. Inner loops take slices: only those are vectorised.
Arithmetic is strict (no reordering), so equal inputs give equal bits.
"""

# numba compiles this file's functions; its decorators have no types and its loops no other form.
# pyright: basic, reportPrivateImportUsage=false, reportCallIssue=false

import numba as nb
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

TILE = 512
"""Elements of a tile. A row of float32 takes 2 KiB, so eight parents fit the cache."""

_ROW = TILE + 48  # rows a power of two apart would fall on the same cache lines

FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2
EVERYTHING, WINDOW, BERNOULLI, SCORED, NOTHING = 0, 1, 2, 3, 4

_F = np.float32
_U = np.uint32
_ZERO = np.float32(0)
_ONE = np.float32(1)
_NAN = np.float32(np.nan)
_A16 = np.zeros(1, np.uint16)
_A32 = np.zeros(1, np.float32)

_INNER = {"boundscheck": False, "error_model": "numpy", "nogil": True, "cache": True}
_OUTER = _INNER


def scratch_bytes(parents: int) -> int:
    """Bytes of scratch memory that the loops need: result, base, three sums, output, parents."""
    return 4 * _ROW * (6 + parents)


@nb.njit(**_OUTER)
def linear(out, out_code, srcs, codes, weights, numel, runs, scratch):
    """Write runs of tiles of the jobs' tensors: sum of weights times sources.

    Args:
        out: int64 addresses, `(jobs,)`.
        out_code: Dtype codes, `(jobs,)`.
        srcs: int64 addresses, `(jobs, sources)`.
        codes: Dtype codes, `(jobs, sources)`.
        weights: float32, `(jobs, sources)`.
        numel: `(jobs,)`.
        runs: What to write in which order: job, first tile, tile to stop before, `(runs, 3)`.
        scratch: Address of `scratch_bytes(sources)` bytes.
    """
    for run in range(runs.shape[0]):
        job = runs[run, 0]
        for tile in range(runs[run, 1], runs[run, 2]):
            start = tile * TILE
            n = min(TILE, numel[job] - start)
            acc = _row(scratch, 0, n)
            begun = False
            k = 0
            while k < srcs.shape[1]:
                w = weights[job, k]
                if w == _ZERO:
                    k += 1
                    continue
                x = srcs[job, k]
                pair = (
                    k + 1 < srcs.shape[1]
                    and codes[job, k] == BFLOAT16
                    and codes[job, k + 1] == BFLOAT16
                    and weights[job, k + 1] != _ZERO
                )
                if pair:
                    v = weights[job, k + 1]
                    y = nb.carray(_u16(srcs[job, k + 1] + 2 * start), (n,))
                    if begun:
                        _add_two(acc, nb.carray(_u16(x + 2 * start), (n,)), y, w, v)
                    else:
                        _set_two(acc, nb.carray(_u16(x + 2 * start), (n,)), y, w, v)
                    k += 2
                else:
                    value = _row(scratch, 1, n)
                    _widen(value, x, codes[job, k], start)
                    if begun:
                        _add(acc, value, w)
                    else:
                        _set(acc, value, w)
                    k += 1
                begun = True
            if not begun:
                _clear(acc)
            _store(out[job], out_code[job], start, scratch, n)


@nb.njit(**_OUTER)
def task_vectors(
    out, out_code, base, base_code, srcs, codes, numel, kinds, reals, wholes, options, runs, scratch
):
    """Write runs of tiles of the jobs' tensors: base plus merged task vectors.

    Args:
        out: int64 addresses, `(jobs,)`.
        out_code: Dtype codes, `(jobs,)`.
        base: int64 addresses, `(jobs,)`.
        base_code: Dtype codes, `(jobs,)`.
        srcs: int64 addresses, `(jobs, parents)`.
        codes: Dtype codes, `(jobs, parents)`.
        numel: `(jobs,)`.
        kinds: Kind of each selection, `(jobs, parents)`.
        reals: float32 weight, factor, threshold of first and of last, `(jobs, parents, 4)`.
        wholes: int64 numbers of each selection, `(jobs, parents, 3)`: index of first and last of
            a window (-1 for none); limit, key, half; or limit and address of the scores.
        options: float32 scale, divisor, consensus, normalize, and whether all is bfloat16, kept
            and simply summed, `(jobs, 5)`.
        runs: What to write in which order: job, first tile, tile to stop before, `(runs, 3)`.
        scratch: Address of `scratch_bytes(parents)` bytes.
    """
    parents = srcs.shape[1]
    for run in range(runs.shape[0]):
        job = runs[run, 0]
        for tile in range(runs[run, 1], runs[run, 2]):
            start = tile * TILE
            n = min(TILE, numel[job] - start)
            acc = _row(scratch, 0, n)
            root = _row(scratch, 1, n)
            if options[job, 4] == _ONE and 1 < parents < 4:
                scale = options[job, 0] / options[job, 1]
                r = nb.carray(_u16(base[job] + 2 * start), (n,))
                x = nb.carray(_u16(srcs[job, 0] + 2 * start), (n,))
                y = nb.carray(_u16(srcs[job, 1] + 2 * start), (n,))
                u, v = reals[job, 0, 1], reals[job, 1, 1]
                if parents == 2:
                    _two_offsets(acc, r, x, y, u, v, scale)
                else:
                    z = nb.carray(_u16(srcs[job, 2] + 2 * start), (n,))
                    _three_offsets(acc, r, x, y, z, u, v, reals[job, 2, 1], scale)
                _store(out[job], out_code[job], start, scratch, n)
                continue
            _fetch(base[job], base_code[job], start + TILE)
            _widen(root, base[job], base_code[job], start)
            for k in range(parents):
                _fetch(srcs[job, k], codes[job, k], start + TILE)
                row = _row(scratch, 6 + k, n)
                _selected(
                    row,
                    root,
                    srcs[job, k],
                    codes[job, k],
                    start,
                    reals[job, k, 1],
                    kinds[job, k],
                    reals[job, k, 2],
                    reals[job, k, 3],
                    wholes[job, k, 0],
                    wholes[job, k, 1],
                    wholes[job, k, 2],
                    scratch,
                    k > 0
                    and kinds[job, k - 1] == BERNOULLI
                    and reals[job, k - 1, 1] != _ZERO
                    and wholes[job, k - 1, 1] == wholes[job, k, 1],
                )
            scale = options[job, 0]
            normalize = options[job, 3] != _ZERO
            if options[job, 2] == _ZERO:
                _sum(scratch, parents, n)
                _finish(acc, root, scale / options[job, 1])
            elif parents == 1:
                a = _row(scratch, 6, n)
                _agree1(acc, root, a, reals[job, 0, 0], scale, normalize)
            elif parents == 2:
                a, b = _row(scratch, 6, n), _row(scratch, 7, n)
                if normalize:
                    _share2(acc, root, a, b, _shares(reals[job, 0, 0], reals[job, 1, 0], scale))
                else:
                    _agree2(acc, root, a, b, scale)
            elif parents == 3:
                a, b = _row(scratch, 6, n), _row(scratch, 7, n)
                c = _row(scratch, 8, n)
                if normalize:
                    u, v, w = reals[job, 0, 0], reals[job, 1, 0], reals[job, 2, 0]
                    _share3(acc, root, a, b, c, u, v, w, scale)
                else:
                    _agree3(acc, root, a, b, c, scale)
            else:
                _agree(scratch, parents, n, reals[job, :, 0], scale, normalize)
            _store(out[job], out_code[job], start, scratch, n)


@nb.njit(**_OUTER)
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
        grid: int32, `(blocks, 32768)`: by block, those with a zero lower half; added to.
    """
    delta = np.empty(TILE, _F)
    root = np.empty(TILE + 48, _F)
    for start in range(0, numel, TILE):
        n = min(TILE, numel - start)
        _delta(delta[:n], root[:n], base, base_code, src, code, start)
        row = grid[start // block]
        bits = delta[:n].view(_U)
        for i in range(n):
            size = bits[i] & _U(0x7FFFFFFF)
            counts[size >> _U(16)] += 1
            row[size >> _U(16)] += _U(1) if size & _U(0xFFFF) == _U(0) else _U(0)


@nb.njit(**_OUTER)
def find_tie(base, base_code, src, code, start, stop, size, rank):
    """Position of the rank-th element (from 1) of one size in `start` to `stop`, or -1."""
    delta = np.empty(TILE, _F)
    root = np.empty(TILE + 48, _F)
    left = rank
    for at in range(start, stop, TILE):
        n = min(TILE, stop - at)
        _delta(delta[:n], root[:n], base, base_code, src, code, at)
        here = _count(delta[:n], size)
        if here >= left:
            for i in range(n):
                if abs(delta[i]) == size:
                    left -= 1
                    if left == 0:
                        return at + i
        left -= here
    return -1


@nb.njit(**_OUTER)
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
    delta = np.empty(TILE, _F)
    root = np.empty(TILE + 48, _F)
    found = 0
    for start in range(0, numel, TILE):
        n = min(TILE, numel - start)
        _delta(delta[:n], root[:n], base, base_code, src, code, start)
        for part in range(0, n, 64):
            stop = min(part + 64, n)
            if not _any_in(delta[part:stop].view(_U), _U(number)):
                continue
            for i in range(part, stop):
                size = delta.view(_U)[i] & _U(0x7FFFFFFF)
                if size >> _U(16) == number and size & _U(0xFFFF) != _U(0):
                    sizes[found] = abs(delta[i])
                    places[found] = start + i
                    found += 1


@nb.njit(**_INNER)
def _fetch(address, code, start):
    """Ask for a source's next tile while this one is worked on; past the end it does nothing."""
    width = 4 if code == FLOAT32 else 2
    _prefetch(address + width * start, width * TILE // 64)


@nb.njit(**_INNER)
def _count(delta, size):
    found = 0
    for i in range(delta.size):
        found += abs(delta[i]) == size
    return found


@nb.njit(**_INNER)
def _any_in(bits, number):
    found = False
    for i in range(bits.size):
        size = bits[i] & _U(0x7FFFFFFF)
        found |= (size >> _U(16) == number) & (size & _U(0xFFFF) != _U(0))
    return found


@nb.njit(**_INNER)
def _delta(delta, root, base, base_code, src, code, start):
    _widen(delta, src, code, start)
    if base != 0:
        _widen(root, base, base_code, start)
        for i in range(delta.size):
            delta[i] -= root[i]


@nb.njit(**_INNER)
def _two_offsets(acc, base, x, y, u, v, scale):
    for i in range(acc.size):
        r = _f32(base[i])
        acc[i] = (u * (_f32(x[i]) - r) + v * (_f32(y[i]) - r)) * scale + r


@nb.njit(**_INNER)
def _three_offsets(acc, base, x, y, z, u, v, w, scale):
    for i in range(acc.size):
        r = _f32(base[i])
        s = u * (_f32(x[i]) - r) + v * (_f32(y[i]) - r) + w * (_f32(z[i]) - r)
        acc[i] = s * scale + r


@nb.njit(**_INNER)
def _selected(
    row, root, src, code, start, factor, kind, upper, lower, one, two, three, scratch, drawn
):
    n = row.size
    if factor == _ZERO or kind == NOTHING:
        _clear(row)  # whatever the parent holds: 0 * inf would be NaN
        return
    if kind == WINDOW:
        _windowed(row, root, src, code, start, factor, upper, lower, one, two)
        return
    _scaled(row, root, src, code, start, factor)
    if kind == BERNOULLI:
        bits = _row(scratch, 2, n).view(_U)
        if not drawn:  # two parents share a key, and with it the numbers of a tile
            _draw(bits, two, start)
        _drop_random(row, bits, _U(16 * three), _U(one))
    elif kind == SCORED:
        _drop_scored(row, nb.carray(_u16(two + 2 * start), (n,)), _U(one))


@nb.njit(**_INNER)
def _windowed(row, root, src, code, start, factor, upper, lower, first, last):
    """Up to three runs of elements, between which an equal magnitude changes sides."""
    n = row.size
    cut_first = min(max(first - start, 0), n)
    cut_last = min(max(last - start, 0), n)
    begin = 0
    while begin < n:
        end = n
        if begin < cut_first:
            end = min(end, cut_first)
        if begin < cut_last:
            end = min(end, cut_last)
        low = _ZERO if last < 0 else (lower if begin < cut_last else _after(lower))
        high = _NAN if first < 0 else (upper if begin < cut_first else _after(upper))
        if low != low:  # beyond infinity: nothing but what is no number
            high = low = _ZERO
        _window(row[begin:end], root[begin:end], src, code, start + begin, factor, low, high)
        begin = end


@nb.njit(**_INNER)
def _window(row, root, src, code, start, factor, low, high):
    n = row.size
    if code == BFLOAT16:
        x = nb.carray(_u16(src + 2 * start), (n,))
        if high != high:
            _keep_large16(row, root, x, factor, low)
        else:
            _keep_band16(row, root, x, factor, low, high)
    else:
        _widen(row, src, code, start)
        for i in range(n):
            d = row[i] - root[i]
            row[i] = _ZERO if (abs(d) < low) | (abs(d) >= high) else factor * d


@nb.njit(**_INNER)
def _keep_large16(row, root, x, factor, low):
    for i in range(row.size):
        d = _f32(x[i]) - root[i]
        row[i] = _ZERO if abs(d) < low else factor * d


@nb.njit(**_INNER)
def _keep_band16(row, root, x, factor, low, high):
    for i in range(row.size):
        d = _f32(x[i]) - root[i]
        row[i] = _ZERO if (abs(d) < low) | (abs(d) >= high) else factor * d


@nb.njit(**_INNER)
def _scaled(row, root, src, code, start, factor):
    n = row.size
    if code == BFLOAT16:
        _scaled16(row, root, nb.carray(_u16(src + 2 * start), (n,)), factor)
    else:
        _widen(row, src, code, start)
        for i in range(n):
            row[i] = factor * (row[i] - root[i])


@nb.njit(**_INNER)
def _scaled16(row, root, x, factor):
    for i in range(row.size):
        row[i] = factor * (_f32(x[i]) - root[i])


@nb.njit(**_INNER)
def _draw(bits, key, start):
    """The random numbers of a tile, as `masks.random_bits` makes them."""
    block = np.uint64(start >> 16) * np.uint64(0x9E3779B97F4A7C15)
    mixed = _splitmix64(np.uint64(key) + block)
    ahead, within = _U(mixed & np.uint64(0xFFFFFFFF)), _U(mixed >> np.uint64(32))
    _fill(bits, _U(start & 0xFFFF), ahead, within)


@nb.njit(**_INNER)
def _fill(bits, place, ahead, within):
    for i in range(bits.size):
        x = _U(_U(_U(place + _U(i)) * _U(0x9E3779B9)) + ahead)
        x = _U(x ^ _U(x >> _U(16)))
        x = _U(x * _U(0x7FEB352D))
        x = _U(x ^ _U(x >> _U(15)))
        x = _U(x ^ within)
        x = _U(x * _U(0x846CA68B))
        bits[i] = _U(x ^ _U(x >> _U(16)))


@nb.njit(**_INNER)
def _drop_random(row, bits, shift, limit):
    for i in range(row.size):
        row[i] = row[i] if _U(_U(bits[i] >> shift) & _U(0xFFFF)) < limit else _ZERO


@nb.njit(**_INNER)
def _drop_scored(row, scores, limit):
    for i in range(row.size):
        row[i] = row[i] if _U(scores[i]) < limit else _ZERO


@nb.njit(**_INNER)
def _sum(scratch, parents, n):
    acc = _row(scratch, 0, n)
    if parents == 1:
        _set(acc, _row(scratch, 6, n), _ONE)
        return
    _set_sum(acc, _row(scratch, 6, n), _row(scratch, 7, n))
    for k in range(2, parents):
        _accumulate(acc, _row(scratch, 6 + k, n))


@nb.njit(**_INNER)
def _set_sum(acc, x, y):
    for i in range(acc.size):
        acc[i] = x[i] + y[i]


@nb.njit(**_INNER)
def _accumulate(acc, row):
    for i in range(acc.size):
        acc[i] += row[i]


@nb.njit(**_INNER)
def _finish(acc, root, scale):
    for i in range(acc.size):
        acc[i] = acc[i] * scale + root[i]


@nb.njit(inline="always")
def _part(x):
    """What an element adds: itself if it agrees (is positive after turning) or is no number."""
    return _ZERO if x <= _ZERO else x


@nb.njit(**_INNER)
def _agree1(acc, root, a, u, scale, normalize):
    for i in range(acc.size):
        s = _ONE if a[i] >= _ZERO else -_ONE
        x = _part(a[i] * s)
        weight = u if x != _ZERO else _ZERO
        acc[i] = _agreed(root[i], s, x, weight, scale, normalize)


@nb.njit(**_INNER)
def _agree2(acc, root, a, b, scale):
    for i in range(acc.size):
        s = _ONE if a[i] + b[i] >= _ZERO else -_ONE
        acc[i] = s * (_part(a[i] * s) + _part(b[i] * s)) * scale + root[i]


@nb.njit(**_INNER)
def _agree3(acc, root, a, b, c, scale):
    for i in range(acc.size):
        s = _ONE if a[i] + b[i] + c[i] >= _ZERO else -_ONE
        total = _part(a[i] * s) + _part(b[i] * s) + _part(c[i] * s)
        acc[i] = s * total * scale + root[i]


@nb.njit(**_INNER)
def _shares(u, v, scale):
    """Scale over the sum of weights: of the first parent, the second, and both."""
    return _over(scale, u), _over(scale, v), _over(scale, u + v)


@nb.njit(**_INNER)
def _over(scale, weight):
    return scale if weight == _ZERO else scale / weight


@nb.njit(**_INNER)
def _share2(acc, root, a, b, shares):
    """As `_agree2`, normalised: a choice among three quotients is cheaper than a division."""
    first, second, both = shares
    for i in range(acc.size):
        s = _ONE if a[i] + b[i] >= _ZERO else -_ONE
        x, y = a[i] * s, b[i] * s
        p, q = x <= _ZERO, y <= _ZERO
        total = (_ZERO if p else x) + (_ZERO if q else y)
        share = second if p else (first if q else both)
        acc[i] = s * total * share + root[i]


@nb.njit(**_INNER)
def _share3(acc, root, a, b, c, u, v, w, scale):
    """As `_agree3`, normalised; with seven sets of parents a division is cheaper than a choice."""
    for i in range(acc.size):
        s = _ONE if a[i] + b[i] + c[i] >= _ZERO else -_ONE
        x, y, z = a[i] * s, b[i] * s, c[i] * s
        p, q, r = x <= _ZERO, y <= _ZERO, z <= _ZERO
        total = (_ZERO if p else x) + (_ZERO if q else y) + (_ZERO if r else z)
        weight = (_ZERO if p else u) + (_ZERO if q else v) + (_ZERO if r else w)
        acc[i] = s * total / (_ONE if weight == _ZERO else weight) * scale + root[i]


@nb.njit(inline="always")
def _agreed(root, sign, total, weight, scale, normalize):
    divisor = weight if normalize and weight != _ZERO else _ONE
    return sign * total / divisor * scale + root


@nb.njit(**_INNER)
def _agree(scratch, parents, n, weights, scale, normalize):
    acc, root = _row(scratch, 0, n), _row(scratch, 1, n)
    votes, total, weight = _row(scratch, 2, n), _row(scratch, 3, n), _row(scratch, 4, n)
    _sum(scratch, parents, n)
    _set(votes, acc, _ONE)
    _clear(total)
    _clear(weight)
    for k in range(parents):
        _join(total, weight, votes, _row(scratch, 6 + k, n), weights[k])
    for i in range(n):
        s = _ONE if votes[i] >= _ZERO else -_ONE
        acc[i] = _agreed(root[i], s, total[i], weight[i], scale, normalize)


@nb.njit(**_INNER)
def _join(total, weight, votes, row, w):
    for i in range(total.size):
        s = _ONE if votes[i] >= _ZERO else -_ONE
        x = _part(row[i] * s)
        total[i] += x
        weight[i] += w if x != _ZERO else _ZERO


@nb.njit(**_INNER)
def _clear(row):
    for i in range(row.size):
        row[i] = _ZERO


@nb.njit(**_INNER)
def _set(acc, x, w):
    for i in range(acc.size):
        acc[i] = w * x[i]


@nb.njit(**_INNER)
def _add(acc, x, w):
    for i in range(acc.size):
        acc[i] += w * x[i]


@nb.njit(**_INNER)
def _set_two(acc, x, y, w, v):
    for i in range(acc.size):
        acc[i] = w * _f32(x[i]) + v * _f32(y[i])


@nb.njit(**_INNER)
def _add_two(acc, x, y, w, v):
    for i in range(acc.size):
        acc[i] = acc[i] + w * _f32(x[i]) + v * _f32(y[i])


@nb.njit(**_INNER)
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


@nb.njit(**_INNER)
def _store(address, code, start, scratch, n):
    acc = _row(scratch, 0, n)
    if code == FLOAT32:
        _stream(address + 4 * start, scratch, 4 * n)
        return
    store = scratch + 4 * _ROW * 5
    narrow = nb.carray(_u16(store), (n,))
    if code == BFLOAT16:
        _narrow(narrow, acc)
    else:
        for i in range(n):
            narrow[i] = _to_half(acc[i])
    _stream(address + 2 * start, store, 2 * n)


@nb.njit(**_INNER)
def _narrow(narrow, acc):
    for i in range(acc.size):
        narrow[i] = _b16(acc[i])


@nb.njit(**_INNER)
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
def _row(scratch, number, n):
    """A row of the scratch memory: plain addresses cost nothing, slices count references."""
    return nb.carray(_f(scratch + 4 * _ROW * number), (n,))


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
def _f(address):
    return _pointer(address, _A32)


@intrinsic
def _copy_lines(typing_context, target, source, lines):
    """Copy 64-byte lines with non-temporal stores; the target lies on a line."""

    def generate(context, builder, signature, values):
        line = ir.VectorType(ir.IntType(64), 8)
        note = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        with cgutils.for_range(builder, values[2]) as loop:
            offset = builder.mul(loop.index, ir.Constant(ir.IntType(64), 64))
            at = [
                builder.inttoptr(builder.add(value, offset), line.as_pointer())
                for value in values[:2]
            ]
            store = builder.store(builder.load(at[1], align=2), at[0], align=64)
            store.set_metadata("nontemporal", note)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def _prefetch(typing_context, address, lines):
    """Ask for 64-byte lines; an address that isn't mapped is ignored by the processor."""

    def generate(context, builder, signature, values):
        byte = ir.IntType(8).as_pointer()
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        with cgutils.for_range(builder, values[1]) as loop:
            offset = builder.mul(loop.index, ir.Constant(ir.IntType(64), 64))
            at = builder.inttoptr(builder.add(values[0], offset), byte)
            builder.call(fetch, [at, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate
