"""The counter-based stream behind DARE: uniform, independent, nested, and the same forever."""

import itertools

import pytest
import torch
from scipy import stats

from merge_core.combination import Bernoulli, Magnitude, Nothing
from merge_core.masks import random_bits, select, stream_key

CPU = torch.device("cpu")
PINNED = (
    (0, 0, [11419822, 4419421, 11534336, 4344854]),
    (123456789, 65534, [312468, 11148782, 913272, 5677853]),
    (18446744073709551615, 4294967301, [9589691, 16659992, 7282482, 523745]),
)
PINNED_KEYS = (11916630164386756320, 15460967804697118040)
KEYS = (0, 1, 2, 0x80000000, (1 << 64) - 1, stream_key(0, "model.layers.0.mlp.up_proj.weight", 0))
every_key = pytest.mark.parametrize("key", KEYS)
COUNT = 1 << 17  # two blocks


@pytest.mark.parametrize(("key", "start", "first"), PINNED)
def test_the_stream_never_changes(key, start, first):
    """Pinned: a change makes every recorded DARE merge irreproducible."""
    assert random_bits(key, start, len(first), CPU).tolist() == first


def test_the_keys_never_change():
    assert stream_key(0, "model.norm.weight", 0) == PINNED_KEYS[0]
    assert stream_key(7, "model.layers.11.mlp.up_proj.weight", 2) == PINNED_KEYS[1]


def test_keys_differ_by_seed_tensor_and_parent():
    keys = [
        stream_key(seed, tensor, parent)
        for seed in (0, 1, 10)
        for tensor in ("a", "b", "1/a")
        for parent in (0, 1, 10)
    ]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 1 << 64 for key in keys)


@every_key
def test_numbers_lie_in_the_half_open_unit_interval(key):
    numbers = uniform(key)
    assert 0 <= numbers.min() < 1e-3
    assert 1 - 1e-3 < numbers.max() < 1


@every_key
def test_numbers_are_uniform(key):
    numbers = uniform(key)
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > 1e-5
    counts = torch.histc(numbers, 256, 0, 1)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-5


@every_key
@pytest.mark.parametrize("bit", range(0, 24, 3))
def test_every_bit_is_a_fair_coin(key, bit):
    bits = random_bits(key, 0, COUNT, CPU) >> bit & 1
    assert abs(z_of_fair_coin(bits)) < 5


@every_key
@pytest.mark.parametrize("lag", [1, 2, 3, 32, 64, 576, 1 << 12, 1 << 16])
def test_neighbours_are_independent(key, lag):
    numbers = uniform(key)
    assert abs(z_of_correlation(numbers[:-lag], numbers[lag:])) < 5


@pytest.mark.parametrize("other", [2, 3, 0x101, 0x80000001, 0xFFFFFFFE])
def test_keys_are_independent(other):
    one, two = uniform(1), uniform(other)
    assert abs(z_of_correlation(one, two)) < 5
    assert abs(z_of_fair_coin((one < 0.5) ^ (two < 0.5))) < 5


@pytest.mark.parametrize("flip", [1, 2, 1 << 8, 1 << 15])
def test_keys_do_not_permute_each_other(flip):
    """A key that is only xored into the position gives every tensor the same set of numbers."""
    one, two = (uniform(key).sort().values for key in (5, 5 ^ flip))
    assert (one == two).float().mean() < 0.01
    shuffled = uniform(5)[torch.arange(COUNT) ^ flip]
    assert abs(z_of_correlation(shuffled, uniform(5 ^ flip))) < 5


def test_positions_beyond_32_bits_do_not_repeat():
    first, later = (random_bits(9, start, 1000, CPU) for start in (0, 1 << 32))
    assert (first == later).float().mean() < 0.01


@pytest.mark.parametrize("start", [1, 7, (1 << 16) - 3, 1 << 16, (1 << 16) + 9])
@pytest.mark.parametrize("count", [1, 3, 500])
def test_a_piece_is_part_of_the_whole(start, count):
    whole = random_bits(11, 0, COUNT, CPU)
    assert torch.equal(random_bits(11, start, count, CPU), whole[start : start + count])


@pytest.mark.parametrize("density", [0.05, 0.3, 0.5, 0.9])
def test_the_share_kept_is_the_density(density):
    spread = (density * (1 - density) / COUNT) ** 0.5
    assert abs(kept(Bernoulli(density, 3)).float().mean() - density) < 5 * spread


def test_masks_are_nested_in_density():
    masks = [kept(Bernoulli(d / 20, 3)) for d in range(21)]
    for smaller, larger in itertools.pairwise(masks):
        assert (smaller <= larger).all()
        assert smaller.sum() < larger.sum()
    assert not masks[0].any()
    assert masks[-1].all()


def test_random_selections_keep_values_as_they_are():
    delta = torch.linspace(-1, 1, 100) + 0.005
    mask = kept(Bernoulli(0.4, 8))[20:120]
    assert torch.equal(select(Bernoulli(0.4, 8), delta, 20), torch.where(mask, delta, 0.0))


@pytest.mark.parametrize(
    ("start", "expected"),
    [(0, [0, -2, 3, 2, 0, 0]), (3, [0, 0, 3, 0, 0, 0]), (99, [0, 0, 3, 0, 0, 0])],
)
def test_magnitude_keeps_all_above_and_the_first_at_the_threshold(start, expected):
    delta = torch.tensor([1.0, -2.0, 3.0, 2.0, -1.0, -2.0])
    assert select(Magnitude(2.0, 4), delta, start).tolist() == expected


@pytest.mark.parametrize("threshold", [1.0, 0.1, 1e-30, 3e38])
def test_magnitude_compares_exactly(threshold):
    at = torch.tensor(threshold)
    delta = torch.stack([at.nextafter(torch.tensor(end)) for end in (0.0, torch.inf)] + [at, -at])
    for cutoff, mask in ((0, [0, 1, 0, 0]), (3, [0, 1, 1, 0]), (4, [0, 1, 1, 1])):
        selected = select(Magnitude(float(at), cutoff), delta, 0)
        assert torch.equal(selected, torch.where(torch.tensor(mask) == 1, delta, 0.0))


def test_nothing_keeps_nothing_and_none_keeps_all():
    delta = torch.tensor([1.0, -2.0])
    assert select(Nothing(), delta, 0).tolist() == [0, 0]
    assert select(None, delta, 0).tolist() == [1, -2]


@pytest.mark.parametrize(
    "selection", [None, Nothing(), Bernoulli(0.5, 1), Magnitude(2.0, 1)], ids=repr
)
def test_the_task_vector_is_not_touched(selection):
    delta = torch.tensor([1.0, -2.0, 3.0])
    select(selection, delta, 0)
    assert delta.tolist() == [1, -2, 3]


def uniform(key):
    return random_bits(key, 0, COUNT, CPU) / (1 << 24)


def kept(selection):
    return select(selection, torch.ones(COUNT), 0) != 0


def z_of_fair_coin(coins):
    return float((coins.float().mean() - 0.5) * 2 * len(coins) ** 0.5)


def z_of_correlation(a, b):
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1]) * len(a) ** 0.5
