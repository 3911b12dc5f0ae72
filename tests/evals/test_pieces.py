"""Rungs that are answered apart join to the scorecard of all items, to the bit."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from pathlib import Path

import pytest
import yaml

from evals.errors import EvaluationError
from evals.harness import Harness
from evals.items import Counts, Role
from evals.loading import TaskRequest
from evals.pieces import Piece, joined
from evals.racing import RUNGS
from evals.scorecard import Scorecard
from evals.tasks import OpenTask, open_tasks

OpenLocal = Callable[..., tuple[OpenTask, ...]]
HarnessOf = Callable[..., Harness]

COUNTS = Counts(24, 4, 8)
DEALS = [
    (range(3), range(3, 4)),
    (range(1), range(1, 4)),
    (range(1), range(1, 2), range(2, 3), range(3, 4)),
]


def f1_task(study_folder: Path, folder: Path) -> Path:
    """A task whose figure is one of the whole set: answered or not, by F1."""
    task = yaml.safe_load((study_folder / "tasks/tiny_choice.yaml").read_text())
    task["dataset_kwargs"]["data_files"] = {"test": str(study_folder / "data/test.jsonl")}
    task["task"] = "tiny_f1"
    task["doc_to_choice"] = [" red", " green"]
    task["doc_to_target"] = "{{gold % 2}}"
    task["metric_list"] = [{"metric": "f1", "aggregation": "f1", "higher_is_better": True}]
    (folder / "tiny_f1.yaml").write_text(yaml.safe_dump(task))
    return folder


@pytest.fixture
def harness(
    study_folder: Path, tmp_path: Path, open_local: OpenLocal, harness_of: HarnessOf
) -> Harness:
    """Choices, generations, a text and a figure of a whole set, in four rungs."""
    tasks = open_local("tiny_choice", "tiny_generate", "tiny_text", counts=COUNTS)
    folder = f1_task(study_folder, tmp_path)
    figure = open_tasks([TaskRequest("tiny_f1")], COUNTS, 0, [folder], pytest.fail)
    made = harness_of((*tasks, *figure))
    made.shares = RUNGS
    return made


def untimed(card: Scorecard) -> Scorecard:
    return replace(card, seconds=0.0)


@pytest.mark.parametrize("deal", DEALS)
def test_pieces_join_to_the_scorecard_of_one_go(harness: Harness, deal: tuple[range, ...]):
    whole = harness.score(Role.SEARCH)
    assert {score.metric for score in whole.scores} >= {"acc,none", "f1,none"}
    assert whole.failure is None
    assert whole.symptoms["tiny_generate"]["truncated"] > 0
    pieces: dict[range, Piece] = {}
    for rungs in reversed(deal):  # who is asked first changes nothing
        pieces[rungs] = reduce(joined, harness.pieces(Role.SEARCH, None, rungs))
    travelled = [pickle.loads(pickle.dumps(pieces[rungs])) for rungs in deal]
    card = harness.card(Role.SEARCH, reduce(joined, travelled))
    assert untimed(card) == untimed(whole)


def test_a_piece_has_the_items_of_its_rungs_alone(harness: Harness):
    assert [end[0] for end in harness.rungs(Role.SEARCH)] == [3, 6, 12, 24]
    first, last = (next(harness.pieces(Role.SEARCH, None, rungs)) for rungs in DEALS[0])
    assert (first.counts, last.counts) == ((3,) * 4, (12,) * 4)
    assert [len(results["f1,none"]) for results in (first.results[3], last.results[3])] == [3, 12]
    assert last.symptoms[1]["empty"][1] == 12
    assert last.symptoms[0] == {}


def test_what_one_part_lacks_the_whole_lacks():
    """A metric or a symptom of some items only is joined as far as it goes."""
    one = Piece((2,), ({"acc": [1.0, 0.0]},), ({"empty": (1, 2)},), 1.0)
    other = Piece((1,), ({"acc": [1.0], "late": [2.0]},), ({"missed": (1, 1)},), 2.0)
    assert joined(one, other) == Piece(
        (3,),
        ({"acc": [1.0, 0.0, 1.0], "late": [2.0]},),
        ({"empty": (1, 2), "missed": (1, 1)},),
        3.0,
    )


def test_an_item_without_a_number_is_missed_in_the_whole(harness: Harness):
    pieces = list(harness.pieces(Role.SEARCH))
    broken = ({"acc,none": [1.0]}, *pieces[1].results[1:])
    pieces[1] = replace(pieces[1], results=broken)
    card = harness.card(Role.SEARCH, reduce(joined, pieces))
    assert (card.failure or "").endswith("2 of 24 items gave no number for acc,none")


def test_pieces_of_sealed_items_are_refused_before_the_first(
    open_local: OpenLocal, harness_of: HarnessOf
):
    with pytest.raises(EvaluationError, match="sealed"):
        harness_of(open_local("tiny_choice")).pieces(Role.HOLDOUT)
