"""Per-item results in little room."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.compact import pack, unpack
from evals.scorecard import Value

binary = st.lists(st.sampled_from([0.0, 1.0]))
numbers = st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), max_size=120)
pairs = st.lists(st.tuples(st.floats(-1e4, 0), st.integers(1, 500)), max_size=120)
whole = st.lists(st.integers(-30_000, 30_000).map(float), max_size=120)


def there_and_back(values: list[Value]) -> tuple[Value, ...]:
    return unpack(json.loads(json.dumps(pack(values))))


@given(st.one_of(binary, whole))
def test_rights_wrongs_and_whole_numbers_are_kept_exactly(values: list[float]):
    assert there_and_back(values) == tuple(values)


@given(numbers)
def test_numbers_are_off_by_a_step_of_their_range_at_most(values: list[float]):
    back = there_and_back(values)
    assert len(back) == len(values)
    spread = max(values, default=0.0) - min(values, default=0.0)
    for old, new in zip(values, back, strict=True):
        assert new == pytest.approx(old, rel=1e-6, abs=spread / 131_000)


@given(pairs)
def test_pairs_stay_pairs_and_counts_exact(values: list[tuple[float, int]]):
    back = there_and_back(values)
    for (nats, count), new in zip(values, back, strict=True):
        assert isinstance(new, tuple)
        assert new == (pytest.approx(nats, rel=1e-6, abs=1e4 / 131_000), count)


@given(st.one_of(binary, numbers, pairs))
def test_packing_again_changes_nothing(values: list[Value]):
    once = unpack(pack(values))
    np.testing.assert_allclose(np.array(unpack(pack(once))), np.array(once), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_kept_as_they_are(bad: float):
    values = [0.5] * 40 + [bad]
    assert str(unpack(pack(values))) == str(tuple(values))


def test_a_range_beyond_all_measure_is_kept():
    values = [-1.5e308, 1.5e308, *([0.0] * 40)]
    assert unpack(pack(values)) == pytest.approx(tuple(values))


def test_a_thousand_items_take_little_room():
    generator = np.random.default_rng(0)
    right = generator.integers(0, 2, 1000).astype(float).tolist()
    graded = generator.random(1000).tolist()
    assert len(json.dumps(pack(right))) < 200
    assert len(json.dumps(pack(graded))) < 2600
