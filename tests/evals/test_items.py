"""The ledger: which documents play which role."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.errors import EvaluationError
from evals.items import Counts, Document, Role, Split, content_hash, likeness, split


def document(number: int, stratum: str = "", task: str = "") -> Document:
    return Document(content_hash({"n": number}), likeness({"n": number}), stratum, task)


DOCUMENTS = [document(n) for n in range(50)]

documents = st.lists(st.integers(0, 60), min_size=4, max_size=60).map(
    lambda numbers: [document(n) for n in numbers]
)


def contents(hashes: list[Document], dealt: Split) -> dict[Role, list[Document]]:
    return {role: [hashes[at] for at in places] for role, places in dealt.roles.items()}


def test_counts_are_dealt():
    dealt = split("t", DOCUMENTS, Counts(20, 10, 15), 0)
    assert {role: len(places) for role, places in dealt.roles.items()} == {
        Role.SEARCH: 20,
        Role.SELECT: 10,
        Role.HOLDOUT: 15,
    }
    assert dealt.duplicates == 0


def test_rest_takes_all_that_the_others_leave():
    dealt = split("t", DOCUMENTS, Counts(None, 10, 15), 0)
    assert len(dealt.roles[Role.SEARCH]) == 25


@given(documents, st.integers(0, 3))
def test_roles_never_share_a_document(hashes: list[Document], seed: int):
    different = len(set(hashes))
    if different < 3:
        return
    dealt = split("t", hashes, Counts(None, 1, different - 2), seed)
    dealt_contents = [value for part in contents(hashes, dealt).values() for value in part]
    assert len(dealt_contents) == different
    assert set(dealt_contents) == set(hashes)
    assert dealt.duplicates == len(hashes) - different


@given(st.permutations(range(50)))
def test_the_files_order_does_not_matter(order: list[int]):
    shuffled = [DOCUMENTS[n] for n in order]
    counts = Counts(20, 10, 15)
    assert contents(shuffled, split("t", shuffled, counts, 0)) == contents(
        DOCUMENTS, split("t", DOCUMENTS, counts, 0)
    )


@given(st.integers(1, 25), st.integers(0, 10))
def test_more_search_items_move_none_out_of_the_other_roles(few: int, more: int):
    small = split("t", DOCUMENTS, Counts(few, 10, 15), 0).roles
    large = split("t", DOCUMENTS, Counts(min(25, few + more), 10, 15), 0).roles
    assert large[Role.HOLDOUT] == small[Role.HOLDOUT]
    assert large[Role.SELECT] == small[Role.SELECT]
    assert large[Role.SEARCH][:few] == small[Role.SEARCH]


def test_new_documents_leave_a_document_in_its_role_or_beside_it():
    """A longer file moves the borders, but never an item from the search to the holdout's start."""
    before = contents(DOCUMENTS[:40], split("t", DOCUMENTS[:40], Counts(None, 5, 10), 0))
    after = contents(DOCUMENTS, split("t", DOCUMENTS, Counts(None, 5, 10), 0))
    assert not set(before[Role.SEARCH]) & set(after[Role.HOLDOUT])


def test_another_seed_deals_others():
    counts = Counts(20, 10, 15)
    assert split("t", DOCUMENTS, counts, 0).roles != split("t", DOCUMENTS, counts, 1).roles


def test_a_repeated_document_counts_once_at_its_first_place():
    hashes = [DOCUMENTS[0], DOCUMENTS[1], DOCUMENTS[0], DOCUMENTS[2]]
    dealt = split("t", hashes, Counts(1, 1, 1), 0)
    assert dealt.duplicates == 1
    assert sorted(at for places in dealt.roles.values() for at in places) == [0, 1, 3]


@pytest.mark.parametrize("counts", [Counts(26, 10, 15), Counts(None, 25, 25), Counts(None, 40, 11)])
def test_too_few_items_say_how_many_there_are(counts: Counts):
    with pytest.raises(EvaluationError) as error:
        split("arc", DOCUMENTS, counts, 0)
    search = counts.search or "rest"
    assert f"arc': has 50 different items, too few for search {search}, " in str(error.value)
    assert f"select {counts.select}, holdout {counts.holdout}" in str(error.value)


def test_duplicates_do_not_help_a_count():
    with pytest.raises(EvaluationError, match="has 2 different items"):
        split("t", [DOCUMENTS[0], DOCUMENTS[1]] * 5, Counts(1, 1, 1), 0)


def test_content_hash_sees_content_only():
    assert content_hash({"a": 1, "b": "ü"}) == content_hash({"b": "ü", "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 2})
    assert content_hash({"a": 1}) != content_hash({"a": "1"})


STRATA = ["a"] * 30 + ["b"] * 15 + ["c"] * 5


def stratified() -> list[Document]:
    return [document(n, stratum) for n, stratum in enumerate(STRATA)]


@given(st.integers(0, 20), st.integers(1, 20), st.integers(1, 15), st.integers(1, 15))
def test_every_role_has_its_share_of_every_stratum(seed: int, search: int, select: int, hold: int):
    many = stratified()
    roles = split("t", many, Counts(search, select, hold), seed).roles
    for places in roles.values():
        for stratum, size in (("a", 30), ("b", 15), ("c", 5)):
            found = sum(many[at].stratum == stratum for at in places)
            # A stretch of turns holds a stratum's share to within one at either end.
            assert abs(found - len(places) * size / 50) < 2


@given(st.integers(1, 20), st.integers(0, 5))
def test_fewer_search_items_are_a_prefix_of_more(few: int, more: int):
    many = stratified()
    small = split("t", many, Counts(few, 10, 15), 3).roles
    large = split("t", many, Counts(few + more, 10, 15), 3).roles
    assert large[Role.SEARCH][:few] == small[Role.SEARCH]
    assert (large[Role.SELECT], large[Role.HOLDOUT]) == (small[Role.SELECT], small[Role.HOLDOUT])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"q": "What is it?"}, {"q": "what  is it? "}),
        ({"q": "x", "id": 1}, {"q": "x", "id": 2}),
        ({"q": "x", "question_id": "a"}, {"q": "x", "question_id": "b"}),
        ({"q": {"text": ["A", "B"]}}, {"q": {"text": ["a", "b\n"]}}),
    ],
)
def test_letter_case_blanks_and_identifiers_make_no_other_document(one: dict, other: dict):
    assert content_hash(one) != content_hash(other)
    assert likeness(one) == likeness(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"q": "x", "gold": 1}, {"q": "x", "gold": 2}),
        ({"q": "ab"}, {"q": "a b"}),
        ({"id": 1}, {"id": 2}),  # there is nothing else to tell them apart
        ({"q": ["a", "b"]}, {"q": ["b", "a"]}),
    ],
)
def test_other_content_is_another_document(one: dict, other: dict):
    assert likeness(one) != likeness(other)


def test_few_shot_examples_get_no_role():
    shown = {DOCUMENTS[n].likeness for n in range(10)}
    dealt = split("t", DOCUMENTS, Counts(None, 10, 15), 0, examples=shown)
    assert dealt.examples == 10
    assert min(at for places in dealt.roles.values() for at in places) >= 10
    with pytest.raises(
        EvaluationError, match=r"40 different items \(10 more are few-shot examples"
    ):
        split("t", DOCUMENTS, Counts(20, 10, 15), 0, examples=shown)


@given(st.integers(0, 50))
def test_the_same_text_in_two_tasks_of_a_study_has_one_role(seed: int):
    """One is dealt evenly by its answers, the other isn't: left alone they would differ."""
    taken: dict[str, Role] = {}
    first = split("a", stratified(), Counts(10, 8, 12), seed, taken=taken)
    second = split("b", DOCUMENTS, Counts(10, 8, 12), seed, taken=taken)
    for role, places in first.roles.items():
        for other, others in second.roles.items():
            assert other is role or not set(places) & set(others)


@given(st.integers(0, 50))
def test_the_same_text_under_two_subtasks_is_two_items_of_one_role(seed: int):
    twice = [document(n, task, task) for task in ("p1", "p2") for n in range(50)]
    dealt = split("t", twice, Counts(20, 10, 15), seed)
    assert dealt.duplicates == 0
    role_of = {twice[at].likeness: role for role, places in dealt.roles.items() for at in places}
    for role, places in dealt.roles.items():
        assert all(role_of[twice[at].likeness] is role for at in places)
    assert len(dealt.roles[Role.SEARCH]) == 20


def clustered(sizes: list[int], stratum: bool = False) -> list[Document]:
    """Documents of clusters of the given sizes; each may be a stratum of its own."""
    numbers = iter(range(sum(sizes)))
    return [
        replace(document(next(numbers), f"s{c}" if stratum else ""), cluster=f"c{c}")
        for c, size in enumerate(sizes)
        for _ in range(size)
    ]


def clusters_of(documents: list[Document], places: tuple[int, ...]) -> list[str]:
    return [documents[at].cluster for at in places]


sizes = st.lists(st.integers(1, 6), min_size=45, max_size=60)  # enough for all counts below


@settings(max_examples=25)
@given(sizes, st.integers(0, 50), st.booleans())
def test_a_cluster_has_one_role(found: list[int], seed: int, strata: bool):
    many = clustered(found, strata)
    dealt = split("t", many, Counts(7, 7, 7), seed)
    assert [len(dealt.roles[role]) for role in Role] == [7, 7, 7]
    per_role = [set(clusters_of(many, dealt.roles[role])) for role in Role]
    assert sum(map(len, per_role)) == len(set.union(*per_role))


@settings(max_examples=25)
@given(sizes, st.integers(0, 50))
def test_every_item_has_a_role_or_a_reason(found: list[int], seed: int):
    many = clustered(found)
    dealt = split("t", many, Counts(None, 7, 7), seed)
    assert sum(map(len, dealt.roles.values())) + dealt.apart == len(many)
    assert dealt.elsewhere == 0
    # Only the last cluster of holdout and of select is left unfinished.
    assert dealt.apart <= 2 * (max(found) - 1)


@settings(max_examples=25)
@given(sizes, st.randoms(use_true_random=False))
def test_clusters_are_dealt_alike_whatever_the_files_order(found: list[int], chance: Random):
    many = clustered(found)
    shuffled = chance.sample(many, len(many))
    counts = Counts(7, 7, 7)
    assert contents(shuffled, split("t", shuffled, counts, 0)) == contents(
        many, split("t", many, counts, 0)
    )


@settings(max_examples=25)
@given(sizes, st.integers(7, 14))
def test_of_clusters_too_fewer_items_are_a_prefix_of_more(found: list[int], more: int):
    many = clustered([*found, 6, 6, 6])
    small = split("t", many, Counts(7, 7, 7), 1).roles
    large = split("t", many, Counts(more, 7, 7), 1).roles
    assert large[Role.SEARCH][:7] == small[Role.SEARCH]
    assert (large[Role.SELECT], large[Role.HOLDOUT]) == (small[Role.SELECT], small[Role.HOLDOUT])
    larger = split("t", many, Counts(7, 7, 14), 1).roles
    assert larger[Role.HOLDOUT][:7] == small[Role.HOLDOUT]


def test_search_items_come_from_many_clusters():
    many = clustered([10] * 30)
    dealt = split("t", many, Counts(20, 20, 20), 0)
    assert len(set(clusters_of(many, dealt.roles[Role.HOLDOUT]))) == 2
    assert len(set(clusters_of(many, dealt.roles[Role.SEARCH]))) > 10


@settings(max_examples=25)
@given(st.integers(0, 200))
def test_clusters_are_dealt_evenly_over_strata(seed: int):
    """30 clusters of one kind, 15 of another: the holdout has its share to within a cluster."""
    many = [replace(d, stratum="ab"[int(d.cluster[1:]) % 3 == 0]) for d in clustered([4] * 45)]
    places = split("t", many, Counts(20, 20, 60), seed).roles[Role.HOLDOUT]
    found = sum(many[at].stratum == "b" for at in places)
    assert abs(found - 20) <= 2 * 4


def test_where_strata_are_the_clusters_size_does_not_decide_who_comes_first():
    """A subject that is both: a large one is in the holdout as often as a small one."""
    many = clustered([20, *[4] * 19], stratum=True)
    held = [
        "c0" in clusters_of(many, split("t", many, Counts(6, 21, 25), seed).roles[Role.HOLDOUT][:1])
        for seed in range(400)
    ]
    assert 0.01 < sum(held) / 400 < 0.11  # 1 of 20


@settings(max_examples=25)
@given(st.integers(0, 50))
def test_repeats_and_other_tasks_stay_on_one_side_of_clusters(seed: int):
    taken: dict[str, Role] = {}
    many = clustered([3] * 20)
    repeated = [*many, replace(many[0], cluster="c99")]
    first = split("a", repeated, Counts(6, 6, 12), seed, taken=taken)
    assert first.duplicates == 1
    # The same passages in another task, with other questions.
    others = [replace(document(n + 500), cluster=d.cluster) for n, d in enumerate(many)]
    second = split("b", others, Counts(5, 5, 5), seed + 1, taken=taken)
    for role, places in first.roles.items():
        for other, theirs in second.roles.items():
            if other is not role:
                assert not {repeated[at].cluster for at in places} & {
                    others[at].cluster for at in theirs
                }


def test_few_clusters_say_what_there_is_and_what_to_do():
    with pytest.raises(EvaluationError) as error:
        split("race", clustered([30, 30, 10]), Counts(20, 20, 40), 0)
    told = str(error.value)
    assert "task 'race': has 70 different items in 3 clusters, the largest of 30, too few" in told
    assert "items are left over for it" in told
    assert told.endswith("name a field with smaller clusters as the objective's 'cluster'")


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        (Counts(8, 8, 4), "all 4 holdout items would be of one cluster"),
        (Counts(8, 4, 8), "all 4 select items would be of one cluster"),
        (Counts(4, 8, 8), "all 4 search items would be of one cluster"),
    ],
)
def test_a_role_of_one_cluster_is_refused(counts: Counts, told: str):
    clusters = [6] * (5 if counts.search == 4 else 6)
    with pytest.raises(EvaluationError, match=f"{told}.*; ask for more"):
        split("t", clustered(clusters), counts, 0)


def test_documents_that_stand_alone_are_dealt_as_if_there_were_no_clusters():
    alone = [replace(d, cluster=f"own {d.likeness}") for d in stratified()]
    # The order within holdout and select is by the clusters' own hash, but search's is the items'.
    assert split("t", alone, Counts(50, 0, 0), 2) == split("t", stratified(), Counts(50, 0, 0), 2)


def test_the_deal_stays_what_it_was():
    """Another one would make every stored study another study."""
    twice = [document(n, f"{task}/{n % 3}", task) for task in ("p", "q") for n in range(12)]
    roles = split("t", twice, Counts(6, 4, 5), 7).roles
    assert {str(role): list(places) for role, places in roles.items()} == {
        "search": [19, 20, 0, 8, 7, 12],
        "select": [13, 17, 9, 5],
        "holdout": [22, 23, 3, 11, 10],
    }
