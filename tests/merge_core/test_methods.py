"""Every registered method: what all must hold, and equality with its slow twin."""

import inspect

import pytest
import reference_merges as reference
import torch
from reference_merges import fast_merge

from merge_core import geometry
from merge_core.combination import Bernoulli, Cut, Window
from merge_core.errors import RecipeError
from merge_core.masks import BLOCK, density_limit, random_stream, select
from merge_core.registry import Base, Range, find_method, merge_method, merge_methods

METHODS = tuple(merge_methods())
SPARSE = tuple(name for name in METHODS if find_method(name).parameter("density"))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TENSORS = (
    ((1,), torch.float32),
    ((2,), torch.bfloat16),
    ((3,), torch.float16),
    ((1, 1), torch.float32),
    ((7, 9), torch.float32),
    ((90,), torch.bfloat16),
)
every_method = pytest.mark.parametrize("method", METHODS)
every_tensor = pytest.mark.parametrize(("shape", "dtype"), TENSORS, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


# What holds for every method: a new one joins by existing.


@every_method
@every_tensor
def test_result_is_finite_and_everywhere_written(method, shape, dtype):
    parents, base, params = case(method, shape, dtype)
    merged = fast_merge(method, parents, base, out_dtype=dtype, **params)
    assert merged.shape == shape
    assert merged.dtype == dtype
    assert merged.isfinite().all()


@every_method
@every_dtype
def test_same_inputs_give_same_bits(method, dtype):
    parents, base, params = case(method, (7, 9), dtype)
    first, second = (fast_merge(method, parents, base, seed=3, **params) for _ in range(2))
    assert torch.equal(first, second)


@every_method
@every_dtype
def test_inputs_are_not_touched(method, dtype):
    parents, base, params = case(method, (7, 9), dtype)
    before = [tensor.clone() for tensor in (*parents, base)]
    fast_merge(method, parents, base, **params)
    assert all(map(torch.equal, before, (*parents, base)))


@every_method
@every_tensor
def test_pieces_give_what_the_whole_gives(method, shape, dtype, monkeypatch):
    parents, base, params = case(method, shape, dtype)
    whole = fast_merge(method, parents, base, **params)
    monkeypatch.setattr(geometry, "_PIECE", {"cpu": 7})
    torch.testing.assert_close(
        fast_merge(method, parents, base, **params), whole, rtol=1e-6, atol=1e-7
    )


@every_method
def test_inputs_are_rounded_first(method):
    parents, base, params = case(method, (7, 9), torch.float32)
    rounded = fast_merge(method, parents, base, rounding=torch.bfloat16, **params)
    coarse = [tensor.bfloat16() for tensor in (*parents, base)]
    # compiled loops, which take no rounding, fuse multiplication and addition
    close(rounded, fast_merge(method, coarse[:-1], coarse[-1], **params), tolerance=1e-6)
    assert not torch.equal(rounded, fast_merge(method, parents, base, **params))


@every_method
def test_result_is_rounded_once_at_the_end(method):
    parents, base, params = case(method, (7, 9), torch.bfloat16)
    fine = fast_merge(method, parents, base, **params)
    coarse = fast_merge(method, parents, base, out_dtype=torch.bfloat16, **params)
    assert torch.equal(coarse, fine.bfloat16())


@every_method
def test_parents_that_are_all_zero_give_zero(method):
    parents, _, params = case(method, (5,), torch.float32)
    nothing = [torch.zeros(5) for _ in parents]
    assert torch.equal(fast_merge(method, nothing, torch.zeros(5), **params), torch.zeros(5))


@every_method
def test_is_documented(method):
    found = find_method(method)
    assert found.title
    assert found.reference.startswith("https://")
    described = inspect.getdoc(found.combine)
    for parameter in found.parameters:
        assert f"{parameter.name}" in described.split("Args:")[1]


@every_method
def test_numbers_have_a_range_to_search(method):
    for parameter in find_method(method).parameters:
        if parameter.kind is float:
            assert parameter.range.low < parameter.range.high
            if parameter.default is not None and parameter.name != "density":  # 1 keeps all
                assert parameter.range.low <= parameter.default <= parameter.range.high


# Parity with the slow twins.

WEIGHTS = ((1.0, 1.0, 1.0), (0.3, 0.0, 0.9), (0.7, -0.4, 0.2))
DENSITIES = ((1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (0.01, 0.34, 0.99), (0.0, -3.0, 2.0))
every_weight = pytest.mark.parametrize("weight", WEIGHTS, ids=str)
every_density = pytest.mark.parametrize("density", DENSITIES, ids=str)
normalized_or_not = pytest.mark.parametrize("normalize", [True, False])
rescaled_or_not = pytest.mark.parametrize("rescale", [True, False])


@every_weight
@every_tensor
@normalized_or_not
def test_linear(weight, shape, dtype, normalize):
    parents = draw(3, shape, dtype)
    params = {"weight": weight, "normalize": normalize}
    close(fast_merge("linear", parents, **params), reference.linear(parents, **params))


def test_linear_of_weights_that_sum_to_zero_without_normalizing():
    a, b = draw(2, (3,))
    close(fast_merge("linear", (a, b), weight=(0.5, -0.5), normalize=False), (a - b) / 2)


def test_linear_never_reads_a_parent_of_weight_zero():
    parents = (torch.tensor([1.0, -0.0]), torch.tensor([torch.inf, torch.nan]))
    merged = fast_merge("linear", parents, weight=(1.0, 0.0))
    assert merged.view(torch.int32).equal(parents[0].view(torch.int32))


@pytest.mark.parametrize("t", [-0.3, 0.0, 0.1, 0.5, 1.0, 1.4])
@every_tensor
def test_slerp(t, shape, dtype):
    parents = draw(2, shape, dtype)
    close(fast_merge("slerp", parents, t=t), reference.slerp(parents, t))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param([2.0, 4.0, 6.0], id="parallel"),
        pytest.param([-1.0, -2.0, -3.0], id="antipodal"),
        pytest.param([1.0, 2.0, 3.04], id="nearly parallel"),
        pytest.param([1.0, 2.0, 3.19], id="cosine 0.9996"),
        pytest.param([1.0, 2.0, 3.23], id="cosine 0.9994"),
        pytest.param([-3.0, 0.0, 1.0], id="orthogonal"),
        pytest.param([0.0, 0.0, 0.0], id="zero"),
        pytest.param([1e-9, 0.0, 0.0], id="as good as zero"),
    ],
)
def test_slerp_of_special_angles(other):
    parents = (torch.tensor([1.0, 2.0, 3.0]), torch.tensor(other))
    close(fast_merge("slerp", parents, t=0.3), reference.slerp(parents, 0.3))


def test_slerp_half_way_between_unit_vectors_has_unit_norm():
    merged = fast_merge("slerp", (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])), t=0.5)
    close(merged, torch.tensor([0.5**0.5, 0.5**0.5]))


@pytest.mark.parametrize("scale", [1.0, 0.5, -2.0, 0.0])
@every_dtype
def test_passthrough(scale, dtype):
    parents = draw(1, (7, 9), dtype)
    close(fast_merge("passthrough", parents, scale=scale), reference.passthrough(parents, (scale,)))


@every_weight
@every_tensor
@normalized_or_not
def test_task_arithmetic(weight, shape, dtype, normalize):
    base, *parents = draw(4, shape, dtype)
    params = {"weight": weight, "normalize": normalize, "lambda_": 0.7}
    close(
        fast_merge("task_arithmetic", parents, base, **params),
        reference.task_arithmetic(parents, base, **params),
    )


def test_normalizing_by_a_sum_of_nearly_zero_is_left_out():
    base, *parents = draw(3, (5,))
    params = {"weight": (0.5, -0.5), "normalize": True}
    close(
        fast_merge("task_arithmetic", parents, base, **params),
        fast_merge("task_arithmetic", parents, base, **params | {"normalize": False}),
    )


@every_weight
@every_density
@every_tensor
@normalized_or_not
@rescaled_or_not
def test_ties(weight, density, shape, dtype, normalize, rescale):
    base, *parents = draw(4, shape, dtype)
    params = {"weight": weight, "density": density, "normalize": normalize, "rescale": rescale}
    close(
        fast_merge("ties", parents, base, lambda_=1.3, **params),
        reference.ties(parents, base, lambda_=1.3, **params),
    )


@pytest.mark.parametrize("density", [k / 200 + 1e-6 for k in range(1, 200, 7)])
def test_ties_keeps_exactly_k_where_magnitudes_are_equal(density):
    # multiples of 1/4 up to 1: nearly all magnitudes occur dozens of times
    base, delta = torch.zeros(200), torch.randint(-4, 5, (200,), generator=generator(0)) / 4
    merged = fast_merge("ties", (delta,), base, weight=1.0, density=density)
    expected = delta * reference.largest(delta, density)
    assert torch.equal(merged, expected)


def test_ties_by_hand():
    base = torch.zeros(5)
    parents = (torch.tensor([1.0, 2, -3, 4, 0]), torch.tensor([3.0, -1, -1, -4, 0]))
    merged = fast_merge("ties", parents, base, weight=1.0, density=1.0)
    # sums 4, 1, -4, 0 (votes +), 0: the parents that agree are averaged
    assert merged.tolist() == [2.0, 2.0, -2.0, 4.0, 0.0]


def test_ties_with_opposite_weights_divides_by_their_small_sum():
    parents = (torch.tensor([1.0]), torch.tensor([-1.0]))
    merged = fast_merge("ties", parents, torch.zeros(1), weight=(0.5, -0.25), density=1.0)
    assert merged.tolist() == [3.0]  # 0.5 + 0.25 over 0.5 - 0.25, as in mergekit


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
@every_weight
@every_density
@every_tensor
@normalized_or_not
@rescaled_or_not
def test_dare(method, weight, density, shape, dtype, normalize, rescale):
    base, *parents = draw(4, shape, dtype)
    params = {"weight": weight, "normalize": normalize, "rescale": rescale, "lambda_": 1.3}
    masks = [bernoulli(parent, share, shape, seed=5) for parent, share in enumerate(density)]
    close(
        fast_merge(method, parents, base, seed=5, density=density, **params),
        getattr(reference, method)(parents, base, masks=masks, **params),
    )


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("density", [0.3, 0.5, 1.0])
def test_dare_rescaled_by_its_density(method, density):
    base, parent = torch.zeros(400), draw(1, (400,))[0]
    params = {"weight": 0.8, "density": density, "rescaling": "density"}
    merged = fast_merge(method, (parent,), base, seed=5, **params)
    kept = parent * bernoulli(0, density, (400,), seed=5)
    close(merged, 0.8 * kept / (density_limit(density) / BLOCK))
    plain = fast_merge(method, (parent,), base, seed=5, rescale=False, **params)
    close(plain, 0.8 * kept)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_depends_on_the_seed_alone(method):
    base, *parents = draw(3, (7, 9))
    merged = [
        fast_merge(method, parents, base, seed=seed, weight=1.0, density=0.5) for seed in (1, 1, 2)
    ]
    assert torch.equal(merged[0], merged[1])
    assert not torch.equal(merged[0], merged[2])


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_drops_from_each_parent_on_its_own(method):
    base, delta = torch.zeros(400), torch.ones(400)
    one = fast_merge(method, (delta,), base, weight=1.0, density=0.5, rescale=False)
    two = fast_merge(method, (delta, delta), base, weight=1.0, density=0.5, rescale=False)
    assert one.unique().tolist() == [0.0, 1.0]
    assert two.unique().tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties"])
def test_rescaling_restores_the_l1_norm(method):
    base, parent = draw(2, (500,))
    params = {"weight": 1.0, "density": 0.3, "normalize": False, "rescale": True}
    merged = fast_merge(method, (parent,), base, **params)
    kept_norm, norm = ((x - base).abs().sum() for x in (merged, parent))
    close(kept_norm, norm, tolerance=1e-4)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear", "dare_ties"])
@rescaled_or_not
@normalized_or_not
def test_int8_mask_changes_no_value(method, rescale, normalize):
    base, *parents = draw(3, (50,))
    params = {"weight": 0.6, "density": 0.4, "rescale": rescale, "normalize": normalize}
    params = {name: value for name, value in params.items() if find_method(method).parameter(name)}
    plain, int8 = (
        fast_merge(method, parents, base, int8_mask=mask, **params) for mask in (False, True)
    )
    assert torch.equal(plain, int8)


@pytest.mark.parametrize(
    "method", [name for name in METHODS if find_method(name).base is Base.REQUIRED]
)
@rescaled_or_not
@pytest.mark.parametrize("which", ["all", "one"])
def test_parents_equal_to_the_base(method, rescale, which):
    base, *parents = draw(3, (20,))
    found = find_method(method)
    parents = ([base, base] if which == "all" else [base, parents[1]])[: found.inputs[1]]
    known = {p.name for p in found.parameters}
    wanted = {"weight": 0.8, "density": 0.3, "rescale": rescale, "t": 0.4}
    params = {name: value for name, value in wanted.items() if name in known}
    merged = fast_merge(method, parents, base, **params)
    assert merged.isfinite().all()
    if which == "all":
        assert torch.equal(merged, base)


def test_order_of_magnitudes_without_a_base_leaves_the_parent_alone():
    parent = torch.tensor([-3.0, 1.0, -2.0])
    memory = geometry.Geometry(reference.Memory({"x": parent}))
    group = geometry.TensorGroup("t", (geometry.TensorRef("x", "t"),), None, None, 0, memory)
    assert group.largest(0, 0.5) == Window(None, Cut(3.0, 1))
    assert parent.tolist() == [-3.0, 1.0, -2.0]


def test_trimming_to_an_infinite_element():
    parent = torch.tensor([1.0, torch.inf, 2.0])
    merged = fast_merge("ties", (parent,), torch.zeros(3), weight=1.0, density=0.4)
    assert merged.tolist() == [0.0, torch.inf, 0.0]


@pytest.mark.parametrize("method", SPARSE)
def test_a_density_of_zero_keeps_nothing(method):
    merged = fast_merge(method, [torch.ones(3)], torch.zeros(3), weight=1.0, density=0.0)
    assert merged.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("method", METHODS)
def test_defaults_and_ranges_are_in_bounds(method):
    for parameter in find_method(method).parameters:
        if (bounds := parameter.bounds) is not None:
            stated = [parameter.default] if parameter.default is not None else []
            ends = [parameter.range.low, parameter.range.high] if parameter.range else []
            assert all(bounds.least <= value <= bounds.most for value in (*stated, *ends))


# The registry.


def test_the_methods_are_registered():
    expected = "dare_linear dare_ties linear passthrough slerp task_arithmetic ties"
    expected += " breadcrumbs breadcrumbs_ties della della_linear"
    expected += " karcher model_stock multislerp nuslerp"
    assert set(expected.split()) <= set(METHODS)


def test_a_signature_is_a_search_space():
    found = find_method("ties")
    density, scale = found.parameter("density"), found.parameter("lambda")
    assert (density.kind, density.per_parent, density.default) == (float, True, 1.0)
    assert (scale.kind, scale.per_parent, scale.default) == (float, False, 1.0)
    assert density.range == Range(0.05, 1.0)
    assert found.parameter("weight").required
    assert not density.required
    assert found.parameter("normalize").kind is bool
    assert found.parameter("lambda_") is None


def test_words_to_choose_from_are_read_from_the_signature():
    rescaling = find_method("dare_ties").parameter("rescaling")
    assert (rescaling.kind, rescaling.choices) == (str, ("norm", "density"))
    assert rescaling.default == "norm"


def test_a_method_joins_by_its_decorator(monkeypatch):
    from merge_core import registry

    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    @merge_method(title="New", reference="https://example.org", base=Base.INPUT, inputs=(2, 4))
    def brand_new(group, *, strict: bool = False): ...

    found = find_method("brand_new")
    assert found.inputs == (2, 4)
    assert [p.name for p in found.parameters] == ["strict"]
    assert list(merge_methods()) == sorted(merge_methods())


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(RecipeError, match="merge_method: 'tie' is unknown; did you mean 'ties'"):
        find_method("tie")


def test_a_method_like_no_other_lists_them_all():
    with pytest.raises(RecipeError, match=r"known: .*dare_linear, dare_ties, .*ties"):
        find_method("xyzzy")


def case(method, shape, dtype):
    """Parents, base and parameters off their defaults, from the method's own description."""
    found = find_method(method)
    least, most = found.inputs
    base, *parents = draw(1 + max(least, min(3, most or 3)), shape, dtype)
    params = {
        parameter.name: 0.6 * parameter.range.low + 0.4 * parameter.range.high
        for parameter in found.parameters
        if parameter.range
    }
    return parents, base, params


def draw(count, shape, dtype=torch.float32):
    """Random tensors, far from each other: each element differs in sign somewhere."""
    return [torch.randn(shape, generator=generator(seed)).to(dtype) for seed in range(count)]


def generator(seed):
    return torch.Generator().manual_seed(1000 + seed)


def bernoulli(parent, density, shape, seed):
    ones = torch.ones(shape).flatten()
    if density >= 1 or density <= 0:
        return ones.view(shape) == (density >= 1)
    selection = Bernoulli(density_limit(density), random_stream(seed, "t", parent))
    return select(selection, ones, 0).view(shape) != 0


def close(actual, expected, tolerance=2e-6):
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)
