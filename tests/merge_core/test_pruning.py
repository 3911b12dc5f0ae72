"""Methods that keep a part of each task vector: Model Breadcrumbs and DELLA."""

import itertools

import pytest
import reference_merges as reference
import torch
from reference_merges import Memory, fast_merge

from merge_core.backends import native_loops
from merge_core.geometry import Geometry, TensorGroup, TensorRef
from merge_core.masks import select

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1,), (7,), (513,), (33, 17), (5, 1))
BREADCRUMBS = ("breadcrumbs", "breadcrumbs_ties")
DELLA = ("della", "della_linear")
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture(params=["auto", "plain"], autouse=True)
def loops(request, monkeypatch):
    """Everything on the compiled loops and on plain torch."""
    monkeypatch.setenv("OUTCROSS_LOOPS", request.param)
    native_loops.cache_clear()
    yield
    native_loops.cache_clear()


# Model Breadcrumbs.


@pytest.mark.parametrize("method", BREADCRUMBS)
@every_dtype
@every_shape
@pytest.mark.parametrize("tied", [False, True], ids=["distinct", "tied"])
@pytest.mark.parametrize(
    ("density", "gamma"),
    [
        ((1.0, 1.0, 1.0), (0.5, 0.0, 0.1)),  # density 1 keeps all, whatever gamma
        ((0.9, 0.5, 0.1), (0.01, 0.2, 0.0)),
        ((0.9, 0.7, 0.5), (0.3, 0.5, 1.5)),  # more dropped than is left
        ((0.0, -2.0, 0.5), (0.1, 0.1, -0.2)),
    ],
    ids=str,
)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
def test_breadcrumbs(method, dtype, shape, tied, density, gamma, normalize, rescale):
    base, parents = case(3, shape, dtype, tied)
    params = {"weight": (0.6, -0.3, 0.9), "density": density, "gamma": gamma, "lambda_": 1.3}
    params |= {"normalize": normalize, "rescale": rescale}
    merged = fast_merge(method, parents, base, **params)
    consensus = method == "breadcrumbs_ties"
    close(merged, reference.breadcrumbs(parents, base, consensus=consensus, **params))


@pytest.mark.parametrize("density", [0.0, 0.004, 0.005, 0.1, 0.33, 0.9, 0.995])
@pytest.mark.parametrize("gamma", [0.0, 0.004, 0.005, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("tied", [False, True], ids=["distinct", "tied"])
def test_breadcrumbs_keeps_exactly_k_after_exactly_as_many_outliers(density, gamma, tied):
    numel = 200
    base, (parent,) = case(1, (numel,), torch.float32, tied)
    delta = parent - base
    merged = fast_merge(
        "breadcrumbs", [delta], torch.zeros(numel), weight=1.0, density=density, gamma=gamma
    )
    kept, top = int(density * numel), int(gamma * numel)
    outliers = min(top, numel - kept)
    expected = torch.zeros(numel)
    order = delta.abs().argsort(descending=True, stable=True)[outliers : outliers + kept]
    expected[order] = delta[order]
    assert torch.equal(merged, expected)


@pytest.mark.parametrize("method", BREADCRUMBS)
def test_breadcrumbs_without_outliers_keeps_the_largest(method):
    base, parents = case(2, (90,), torch.float32, False)
    params = {"weight": 0.6, "density": 0.4, "normalize": True}
    other = "ties" if method == "breadcrumbs_ties" else None
    merged = fast_merge(method, parents, base, gamma=0.0, **params)
    masks = [reference.largest(parent - base, 0.4) for parent in parents]
    expected = (
        fast_merge(other, parents, base, **params)
        if other
        else reference.dare_linear(parents, base, (0.6, 0.6), masks, True, rescale=False)
    )
    close(merged, expected)


# DELLA.


@pytest.mark.parametrize("method", DELLA)
@every_dtype
@every_shape
@pytest.mark.parametrize("tied", [False, True], ids=["distinct", "tied"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
def test_della_sums_what_its_masks_keep(method, dtype, shape, tied, normalize, rescale):
    base, parents = case(3, shape, dtype, tied)
    density, epsilon = (0.5, 1.0, 0.3), (0.15, 5.0, 0.29)
    params = {"weight": (0.6, -0.3, 0.9), "normalize": normalize, "rescale": rescale}
    merged = fast_merge(
        method, parents, base, density=density, epsilon=epsilon, lambda_=1.3, seed=3, **params
    )
    group = group_of(parents, base, seed=3)
    masks = [
        mask_of(group, i, share, spread) if share < 1 else torch.ones(shape, dtype=torch.bool)
        for i, (share, spread) in enumerate(zip(density, epsilon, strict=True))
    ]
    merge = reference.dare_ties if method == "della" else reference.dare_linear
    close(merged, merge(parents, base, masks=masks, lambda_=1.3, **params))


@every_dtype
@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.15), (0.3, 0.25), (0.8, -0.1)])
def test_della_keeps_by_rank_in_the_row(dtype, density, epsilon):
    """Many rows of one order of magnitudes: each column is a sample of its rank's probability."""
    rows = 4096
    values = torch.tensor([3, -1, 4, -1.5, 9, 2, 6, -5, 3.5, -8, 7, 0.5])
    parent = values.repeat(rows, 1).to(dtype)
    group = group_of([parent], torch.zeros_like(parent))
    share = mask_of(group, 0, density, epsilon).double().mean(0)
    expected = reference.keep_probabilities(parent[:1], density, epsilon)[0]
    spread = (expected * (1 - expected) / rows).sqrt()
    assert ((share - expected).abs() < 5 * spread + 1 / 4096).all()


@every_dtype
def test_della_tells_a_thousand_ranks_apart(dtype):
    """mergekit rounds ranks to the working dtype, where bfloat16 has 506 of 1000."""
    base = torch.zeros(64, 1000, dtype=dtype)
    parent = torch.linspace(1, 2, 1000).repeat(64, 1).to(dtype)
    scores = group_of([parent], base).ranked(0, 0.5, 0.4).scores.view(64, 1000).double()
    thin = group_of([parent], base).ranked(0, 0.5, 1e-9).scores.view(64, 1000).double()
    unclamped = (scores > 0) & (scores < 65535)
    steps = (thin - scores) / 65536
    expected = torch.linspace(-0.4, 0.4, 1000).double().expand(64, -1)
    assert ((steps - expected).abs()[unclamped] < 3 / 65536).all()


def test_della_of_one_column_keeps_with_the_density():
    parent = torch.ones(20000, 1)
    share = mask_of(group_of([parent], torch.zeros_like(parent)), 0, 0.3, 0.25)
    assert abs(float(share.double().mean()) - 0.3) < 5 * (0.21 / 20000) ** 0.5


def test_della_masks_are_nested_in_density():
    base, parents = case(1, (33, 17), torch.bfloat16, False)
    group = group_of(parents, base)
    masks = [mask_of(group, 0, share / 20, 0.1) for share in range(3, 18)]
    for smaller, larger in itertools.pairwise(masks):
        assert (smaller <= larger).all()
        assert smaller.sum() < larger.sum()


@pytest.mark.parametrize("method", DELLA)
def test_della_depends_on_the_seed_alone(method):
    base, parents = case(2, (33, 17), torch.float32, False)
    one, again, other = (
        fast_merge(method, parents, base, seed=seed, weight=0.5, density=0.5) for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("method", "plain"), [("della", "ties"), ("della_linear", "task_arithmetic")]
)
def test_della_at_density_one_is_the_method_without_it(method, plain):
    base, parents = case(2, (33, 17), torch.bfloat16, False)
    assert torch.equal(
        fast_merge(method, parents, base, weight=(0.4, 0.9), epsilon=7.0),
        fast_merge(plain, parents, base, weight=(0.4, 0.9)),
    )


@pytest.mark.parametrize("method", [*BREADCRUMBS, *DELLA])
@every_dtype
def test_a_frozen_layer_stays_the_base(method, dtype):
    base, _ = case(1, (33, 17), dtype, False)
    merged = fast_merge(
        method, [base, base], base, weight=0.7, density=0.5, rescale=True, out_dtype=dtype
    )
    assert torch.equal(merged, base)


def case(count, shape, dtype, tied):
    """Base and parents; tied: a third of each task vector has one magnitude, and some are zero."""
    generator = torch.Generator().manual_seed(9)
    base = torch.randn(shape, generator=generator).to(dtype)
    if tied:
        base = base.round()
    parents = []
    for _ in range(count):
        delta = torch.randn(shape, generator=generator)
        if tied:
            kind = torch.randint(0, 6, shape, generator=generator)
            delta = torch.where(kind < 2, delta.sign(), torch.where(kind == 2, 0.0, delta))
        parents.append((base.float() + delta).to(dtype))
    return base, parents


def group_of(parents, base, seed=0):
    tensors = {str(i): parent for i, parent in enumerate(parents)} | {"base": base}
    refs = tuple(TensorRef(str(i), "t") for i in range(len(parents)))
    return TensorGroup("t", refs, TensorRef("base", "t"), None, seed, Geometry(Memory(tensors)))


def mask_of(group, parent, density, epsilon):
    ones = torch.ones(group.shape).flatten()
    return select(group.ranked(parent, density, epsilon), ones, 0).view(group.shape) != 0


def close(actual, expected):
    torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-5, atol=1e-5)
