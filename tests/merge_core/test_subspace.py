"""Singular-vector methods: equality with their slow twins, and the laws of their subspaces."""

import pytest
import reference_elementwise as reference
import torch
from reference_merges import Memory, fast_merge

from merge_core.errors import MergeError
from merge_core.geometry import Geometry, TensorGroup, TensorRef
from merge_core.registry import find_method
from merge_core.subspace import is_matrix

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1,), (7,), (513,), (33, 17), (17, 33), (24, 24), (2, 3, 5))
CASES = [
    ("tsv", {"weight": (1.0, 1.0, 1.0)}),
    ("tsv", {"weight": (0.3, 0.0, 1.2), "lambda_": 0.7}),
    ("iso_c", {}),
    ("iso_c", {"lambda_": 1.6}),
    ("iso_cts", {}),
    ("iso_cts", {"common_space_fraction": 0.5, "lambda_": 1.6}),
    ("iso_cts", {"common_space_fraction": 0.0}),
]
METHODS = ("tsv", "iso_c", "iso_cts")
every_method = pytest.mark.parametrize("method", METHODS)


@pytest.mark.parametrize(("method", "params"), CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_its_slow_twin(method, params, shape, dtype):
    base, *parents = draw(4, shape, dtype)
    expected = getattr(reference, method)(parents, base, **params)
    # bases of subspaces that nearly meet amplify the rounding of their parents
    tolerance = 3e-4 if method == "iso_cts" else 3e-5
    close(fast_merge(method, parents, base, **params), expected, tolerance)


@pytest.mark.parametrize("shape", [(33, 17), (17, 33)])
def test_tsv_of_one_task_is_task_arithmetic(shape):
    base, parent = draw(2, shape)
    merged = fast_merge("tsv", (parent,), base, weight=0.7, lambda_=1.3)
    close(merged, fast_merge("task_arithmetic", (parent,), base, weight=0.7, lambda_=1.3))


def test_tsv_of_tasks_that_do_not_meet_is_their_sum():
    """Tasks of rank 2 in rows and columns of their own: nothing to whiten."""
    one, two = torch.zeros(6, 8), torch.zeros(6, 8)
    one[:2, :3], two[3:5, 4:7] = draw(2, (2, 3))
    merged = fast_merge("tsv", (one, two), torch.zeros(6, 8), weight=(0.5, 2.0))
    close(merged, 0.5 * one + 2 * two)


def test_tsv_of_one_task_given_twice_is_that_task():
    base = torch.zeros(12, 9)
    task = low_rank((12, 9), 3)
    close(fast_merge("tsv", (task, task), base, weight=1.0), task)


def test_tsv_does_not_let_a_frozen_parent_bend_the_others():
    base, task = draw(1, (12, 9))[0], low_rank((12, 9), 4)
    close(fast_merge("tsv", (base + task, base), base, weight=1.0), base + task)


def test_iso_c_has_one_singular_value():
    parents = draw(3, (20, 13))
    merged = fast_merge("iso_c", parents, torch.zeros(20, 13))
    mean = torch.linalg.svdvals(sum(parents)).mean()
    close(torch.linalg.svdvals(merged), mean.expand(13))


def test_iso_c_of_low_rank_keeps_the_rank():
    parents = [low_rank((20, 13), 2, seed) for seed in (0, 1)]
    sizes = torch.linalg.svdvals(fast_merge("iso_c", parents, torch.zeros(20, 13)))
    close(sizes[:4], torch.linalg.svdvals(sum(parents))[:4].mean().expand(4))
    assert float(sizes[4]) < 1e-5


def test_iso_cts_of_low_rank_adds_no_noise():
    parents = [low_rank((20, 13), 2, seed) for seed in (0, 1)]
    merged = fast_merge("iso_cts", parents, torch.zeros(20, 13), common_space_fraction=0.5)
    close(merged, fast_merge("iso_c", parents, torch.zeros(20, 13)))


def test_iso_cts_has_one_singular_value():
    sizes = torch.linalg.svdvals(fast_merge("iso_cts", draw(3, (20, 13)), torch.zeros(20, 13)))
    close(sizes, sizes.mean().expand(13))


def test_iso_cts_of_the_whole_space_is_iso_c():
    base, *parents = draw(4, (20, 13))
    whole = fast_merge("iso_cts", parents, base, common_space_fraction=1.0)
    close(whole, fast_merge("iso_c", parents, base))


@every_method
@pytest.mark.parametrize("shape", [(9,), (12, 9), (1, 9), (9, 1), (2, 2), (1, 1), ()], ids=str)
def test_frozen_layers_stay(method, shape):
    base = draw(1, shape)[0]
    assert torch.equal(fast_merge(method, [base] * 3, base), base)


@every_method
@pytest.mark.parametrize("shape", [(2, 2), (3, 2), (2, 7)], ids=str)
def test_more_tasks_than_directions(method, shape):
    base, *parents = draw(6, shape)
    assert fast_merge(method, parents, base).isfinite().all()


@every_method
def test_two_merges_give_the_same_bits(method):
    base, *parents = draw(4, (20, 13))
    assert torch.equal(fast_merge(method, parents, base), fast_merge(method, parents, base))


@every_method
def test_scaling_scales(method):
    base, *parents = draw(4, (20, 13))
    merged = fast_merge(method, parents, base)
    close(fast_merge(method, [8 * x for x in parents], 8 * base) / 8, merged)


@every_method
def test_a_parent_that_is_not_finite_is_refused(method):
    base, *parents = draw(3, (4, 4))
    parents[1][2, 2] = torch.nan
    with pytest.raises(MergeError, match="tensor 't': a parent's task vector is not finite"):
        fast_merge(method, parents, base)


def test_tables_of_tokens_are_no_matrices():
    assert is_matrix(torch.Size((14336, 4096)))
    assert is_matrix(torch.Size((28672, 8192)))
    assert is_matrix(torch.Size((2, 2)))
    for shape in ((49152, 576), (128256, 4096), (576, 49152), (9,), (1, 9), (2, 3, 4), ()):
        assert not is_matrix(torch.Size(shape))


@every_method
def test_a_trial_makes_nothing_new(method, monkeypatch):
    base, *parents = draw(4, (20, 13))
    memory = Memory({str(i): x for i, x in enumerate(parents)} | {"base": base})
    inputs = tuple(TensorRef(str(i), "t") for i in range(3))
    group = TensorGroup("t", inputs, TensorRef("base", "t"), None, 0, Geometry(memory))
    weight = {"weight": (1.0, 0.5, 0.2)} if method == "tsv" else {}
    combine = find_method(method).combine
    first = combine(group, **weight)
    monkeypatch.setattr(torch.linalg, "svd", None)
    again = combine(group, lambda_=0.5, **weight)
    assert again.sources == first.sources
    assert again.coefficients == (1.0, *(0.5 * c for c in first.coefficients[1:]))


def test_fractions_count_in_steps():
    base, *parents = draw(3, (20, 13))
    near = (fast_merge("iso_cts", parents, base, common_space_fraction=f) for f in (0.69, 0.71))
    assert torch.equal(*near)


def close(actual, expected, tolerance=3e-5):
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


def draw(count, shape, dtype=torch.float32):
    return [
        torch.randn(shape, generator=torch.Generator().manual_seed(70 + seed)).to(dtype)
        for seed in range(count)
    ]


def low_rank(shape, rank, seed=0):
    generator = torch.Generator().manual_seed(90 + seed)
    left, right = (torch.randn(side, rank, generator=generator) for side in shape)
    return left @ right.T
