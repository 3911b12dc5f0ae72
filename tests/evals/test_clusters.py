"""Which items belong together."""

import pytest

from evals.clusters import item_clusters
from evals.errors import EvaluationError

PASSAGES = [f"This is passage {i}, and it is long enough to be one." for i in range(3)]


def documents(*fields: dict[str, object]) -> list[dict[str, object]]:
    return [{"question": f"q{at}"} | field for at, field in enumerate(fields)]


def test_items_of_one_passage_belong_together():
    shared = documents(*({"passage": PASSAGES[i]} for i in (0, 1, 0, 2)))
    found = item_clusters("t", shared)
    assert found is not None
    assert found[0] == found[2]
    assert len(set(found.tolist())) == 3


@pytest.mark.parametrize("name", ["context", "article", "story", "paragraph", "background"])
def test_a_passage_has_many_names(name: str):
    assert item_clusters("t", documents(*({name: PASSAGES[i]} for i in (0, 0, 1)))) is not None


def test_white_space_makes_no_other_passage():
    texts = (PASSAGES[0], PASSAGES[0].replace(" ", "  "), PASSAGES[1])
    found = item_clusters("t", documents(*({"passage": text} for text in texts)))
    assert found is not None
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "fields",
    [
        [{}, {}],
        [{"passage": PASSAGES[0]}, {"passage": PASSAGES[1]}],
        [{"passage": "yes"}, {"passage": "yes"}, {"passage": "no"}],
        [{"context": PASSAGES[0]}] * 4,
        [{"context": None}, {"context": ["a", "b"]}],
    ],
    ids=["no passage", "all differ", "short texts", "one for all", "no text"],
)
def test_independent_items_have_no_clusters(fields: list[dict[str, object]]):
    assert item_clusters("t", documents(*fields)) is None


def test_an_item_without_a_passage_stands_alone():
    fields = [{"passage": PASSAGES[0]}, {"passage": PASSAGES[0]}, {}, {}]
    found = item_clusters("t", documents(*fields))
    assert found is not None
    assert len(set(found.tolist())) == 3


def test_a_named_field_counts_whatever_it_holds():
    found = item_clusters("t", documents({"unit": 1}, {"unit": 2}, {"unit": 1}), "unit")
    assert found is not None
    assert found[0] == found[2] != found[1]


def test_a_named_field_that_all_items_differ_in_makes_none():
    assert item_clusters("t", documents({"unit": 1}, {"unit": 2}), "unit") is None


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("unit", "task 't': its documents have no field 'unit' .* they have question, kind"),
        ("kind", "task 't': all items have the same 'kind'"),
    ],
)
def test_a_field_that_makes_no_clusters_is_refused(field: str, message: str):
    with pytest.raises(EvaluationError, match=message):
        item_clusters("t", documents({"kind": "x"}, {"kind": "x"}), field)
