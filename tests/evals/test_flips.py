"""Items fixed and broken, with their text."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from evals.flips import flips, item_text
from evals.harness import Harness, Item, OpenTask
from evals.items import Role
from evals.scorecard import Scorecard


@pytest.fixture
def harness(open_local: Callable[..., tuple[OpenTask, ...]], harness_of: Callable[..., Harness]):
    return harness_of(open_local("tiny_choice", "tiny_text"))


def card(choice: list[float], text: list[tuple[float, int]]) -> Scorecard:
    items: dict[str, Any] = {
        "tiny_choice": {"acc,none": choice},
        "tiny_text": {"bits_per_byte,none": text},
    }
    return Scorecard((), items, 0.0)


def test_every_flip_has_its_place_its_text_and_its_direction(harness: Harness):
    zeros = [0.0] * 12
    ours, theirs = zeros.copy(), zeros.copy()
    ours[3], theirs[7] = 1.0, 1.0
    same = [(-3.0, 5)] * 12
    found = flips(card(ours, same), card(theirs, same), harness.benchmarks, Role.SEARCH)
    assert [(flip.task, flip.place, flip.change) for flip in found] == [
        ("tiny_choice", 3, 1.0),
        ("tiny_choice", 7, -1.0),
    ]
    documents = [item.document for item in harness.benchmarks[0].items[Role.SEARCH]]
    assert [flip.text for flip in found] == [documents[3]["query"], documents[7]["query"]]


def test_the_largest_changes_come_first(harness: Harness):
    same, theirs = [0.0] * 12, [(-3.0, 1)] * 12
    ours = theirs.copy()
    ours[2], ours[5] = (-2.5, 1), (-1.0, 1)
    found = flips(card(same, ours), card(same, theirs), harness.benchmarks, Role.SEARCH)
    assert [flip.place for flip in found] == [5, 2]
    assert all(flip.change > 0 for flip in found)
    assert found[0].text == harness.benchmarks[1].items[Role.SEARCH][5].document["text"]


def fake(question: object, document: dict[str, Any]) -> Item:
    def ask(_: Any) -> object:
        if isinstance(question, Exception):
            raise question
        return question

    item = SimpleNamespace(
        task=SimpleNamespace(doc_to_text=ask, doc_to_target=lambda _: 1), document=document
    )
    return cast("Item", item)


@pytest.mark.parametrize("question", [2, "", KeyError("gone")], ids=["number", "empty", "error"])
def test_where_a_task_gives_no_question_the_document_does(question: object):
    assert item_text(fake(question, {"a": "who", "n": 3, "b": "why"})) == "who why"


def test_the_end_of_a_long_question_is_what_tells_it_apart():
    text = item_text(fake("word\n" * 100 + "the end", {}))
    assert len(text) == 100
    assert text.startswith("…")
    assert text.endswith("word the end")
