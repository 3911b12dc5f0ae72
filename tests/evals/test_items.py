"""The ledger: which documents play which role."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.errors import EvaluationError
from evals.items import Counts, Role, Split, content_hash, split

HASHES = [content_hash({"n": n}) for n in range(50)]

documents = st.lists(st.integers(0, 60), min_size=4, max_size=60).map(
    lambda numbers: [content_hash({"n": n}) for n in numbers]
)


def contents(hashes: list[str], dealt: Split) -> dict[Role, list[str]]:
    return {role: [hashes[at] for at in places] for role, places in dealt.roles.items()}


def test_counts_are_dealt():
    dealt = split("t", HASHES, Counts(20, 10, 15), 0)
    assert {role: len(places) for role, places in dealt.roles.items()} == {
        Role.SEARCH: 20,
        Role.SELECT: 10,
        Role.HOLDOUT: 15,
    }
    assert dealt.duplicates == 0


def test_rest_takes_all_that_the_others_leave():
    dealt = split("t", HASHES, Counts(None, 10, 15), 0)
    assert len(dealt.roles[Role.SEARCH]) == 25


@given(documents, st.integers(0, 3))
def test_roles_never_share_a_document(hashes: list[str], seed: int):
    different = len(set(hashes))
    if different < 3:
        return
    dealt = split("t", hashes, Counts(None, 1, different - 2), seed)
    dealt_contents = [value for part in contents(hashes, dealt).values() for value in part]
    assert sorted(dealt_contents) == sorted(set(hashes))
    assert dealt.duplicates == len(hashes) - different


@given(st.permutations(range(50)))
def test_the_files_order_does_not_matter(order: list[int]):
    shuffled = [HASHES[n] for n in order]
    counts = Counts(20, 10, 15)
    assert contents(shuffled, split("t", shuffled, counts, 0)) == contents(
        HASHES, split("t", HASHES, counts, 0)
    )


@given(st.integers(1, 25), st.integers(0, 10))
def test_more_search_items_move_none_out_of_the_other_roles(few: int, more: int):
    small = split("t", HASHES, Counts(few, 10, 15), 0).roles
    large = split("t", HASHES, Counts(min(25, few + more), 10, 15), 0).roles
    assert large[Role.HOLDOUT] == small[Role.HOLDOUT]
    assert large[Role.SELECT] == small[Role.SELECT]
    assert large[Role.SEARCH][:few] == small[Role.SEARCH]


def test_new_documents_leave_a_document_in_its_role_or_beside_it():
    """A longer file moves the borders, but never an item from the search to the holdout's start."""
    before = contents(HASHES[:40], split("t", HASHES[:40], Counts(None, 5, 10), 0))
    after = contents(HASHES, split("t", HASHES, Counts(None, 5, 10), 0))
    assert not set(before[Role.SEARCH]) & set(after[Role.HOLDOUT])


def test_another_seed_deals_others():
    counts = Counts(20, 10, 15)
    assert split("t", HASHES, counts, 0).roles != split("t", HASHES, counts, 1).roles


def test_a_repeated_document_counts_once_at_its_first_place():
    hashes = [HASHES[0], HASHES[1], HASHES[0], HASHES[2]]
    dealt = split("t", hashes, Counts(1, 1, 1), 0)
    assert dealt.duplicates == 1
    assert sorted(at for places in dealt.roles.values() for at in places) == [0, 1, 3]


@pytest.mark.parametrize("counts", [Counts(26, 10, 15), Counts(None, 25, 25), Counts(None, 40, 11)])
def test_too_few_items_say_how_many_there_are(counts: Counts):
    with pytest.raises(EvaluationError) as error:
        split("arc", HASHES, counts, 0)
    assert "task 'arc': has 50 different items, too few for" in str(error.value)
    assert f"select {counts.select}, holdout {counts.holdout}" in str(error.value)


def test_duplicates_do_not_help_a_count():
    with pytest.raises(EvaluationError, match="has 2 different items"):
        split("t", [HASHES[0], HASHES[1]] * 5, Counts(1, 1, 1), 0)


def test_content_hash_sees_content_only():
    assert content_hash({"a": 1, "b": "ü"}) == content_hash({"b": "ü", "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 2})
    assert content_hash({"a": 1}) != content_hash({"a": "1"})
