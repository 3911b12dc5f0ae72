"""The counter-based stream behind DARE: uniform, independent, nested, and the same forever."""

import itertools

import pytest
import torch
from scipy import stats

from merge_core.combination import Bernoulli, Cut, Nothing, Stream, Window
from merge_core.masks import BLOCK, density_limit, random_bits, random_stream, select

CPU = torch.device("cpu")
PINNED = (
    (0, 0, 0, [41049, 65007, 50281, 60247]),
    (0, 1, 0, [12137, 20269, 11032, 50057]),
    (123456789, 0, 65534, [57405, 55232, 9059, 28689]),
    (18446744073709551615, 1, 4294967301, [33924, 7904, 34082, 56846]),
)
PINNED_KEYS = (11916630164386756320, 8790141436946381456)
KEYS = (0, 1, 2, 0x80000000, (1 << 64) - 1, random_stream(0, "layers.0.mlp.up_proj", 0).key)
every_stream = pytest.mark.parametrize(
    "stream", [Stream(key, half) for key in KEYS for half in (0, 1)], ids=str
)
COUNT = 1 << 17  # two blocks


@pytest.mark.parametrize(("key", "half", "start", "first"), PINNED)
def test_the_stream_never_changes(key, half, start, first):
    """Pinned: a change makes every recorded DARE merge irreproducible."""
    assert random_bits(Stream(key, half), start, len(first), CPU).tolist() == first


def test_the_keys_never_change():
    assert random_stream(0, "model.norm.weight", 0) == Stream(PINNED_KEYS[0], 0)
    assert random_stream(7, "model.layers.11.mlp.up_proj.weight", 3) == Stream(PINNED_KEYS[1], 1)


def test_streams_differ_by_seed_tensor_and_parent():
    streams = [
        random_stream(seed, tensor, parent)
        for seed in (0, 1, 10)
        for tensor in ("a", "b", "1/a")
        for parent in (0, 1, 2, 3, 10)
    ]
    assert len(set(streams)) == len(streams)
    assert all(0 <= stream.key < 1 << 64 for stream in streams)


def test_two_parents_share_a_key():
    keys = [random_stream(0, "t", parent).key for parent in range(4)]
    assert keys[0] == keys[1] != keys[2] == keys[3]


@every_stream
def test_numbers_lie_in_the_half_open_unit_interval(stream):
    numbers = uniform(stream)
    assert 0 <= numbers.min() < 1e-3
    assert 1 - 1e-3 < numbers.max() < 1


@every_stream
def test_numbers_are_uniform(stream):
    numbers = uniform(stream)
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > 1e-5
    counts = torch.histc(numbers, 256, 0, 1)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-5


@every_stream
@pytest.mark.parametrize("bit", range(0, 16, 3))
def test_every_bit_is_a_fair_coin(stream, bit):
    bits = random_bits(stream, 0, COUNT, CPU) >> bit & 1
    assert abs(z_of_fair_coin(bits)) < 5


@every_stream
@pytest.mark.parametrize("lag", [1, 2, 3, 32, 64, 576, 1 << 12, 1 << 16])
def test_neighbours_are_independent(stream, lag):
    numbers = uniform(stream)
    assert abs(z_of_correlation(numbers[:-lag], numbers[lag:])) < 5


@pytest.mark.parametrize("other", [2, 3, 0x101, 0x80000001, 0xFFFFFFFE])
def test_keys_are_independent(other):
    one, two = uniform(Stream(1, 0)), uniform(Stream(other, 0))
    assert abs(z_of_correlation(one, two)) < 5
    assert abs(z_of_fair_coin((one < 0.5) ^ (two < 0.5))) < 5


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("lag", [0, 1, 64])
def test_the_halves_of_a_key_are_independent(key, lag):
    one, two = (uniform(Stream(key, half)) for half in (0, 1))
    one, two = one[: COUNT - lag], two[lag:]
    assert abs(z_of_correlation(one, two)) < 5
    for limit in (0.1, 0.5, 0.9):
        assert abs(z_of_correlation((one < limit).float(), (two < limit).float())) < 5


@pytest.mark.parametrize("flip", [1, 2, 1 << 8, 1 << 15])
def test_keys_do_not_permute_each_other(flip):
    """A key that is only xored into the position gives every tensor the same set of numbers."""
    one, two = (uniform(Stream(key, 0)) for key in (5, 5 ^ flip))
    # 2^17 numbers of 16 bits fill their range: sets are compared by how often each occurs
    counts = [torch.bincount((numbers * BLOCK).long(), minlength=BLOCK) for numbers in (one, two)]
    assert abs(z_of_correlation(*(count.float() for count in counts))) < 5
    assert abs(z_of_correlation(one[torch.arange(COUNT) ^ flip], two)) < 5


def test_positions_beyond_32_bits_do_not_repeat():
    first, later = (random_bits(Stream(9, 0), start, 1000, CPU) for start in (0, 1 << 32))
    assert (first == later).float().mean() < 0.01


@pytest.mark.parametrize("start", [1, 7, (1 << 16) - 3, 1 << 16, (1 << 16) + 9])
@pytest.mark.parametrize("count", [1, 3, 500])
def test_a_piece_is_part_of_the_whole(start, count):
    stream = Stream(11, 1)
    whole = random_bits(stream, 0, COUNT, CPU)
    assert torch.equal(random_bits(stream, start, count, CPU), whole[start : start + count])


@pytest.mark.parametrize("density", [0.05, 0.3, 0.5, 0.9])
def test_the_share_kept_is_the_density(density):
    spread = (density * (1 - density) / COUNT) ** 0.5
    assert abs(kept(bernoulli(density)).float().mean() - density) < 5 * spread + 1 / 8192


def test_masks_are_nested_in_density():
    masks = [kept(Nothing()), *(kept(bernoulli(d / 20)) for d in range(1, 21))]
    for smaller, larger in itertools.pairwise(masks):
        assert (smaller <= larger).all()
        assert smaller.sum() < larger.sum()
    assert not masks[0].any()
    assert masks[-1].all()


@pytest.mark.parametrize(
    ("density", "limit"),
    [(1.0, 65536), (0.5, 32768), (0.25 + 1e-4, 16384), (1 / 4096, 16), (1e-9, 16), (0.9999, 65536)],
)
def test_densities_count_in_steps_of_one_4096th_and_never_nothing(density, limit):
    assert density_limit(density) == limit


def test_random_selections_keep_values_as_they_are():
    delta = torch.linspace(-1, 1, 100) + 0.005
    mask = kept(bernoulli(0.4))[20:120]
    assert torch.equal(select(bernoulli(0.4), delta, 20), torch.where(mask, delta, 0.0))


@pytest.mark.parametrize(
    ("start", "expected"),
    [(0, [0, -2, 3, 2, 0, 0]), (3, [0, 0, 3, 0, 0, 0]), (99, [0, 0, 3, 0, 0, 0])],
)
def test_a_window_keeps_all_above_and_the_first_at_the_threshold(start, expected):
    delta = torch.tensor([1.0, -2.0, 3.0, 2.0, -1.0, -2.0])
    assert select(Window(None, Cut(2.0, 4)), delta, start).tolist() == expected


@pytest.mark.parametrize("threshold", [1.0, 0.1, 1e-30, 3e38])
def test_cuts_compare_exactly(threshold):
    at = torch.tensor(threshold)
    delta = torch.stack([at.nextafter(torch.tensor(end)) for end in (0.0, torch.inf)] + [at, -at])
    for cutoff, mask in ((0, [0, 1, 0, 0]), (3, [0, 1, 1, 0]), (4, [0, 1, 1, 1])):
        kept_before = torch.where(torch.tensor(mask) == 1, delta, 0.0)
        cut = Cut(float(at), cutoff)
        assert torch.equal(select(Window(None, cut), delta, 0), kept_before)
        assert torch.equal(select(Window(cut, None), delta, 0), delta - kept_before)


def test_a_window_between_two_cuts_keeps_what_one_has_and_the_other_lacks():
    delta = torch.tensor([1.0, -2.0, 3.0, 2.0, -1.0, -2.0, 0.5])
    window = Window(Cut(2.0, 4), Cut(1.0, 1))
    assert select(window, delta, 0).tolist() == [1, 0, 0, 0, 0, -2, 0]
    assert select(window, delta[4:], 4).tolist() == [0, -2, 0]


def test_nothing_keeps_nothing_and_none_keeps_all():
    delta = torch.tensor([1.0, -2.0])
    assert select(Nothing(), delta, 0).tolist() == [0, 0]
    assert select(None, delta, 0).tolist() == [1, -2]


@pytest.mark.parametrize(
    "selection",
    [None, Nothing(), Bernoulli(1 << 15, Stream(1, 0)), Window(None, Cut(2.0, 1))],
    ids=repr,
)
def test_the_task_vector_is_not_touched(selection):
    delta = torch.tensor([1.0, -2.0, 3.0])
    select(selection, delta, 0)
    assert delta.tolist() == [1, -2, 3]


def uniform(stream):
    return random_bits(stream, 0, COUNT, CPU) / BLOCK


def bernoulli(density):
    return Bernoulli(density_limit(density), Stream(3, 0))


def kept(selection):
    return select(selection, torch.ones(COUNT), 0) != 0


def z_of_fair_coin(coins):
    return float((coins.float().mean() - 0.5) * 2 * len(coins) ** 0.5)


def z_of_correlation(a, b):
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1]) * len(a) ** 0.5
