"""Elementwise methods: equality with their slow twins, and what their definitions promise."""

import pytest
import reference_elementwise as reference
import torch
from reference_merges import Memory, fast_merge

from merge_core import geometry
from merge_core.elementwise import order_statistics
from merge_core.geometry import Geometry, TensorGroup, TensorRef
from merge_core.registry import find_method

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1,), (7,), (513,), (33, 17), (3, 1), (2, 3, 5), ())
CASES = {
    "sce": [{}, {"select_topk": 0.3}, {"select_topk": 0.05}, {"select_topk": 0.0}],
    "ram": [{}, {"epsilon": 0.2}],
    "ramplus_tl": [{}, {"epsilon": 0.5, "r": 0.7, "alpha": 3.0}, {"epsilon": 0.3, "r": 1.0}],
    "nearswap": [{"t": 0.3}, {"t": 1e-4}, {"t": 0.0}, {"t": -1.0}, {"t": 100.0}],
    "arcee_fusion": [{}],
    "magnitude_average": [
        {"weight": (1.0, 0.3, 0.7), "exponent": 1.0},
        {"weight": (1.0, 0.0, 0.7), "exponent": 2.5, "lambda_": 0.7},
        {"weight": (0.2, 0.4, 0.6), "exponent": 0.0},
    ],
}
every_case = pytest.mark.parametrize(
    ("method", "params"), [(name, params) for name, all_ in CASES.items() for params in all_]
)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@every_case
@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_its_slow_twin(method, params, shape, dtype):
    base, *parents = draw(method, shape, dtype)
    check(method, parents, base, params)


@every_case
@every_dtype
def test_tied_magnitudes_zeros_and_frozen_elements(method, params, dtype):
    """Few distinct values, half the elements as in the base."""
    base, *parents = ((x * 2).round() / 4 for x in draw(method, (40, 13)))
    frozen = torch.arange(base.numel()).view(base.shape) % 2 == 0
    base = base.to(dtype)
    parents = [torch.where(frozen, base, parent.to(dtype)) for parent in parents]
    check(method, parents, base, params)


@every_case
def test_more_than_one_piece(method, params):
    base, *parents = draw(method, (301, 1001), torch.bfloat16)
    check(method, parents, base, params)


@every_case
@pytest.mark.parametrize("piece", [1, 7, 100])
def test_pieces_of_any_size(method, params, piece, monkeypatch):
    monkeypatch.setattr(geometry, "_PIECE", {"cpu": piece})
    base, *parents = draw(method, (33, 17))
    check(method, parents, base, params)


@every_case
def test_frozen_layers_stay(method, params):
    base, *parents = draw(method, (33, 17))
    assert torch.equal(fast_merge(method, [base] * len(parents), base, **params), base)


@every_case
@every_dtype
def test_the_plan_decides_the_dtype(method, params, dtype):
    base, *parents = draw(method, (9,), dtype)
    assert fast_merge(method, parents, base, out_dtype=dtype, **params).dtype == dtype


# Selecting.


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.77, 0.99])
def test_sce_keeps_exactly_k_among_equal_variances(share):
    deltas = torch.randint(-2, 3, (2, 500), generator=torch.Generator().manual_seed(0)) / 4.0
    merged = fast_merge("sce", list(deltas), torch.zeros(500), select_topk=share)
    variance = deltas.var(0, correction=0)
    k = int(int(variance.count_nonzero()) * share)
    order = variance.argsort(descending=True, stable=True)
    assert not merged[order[k:]].any()
    assert merged[order[:k]].count_nonzero() == (deltas.abs().amax(0)[order[:k]] > 0).sum()


def test_sce_weighs_ordinary_fine_tunes():
    """Energies of 1e-8 and 4e-8: the louder one counts four times."""
    base, one, two = torch.zeros(2), torch.tensor([1e-4, 1e-4]), torch.tensor([2e-4, 2e-4])
    merged = fast_merge("sce", (one, two), base)
    torch.testing.assert_close(merged, torch.full((2,), 1.8e-4))


def test_sce_weighs_them_alike_where_mergekit_is_wanted():
    group = grouped(torch.tensor([[1e-4, 1e-4], [2e-4, 2e-4]]), torch.zeros(2), compat=True)
    assert find_method("sce").combine(group).weights == (0.5, 0.5)
    loud = grouped(torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.zeros(2), compat=True)
    assert find_method("sce").combine(loud).weights == (0.2, 0.8)


# Thresholds.


def test_ram_by_hand():
    parents = (torch.tensor([1.0, 0.0, 2.0, 0.1]), torch.tensor([3.0, 5.0, 0.0, 0.1]))
    merged = fast_merge("ram", parents, torch.zeros(4), epsilon=0.1000001)
    assert merged.tolist() == [2.0, 5.0, 2.0, 0.0]


def test_ram_of_one_parent_is_that_parent_above_epsilon():
    base, parent = torch.zeros(7), torch.tensor([0.5, -0.5, 0.6, -0.6, 0.0, 1.0, 1e-6])
    merged = fast_merge("ram", (parent,), base, epsilon=0.5)
    assert torch.equal(merged, torch.where(parent.abs() > 0.5, parent, 0.0))


def test_ramplus_by_hand():
    parents = (torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([3.0, 0.0, 0.0, 0.0]))
    merged = fast_merge("ramplus_tl", parents, torch.zeros(4), r=0.5, alpha=0.4)
    # the first moved two alone and one with the other: ratio 1/2, clamped to 0.4
    torch.testing.assert_close(merged, torch.tensor([2.0, 1.2, 1.2, 0.0]))


def test_ramplus_without_rescaling_is_ram():
    base, *parents = draw("ram", (33, 17))
    plain = fast_merge("ram", parents, base, epsilon=0.4)
    assert torch.equal(fast_merge("ramplus_tl", parents, base, epsilon=0.4, r=0.0), plain)


def test_nearswap_takes_what_is_near():
    base, parent = torch.zeros(4), torch.tensor([0.25, -0.5, 1.0, -2.0])
    merged = fast_merge("nearswap", (parent,), base, t=0.5)
    assert merged.tolist() == [0.25, -0.5, 0.5, -0.5]


def test_arcee_fusion_takes_the_most_important_and_leaves_the_rest():
    base, parent = draw("arcee_fusion", (64, 48))
    merged = fast_merge("arcee_fusion", (parent,), base)
    taken = merged != base
    assert torch.equal(merged[~taken], base[~taken])
    assert 0 < taken.float().mean() < 0.25


def test_arcee_fusion_sees_small_divergences():
    """Changes of 1e-3 in one row of two, 1e-5 in the other; in float32 both would drown."""
    base = torch.randn(2, 400, generator=torch.Generator().manual_seed(3)) / 50
    noise = torch.randn(2, 400, generator=torch.Generator().manual_seed(4))
    parent = base + noise * torch.tensor([[1e-3], [1e-5]])
    assert not (fast_merge("arcee_fusion", (parent,), base)[1] != base[1]).any()


# Averages.


def test_magnitude_average_of_exponent_zero_is_the_mean():
    base, *parents = draw("magnitude_average", (33, 17))
    merged = fast_merge("magnitude_average", parents, base, weight=1.0, exponent=0.0)
    torch.testing.assert_close(merged, torch.stack(parents).mean(0), rtol=1e-5, atol=1e-6)


def test_magnitude_average_of_tiny_changes_does_not_vanish():
    parents = (torch.tensor([1e-12, 0.0]), torch.tensor([2e-12, 0.0]))
    merged = fast_merge("magnitude_average", parents, torch.zeros(2), weight=1.0, exponent=4.0)
    torch.testing.assert_close(merged, torch.tensor([33 / 17 * 1e-12, 0.0]), atol=0, rtol=1e-5)


def test_magnitude_average_never_reads_a_parent_of_weight_zero():
    parents = (torch.tensor([1.0]), torch.tensor([torch.nan]))
    merged = fast_merge("magnitude_average", parents, torch.zeros(1), weight=(0.5, 0.0))
    assert merged.tolist() == [1.0]
    assert fast_merge("magnitude_average", parents, torch.ones(1), weight=0.0).tolist() == [1.0]


def test_ramplus_of_nothing_moved_alone_needs_no_floor():
    parents = (torch.ones(1), torch.ones(1))
    merged = fast_merge("ramplus_tl", parents, torch.zeros(1), epsilon=0.0)
    assert merged.tolist() == [1.0]


# What a search pays.


def test_figures_are_made_once():
    base, one, two = draw("sce", (40,))[:3]
    group = grouped(torch.stack([one, two]), base)
    assert find_method("sce").combine(group).weights is not None
    fusion = grouped(one[None], base)
    first = find_method("arcee_fusion").combine(fusion)
    assert find_method("arcee_fusion").combine(fusion) is first


def test_searched_numbers_leave_few_figures():
    base, one, two = draw("sce", (40,))[:3]
    group = grouped(torch.stack([one, two]), base)
    for share in range(1, 100):
        find_method("sce").combine(group, select_topk=share / 100)
    assert len(group.once(("recent", "sce"), dict)) == 4


@pytest.mark.parametrize("piece", [1, 10, 1000])
def test_order_statistics(piece):
    values = torch.randn(777, generator=torch.Generator().manual_seed(0))
    values[::5] = (values[::5] * 2).round()
    values[3:9] = torch.tensor([0.0, -0.0, 1e-42, -1e-42, torch.inf, -torch.inf])
    ranks = [0, 1, 100, 388, 700, 776]
    expected = values.sort().values[ranks].tolist()
    assert list(order_statistics(lambda: values.split(piece), ranks)) == expected


def check(method, parents, base, params):
    expected = getattr(reference, method)(parents, base, **params)
    actual = fast_merge(method, parents, base, **params)
    torch.testing.assert_close(actual.double(), expected, rtol=2e-6, atol=2e-6)


def draw(method, shape, dtype=torch.float32):
    """A base and as many parents as the method takes, three at most."""
    count = find_method(method).inputs[1] or 3
    return [
        torch.randn(shape, generator=torch.Generator().manual_seed(50 + seed)).to(dtype)
        for seed in range(1 + count)
    ]


def grouped(parents, base, *, compat=False):
    memory = Memory({str(i): parent for i, parent in enumerate(parents)} | {"base": base})
    inputs = tuple(TensorRef(str(i), "t") for i in range(len(parents)))
    return TensorGroup("t", inputs, TensorRef("base", "t"), None, 0, Geometry(memory), compat)
