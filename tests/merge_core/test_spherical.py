"""Methods that decide in Gram matrices: NuSLERP, Multi-SLERP, Karcher mean and Model Stock."""

import math

import numpy as np
import pytest
import reference_merges as reference
import torch
from reference_merges import Memory, fast_merge

from merge_core import geometry
from merge_core.backends import native_loops
from merge_core.combination import TaskVectors
from merge_core.geometry import Geometry, TensorGroup, TensorRef
from merge_core.registry import find_method
from merge_core.rowwise import line_grams

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((), (1,), (7,), (513,), (1, 1), (33, 17), (5, 1), (3, 4, 5))
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
with_or_without_base = pytest.mark.parametrize("based", [False, True], ids=["models", "deltas"])
lines = pytest.mark.parametrize(
    "flags",
    [
        {},
        {"nuslerp_row_wise": True},
        {"nuslerp_flatten": False},
        {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    ],
    ids=str,
)


@pytest.fixture(params=["auto", "plain"], autouse=True)
def loops(request, monkeypatch):
    """Everything on the compiled loops and on plain torch."""
    monkeypatch.setenv("OUTCROSS_LOOPS", request.param)
    native_loops.cache_clear()
    yield
    native_loops.cache_clear()


@every_dtype
@every_shape
@with_or_without_base
@lines
@pytest.mark.parametrize("weight", [(0.3, 0.9), (1.0, 0.0), (0.5, -0.5), (-0.2, 0.7)], ids=str)
def test_nuslerp(dtype, shape, based, flags, weight):
    parents, base = case(2, shape, dtype, based)
    merged = fast_merge("nuslerp", parents, base, weight=weight, **flags)
    close(merged, reference.nuslerp(parents, base, weight, **flags))


@every_dtype
@every_shape
@with_or_without_base
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weight", [(0.4,), (0.3, 0.9), (0.5, 0.0, 1.2), (0.9, -0.3, 0.2)], ids=str)
def test_multislerp(dtype, shape, based, normalize, weight):
    parents, base = case(len(weight), shape, dtype, based)
    params = {"weight": weight, "normalize_weights": normalize}
    expected = reference.multislerp(parents, base, **params)
    close(fast_merge("multislerp", parents, base, **params), expected)


@every_dtype
@every_shape
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("max_iter", [0.0, 1.0, 10.0])
def test_karcher(dtype, shape, count, max_iter):
    parents, _ = case(count, shape, dtype, False)
    expected = reference.karcher(parents, max_iter)
    close(fast_merge("karcher", parents, max_iter=max_iter), expected)


@every_dtype
@every_shape
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("filter_wise", [False, True])
def test_model_stock(dtype, shape, count, filter_wise):
    parents, base = case(count, shape, dtype, True)
    # alike, so that cosines are far from where the denominator is zero
    parents = [(parent + 2 * parents[0]).to(dtype) for parent in parents]
    expected = reference.model_stock(parents, base, filter_wise)
    close(fast_merge("model_stock", parents, base, filter_wise=filter_wise), expected)


PAIRS = {
    "parallel": ([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]),
    "equal": ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]),
    "antipodal": ([1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]),
    "antipodal to rounding": ([0.1, 0.7, 0.3], [-0.3, -2.1, -0.9]),
    "nearly parallel": ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0001]),
    "orthogonal": ([1.0, 0.0, 0.0], [0.0, 2.0, 0.0]),
    "one zero": ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]),
    "both zero": ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
    "minute": ([1e-9, 2e-9, 0.0], [0.0, 1e-9, 1e-9]),
}
every_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


@every_pair
@with_or_without_base
@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("nuslerp", {"weight": (0.3, 0.7)}),
        ("nuslerp", {"weight": (0.3, 0.7), "nuslerp_flatten": False}),
        ("multislerp", {"weight": (0.3, 0.7)}),
        ("multislerp", {"weight": (0.5, 0.5)}),
        ("karcher", {}),
        ("model_stock", {}),
        ("model_stock", {"filter_wise": True}),
    ],
    ids=str,
)
def test_special_angles(pair, based, method, params):
    if (method == "karcher" and based) or (method == "model_stock" and not based):
        pytest.skip("not of this method")
    parents = [torch.tensor(values) for values in pair]
    base = torch.zeros(3) if based else None
    arguments = (parents,) if method == "karcher" else (parents, base)
    merged = fast_merge(method, parents, base, **params)
    assert merged.isfinite().all()
    close(merged, getattr(reference, method)(*arguments, **params))


@pytest.mark.parametrize("method", ["nuslerp", "multislerp", "model_stock"])
@every_dtype
def test_a_frozen_layer_stays_the_base(method, dtype):
    base = draw(1, (33, 17), dtype)[0]
    count = 2 if method == "nuslerp" else 3
    weight = {} if method == "model_stock" else {"weight": (0.2, 0.5, 0.1)[:count]}
    merged = fast_merge(method, [base] * count, base, out_dtype=dtype, **weight)
    assert torch.equal(merged, base)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("nuslerp", {"weight": 0.5, "nuslerp_flatten": False}),
        ("model_stock", {"filter_wise": True}),
    ],
)
def test_frozen_rows_stay_the_base(method, params):
    base, *parents = draw(3, (6, 5))
    frozen = [1, 4]
    for parent in parents:
        parent[frozen] = base[frozen]
    merged = fast_merge(method, parents, base, **params)
    assert torch.equal(merged[frozen], base[frozen])
    assert not torch.equal(merged[0], base[0])


@with_or_without_base
@pytest.mark.parametrize("weight", [0.0, 0.3, 5.0])
def test_multislerp_of_one_model_is_that_model(based, weight):
    base, parent = draw(2, (7,))
    merged = fast_merge("multislerp", [parent], base if based else None, weight=weight)
    close(merged, parent)


def test_multislerp_of_equally_long_models_keeps_their_length():
    parents = [parent / parent.norm() for parent in draw(4, (50,))]
    merged = fast_merge("multislerp", parents, weight=(0.1, 0.2, 0.3, 0.4))
    close(merged.norm(), torch.tensor(1.0))


def test_multislerp_of_directions_that_cancel_is_the_weighted_sum():
    angles = torch.tensor([0.0, 2 * math.pi / 3, 4 * math.pi / 3])
    parents = list(torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [2], [3]]))
    merged = fast_merge("multislerp", parents, weight=(1.0, 1.0, 1.0))
    close(merged, sum(parents) / 3)


def test_nuslerp_of_weights_that_sum_to_zero_goes_half_way():
    parents = draw(2, (9,))
    half, even = (fast_merge("nuslerp", parents, weight=w) for w in ((0.5, -0.5), (2.0, 2.0)))
    assert torch.equal(half, even)


def test_nuslerp_row_wise_runs_along_columns_as_in_mergekit():
    a, b = draw(2, (4, 3))
    flags = {"weight": (0.4, 0.6), "nuslerp_flatten": False}
    columns = fast_merge("nuslerp", (a, b), nuslerp_row_wise=True, **flags)
    rows = fast_merge("nuslerp", (a.T.contiguous(), b.T.contiguous()), **flags)
    close(columns, rows.T)


def test_karcher_is_where_the_pulls_balance():
    parents = draw(4, (20,))
    merged = fast_merge("karcher", parents, max_iter=50, tol=1e-9).double()
    mean = merged / merged.norm()
    units = [parent.double() / parent.double().norm() for parent in parents]
    cosines = [float(mean @ unit) for unit in units]
    pull = sum(
        math.acos(c) / math.sqrt(1 - c * c) * (unit - c * mean)
        for c, unit in zip(cosines, units, strict=True)
    )
    assert pull.norm() < 1e-5
    close(merged.norm(), torch.stack(parents).norm(dim=1).mean())


def test_karcher_leaves_out_parents_without_a_direction_but_counts_their_length():
    (parent,) = draw(1, (9,))
    close(fast_merge("karcher", [parent, torch.zeros(9)]), parent / 2)


@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-12])
def test_model_stock_of_equal_parents_is_that_parent_however_small(size):
    parent = torch.full((16,), size)
    close(fast_merge("model_stock", [parent, parent], torch.zeros(16)) / size, torch.ones(16))


def test_model_stock_pulls_small_tensors_to_the_base_where_mergekit_is_wanted():
    """16 elements of 1e-4: |a| |b| = 1.6e-7, so the cosine reads 0.16 and t 0.2759."""
    group = group_of([torch.full((16,), 1e-4)] * 2, torch.zeros(16), compat=True)
    form = find_method("model_stock").combine(group)
    assert isinstance(form, TaskVectors)
    assert form.factors == pytest.approx((0.32 / 1.16 / 2,) * 2, rel=1e-6)


@pytest.mark.parametrize("piece", [1, 7, 17, 40])
@pytest.mark.parametrize("across", [False, True])
def test_lines_may_lie_across_pieces(piece, across, monkeypatch):
    parents, base = case(3, (9, 17), torch.float32, True)
    vectors = torch.stack([(parent - base).double() for parent in parents])
    expected = torch.einsum("irc,jrc->cij" if across else "irc,jrc->rij", vectors, vectors)
    monkeypatch.setattr(geometry, "_PIECE", {"cpu": piece})
    np.testing.assert_allclose(line_grams(group_of(parents, base), across), expected, rtol=1e-12)
    params = {"weight": (0.3, 0.7), "nuslerp_flatten": False, "nuslerp_row_wise": across}
    merged = fast_merge("nuslerp", parents[:2], base, **params)
    close(merged, reference.nuslerp(parents[:2], base, **params))


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("linear", {"weight": 0.5}),
        ("task_arithmetic", {"weight": 0.5}),
        ("ties", {"weight": 0.5, "density": 0.5}),
        ("ties", {"weight": 0.5, "density": 1.0}),
        ("nuslerp", {"weight": 0.5}),
        ("nuslerp", {"weight": 0.5, "nuslerp_flatten": False}),
        ("multislerp", {"weight": 0.5}),
        ("karcher", {}),
        ("model_stock", {}),
        ("model_stock", {"filter_wise": True}),
    ],
    ids=str,
)
@every_dtype
def test_a_nan_is_not_hidden(method, params, dtype):
    parents, base = case(2, (4, 9), dtype, method != "linear")
    parents[1][2, 3] = torch.nan
    assert fast_merge(method, parents, base, **params)[2, 3].isnan()


def case(count, shape, dtype, based):
    base, *parents = draw(count + 1, shape, dtype)
    return parents, base if based else None


def draw(count, shape, dtype=torch.float32):
    return [
        torch.randn(shape, generator=torch.Generator().manual_seed(50 + seed)).to(dtype)
        for seed in range(count)
    ]


def group_of(parents, base, compat=False):
    tensors = {str(i): parent for i, parent in enumerate(parents)} | {"base": base}
    refs = tuple(TensorRef(str(i), "t") for i in range(len(parents)))
    return TensorGroup(
        "t", refs, TensorRef("base", "t"), None, 0, Geometry(Memory(tensors)), compat
    )


def close(actual, expected):
    torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-5, atol=1e-5)
