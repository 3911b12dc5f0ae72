"""Laws of merging that hold for all numbers."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference_merges import Memory, fast_merge, largest

from merge_core.geometry import Geometry, TensorGroup, TensorRef
from merge_core.masks import select
from merge_core.recipe import from_dict, to_dict
from merge_core.registry import Base, find_method, merge_methods

METHODS = tuple(merge_methods())
TASK_VECTORS = tuple(name for name in METHODS if find_method(name).base is Base.REQUIRED)
SCALED = tuple(
    name
    for name in TASK_VECTORS
    if {"weight", "lambda"} <= {p.name for p in find_method(name).parameters}
)
# They compare differences with a fixed size, or rows by their softmax.
ABSOLUTE = {"nearswap", "ram", "ramplus_tl", "arcee_fusion"}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def law(*numbers):
    """Check a test on drawn numbers, the same ones in every run."""
    return lambda test: settings(deadline=None, max_examples=50, derandomize=True)(
        given(*numbers)(test)
    )


finite = st.floats(-50, 50, width=16)
shares = st.floats(0, 1)
weights = st.floats(0.0625, 2, width=16)


@st.composite
def tensors(draw, count):
    """Equally long tensors of one dtype; few distinct values, so magnitudes tie often."""
    size = draw(st.integers(1, 12))
    values = draw(st.sampled_from([finite, st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0])]))
    dtype = draw(st.sampled_from(DTYPES))
    rows = st.lists(values, min_size=size, max_size=size)
    return [torch.tensor(draw(rows)).to(dtype) for _ in range(count)]


@law(tensors(3), st.integers(0, 2), st.booleans())
def test_one_hot_linear_is_that_parent_bit_for_bit(parents, hot, normalize):
    weight = [float(i == hot) for i in range(3)]
    dtype = parents[hot].dtype
    merged = fast_merge("linear", parents, weight=weight, normalize=normalize, out_dtype=dtype)
    assert same_bits(merged, parents[hot])


@law(tensors(1))
def test_passthrough_is_its_parent_bit_for_bit(parents):
    dtype = parents[0].dtype
    assert same_bits(fast_merge("passthrough", parents, out_dtype=dtype), parents[0])


@pytest.mark.parametrize("method", METHODS)
@law(tensors(1), st.lists(weights, min_size=3, max_size=3), shares)
def test_a_model_merged_with_itself_is_itself(method, one, weight, t):
    found = find_method(method)
    count = min(3, found.inputs[1] or 3)
    known = {p.name for p in found.parameters}
    wanted = {"weight": weight[:count], "t": t, "density": 0.5}
    params = {name: value for name, value in wanted.items() if name in known}
    if method == "karcher":  # as good as zero
        assume(one[0].float().norm() > 1e-4)
    merged = fast_merge(method, one * count, one[0], **params)
    torch.testing.assert_close(merged, one[0].float(), rtol=1e-6, atol=1e-7)


@law(tensors(2), weights)
def test_ties_of_one_parent_at_full_density_is_task_arithmetic(pair, weight):
    parents, base = pair[:1], pair[1]
    ties = fast_merge("ties", parents, base, weight=weight, density=1.0, normalize=False)
    assert torch.equal(ties, fast_merge("task_arithmetic", parents, base, weight=weight))


@pytest.mark.parametrize(
    ("dare", "plain"), [("dare_linear", "task_arithmetic"), ("dare_ties", "ties")]
)
@law(tensors(3), weights, st.booleans())
def test_dare_that_drops_nothing_is_the_method_without_it(dare, plain, three, weight, normalize):
    *parents, base = three
    params = {"weight": [weight, 1.0], "normalize": normalize}
    assert torch.equal(
        fast_merge(dare, parents, base, density=1.0, **params),
        fast_merge(plain, parents, base, **params),
    )


@law(tensors(2))
def test_task_arithmetic_of_one_parent_at_weight_one_is_that_parent(pair):
    merged = fast_merge("task_arithmetic", pair[:1], pair[1], weight=1.0)
    torch.testing.assert_close(merged, pair[0].float(), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
@law(tensors(4), st.lists(weights, min_size=3, max_size=3), st.permutations(range(3)))
def test_the_order_of_parents_does_not_matter_to_sums(method, four, weight, order):
    *parents, base = four
    merged = fast_merge(method, parents, base, weight=weight)
    moved = fast_merge(method, [parents[i] for i in order], base, weight=[weight[i] for i in order])
    torch.testing.assert_close(moved, merged, rtol=1e-5, atol=1e-3)


@law(tensors(3), st.tuples(weights, weights), st.tuples(shares, shares), st.booleans())
def test_the_order_of_two_parents_does_not_matter_to_ties(three, weight, density, normalize):
    *parents, base = three
    merged, swapped = (
        fast_merge(
            "ties",
            parents[::way],
            base,
            weight=weight[::way],
            density=density[::way],
            normalize=normalize,
            rescale=True,
        )
        for way in (1, -1)
    )
    torch.testing.assert_close(swapped, merged, rtol=1e-6, atol=1e-6)


@law(tensors(2), shares)
def test_slerp_runs_the_same_way_back(pair, t):
    there, back = fast_merge("slerp", pair, t=t), fast_merge("slerp", pair[::-1], t=1 - t)
    torch.testing.assert_close(back, there, rtol=1e-4, atol=1e-3)


@law(tensors(2))
def test_slerp_ends_at_its_parents(pair):
    for t, parent in enumerate(pair):
        merged = fast_merge("slerp", pair, t=float(t), out_dtype=parent.dtype)
        assert torch.equal(merged, parent)


@law(tensors(2), shares)
def test_slerp_of_equally_long_parents_keeps_their_length(pair, t):
    a, b = (tensor.double() for tensor in pair)
    assume(a.norm() > 0.1 and b.norm() > 0.1)
    a, b = a / a.norm(), b / b.norm()
    assume(abs(float(a @ b)) < 0.99)
    length = fast_merge("slerp", (a.float(), b.float()), t=t).norm()
    torch.testing.assert_close(float(length), 1.0, rtol=1e-4, atol=0)


@pytest.mark.parametrize("power", [-3, 1, 6])
@pytest.mark.parametrize("method", [name for name in METHODS if name not in ABSOLUTE])
@law(tensors(4), shares)
def test_scaling_all_models_scales_the_merge(method, power, four, t):
    """By powers of two, which round nothing."""
    *parents, base = (tensor.float() for tensor in four)
    parents = parents[: min(3, find_method(method).inputs[1] or 3)]
    if method == "slerp":  # vectors as good as zero have no direction
        assume(all(parent.norm() > 1e-6 for parent in parents))
    if method in {"karcher", "multislerp", "nuslerp"}:
        starts = 0 if method == "karcher" else base
        lengths = [(parent - starts).norm() for parent in parents]
        assume(all(length == 0 or length > 1e-2 for length in lengths))
    known = {p.name for p in find_method(method).parameters}
    wanted = {"weight": 0.75, "t": t, "density": 0.5, "rescale": False}
    params = {name: value for name, value in wanted.items() if name in known}
    factor = 2.0**power
    merged = fast_merge(method, parents, base, **params)
    scaled = fast_merge(method, [p * factor for p in parents], base * factor, **params)
    torch.testing.assert_close(scaled, merged * factor, rtol=1e-5, atol=1e-5 * factor)


@pytest.mark.parametrize("method", SCALED)
@law(tensors(3), st.floats(0.125, 2, width=16))
def test_lambda_scales_the_merged_task_vector(method, three, scale):
    *parents, _ = (tensor.float() for tensor in three)
    zero = torch.zeros_like(parents[0])
    plain, scaled = (
        fast_merge(method, parents, zero, weight=0.5, lambda_=lambda_) for lambda_ in (1.0, scale)
    )
    torch.testing.assert_close(scaled, plain * scale, rtol=1e-6, atol=1e-6)


@law(tensors(2), st.floats(-0.5, 1.5))
def test_exactly_k_elements_are_kept_at_any_density(pair, density):
    delta = pair[0].float() - pair[1].float()
    selected = select(largest_of(pair, density), delta, 0)
    k = max(1, int(density * delta.numel())) if density > 0 else 0
    assert selected.count_nonzero() == min(k, delta.count_nonzero())
    assert torch.equal(selected, delta * largest(delta, density))


@law(tensors(2), shares, shares)
def test_what_a_density_keeps_a_larger_one_keeps_too(pair, one, other):
    delta = pair[0].float() - pair[1].float()
    smaller, larger = (select(largest_of(pair, d), delta, 0) for d in sorted((one, other)))
    assert torch.equal(torch.where(smaller != 0, larger, 0.0), smaller)


@pytest.mark.parametrize("method", TASK_VECTORS)
@law(tensors(3), st.lists(weights, min_size=2, max_size=2))
def test_where_all_parents_agree_with_the_base_nothing_changes(method, three, weight):
    *parents, base = three
    frozen = torch.arange(base.numel()) % 2 == 0
    parents = [torch.where(frozen, base, parent) for parent in parents]
    found = find_method(method)
    parents = parents[: found.inputs[1]]
    known = {p.name for p in found.parameters}
    wanted = {"weight": weight, "t": 0.4}
    params = {name: value for name, value in wanted.items() if name in known}
    merged = fast_merge(method, parents, base, **params)
    assert torch.equal(merged[frozen], base[frozen].float())


# Recipes.

scalars = st.one_of(st.booleans(), st.integers(-5, 5), st.floats(-5, 5), st.sampled_from(["max"]))
gradients = st.one_of(scalars, st.lists(scalars, min_size=1, max_size=4))
entries = st.fixed_dictionaries(
    {"value": gradients}, optional={"filter": st.sampled_from(["mlp", "attn", "layers.1.", "*"])}
)
parameters = st.dictionaries(
    st.sampled_from(["weight", "density", "t"]),
    st.one_of(gradients, entries, st.lists(entries, min_size=1, max_size=3)),
)
factor = st.integers(-5, 5) | st.floats(-5, 5)
factors = factor | st.lists(
    st.fixed_dictionaries(
        {"value": factor}, optional={"filter": st.sampled_from(["mlp", ".o_proj.", "*"])}
    ),
    min_size=1,
    max_size=3,
)
names = st.sampled_from(["a", "b", "c"])
ranges = st.tuples(st.integers(0, 3), st.integers(1, 4)).map(lambda p: [p[0], p[0] + p[1]])
recipes = st.fixed_dictionaries(
    {"merge_method": st.sampled_from(METHODS)},
    optional={
        "base_model": names,
        "parameters": parameters,
        "dtype": st.sampled_from(["float32", "bfloat16"]),
        "out_dtype": st.sampled_from(["float32", "float16"]),
    },
)
model_lists = st.lists(
    st.fixed_dictionaries({"model": names}, optional={"parameters": parameters}), min_size=1
)
slice_lists = st.lists(
    st.fixed_dictionaries(
        {
            "sources": st.lists(
                st.fixed_dictionaries(
                    {"model": names, "layer_range": ranges}, optional={"parameters": parameters}
                ),
                min_size=1,
                max_size=3,
            )
        },
        optional={"base_model": names, "parameters": parameters, "scale": factors},
    ),
    min_size=1,
    max_size=3,
)


bodies = st.one_of(
    st.builds(lambda models: {"models": models}, model_lists),
    st.builds(lambda slices: {"slices": slices}, slice_lists),
)


@law(recipes, bodies)
def test_recipes_survive_the_round_trip(head, body):
    recipe = from_dict(head | body)
    again = from_dict(to_dict(recipe))
    assert again == recipe
    assert again.fingerprint == recipe.fingerprint
    assert to_dict(again) == to_dict(recipe)


@law(recipes, model_lists, st.randoms())
def test_the_order_of_keys_does_not_change_the_fingerprint(head, models, random):
    items = [*head.items(), ("models", models)]
    random.shuffle(items)
    assert from_dict(dict(items)).fingerprint == from_dict(head | {"models": models}).fingerprint


def same_bits(one, other):
    kind = {4: torch.int32, 2: torch.int16}[one.element_size()]
    return torch.equal(one.view(kind), other.view(kind))


def largest_of(pair, density):
    memory = Memory({"x": pair[0], "base": pair[1]})
    group = TensorGroup(
        "t", (TensorRef("x", "t"),), TensorRef("base", "t"), None, 0, Geometry(memory)
    )
    return group.largest(0, density)
