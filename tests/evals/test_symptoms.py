"""What goes wrong with generations is counted, and held against the parents."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml

from evals.harness import Harness
from evals.items import Counts, Role
from evals.loading import TaskRequest
from evals.scorecard import Scorecard
from evals.symptoms import failing, flags, loops, worst_of
from evals.tasks import OpenTask, open_tasks

OpenLocal = Callable[..., tuple[OpenTask, ...]]
HarnessOf = Callable[..., Harness]


@pytest.mark.parametrize(
    "text",
    [
        "so so so so so so so so",
        "The answer is 4. The answer is 4. The answer is 4. The answer is 4. ",
        "Well: aaaaaaaaaaaaaaaaaaaa",
        "1\n2\n1\n2\n1\n2\n1\n2\n1\n2\n1\n2\n",
    ],
)
def test_a_text_that_repeats_itself_to_the_end_loops(text: str):
    assert loops(text)


@pytest.mark.parametrize(
    "text",
    ["", "....", "1000000", "yes yes yes", "so so so so so so so so, and then it ended", "x = 4.0"],
)
def test_an_answer_does_not(text: str):
    assert not loops(text)


def card(**rates: float) -> Scorecard:
    return Scorecard((), {}, 0.0, Role.SEARCH, {"t": rates})


def worst(**rates: float) -> Mapping[str, Mapping[str, float]]:
    return {"t": rates}


@pytest.mark.parametrize(
    ("symptom", "words"),
    [
        ("empty", "t: 80% of its texts are empty; of no parent's more than 10%"),
        ("looping", "t: 80% of its texts repeat themselves to the end; of no parent's more than"),
        ("missed", "t: 80% of its texts give the answer extractor nothing; of no parent's"),
    ],
)
def test_far_more_than_the_parents_fails(symptom: str, words: str):
    assert (failing(card(**{symptom: 0.8}), worst(**{symptom: 0.1})) or "").startswith(words)
    assert failing(card(**{symptom: 0.55}), worst(**{symptom: 0.1})) is None
    assert failing(card(**{symptom: 1.0}), worst(**{symptom: 0.6})) is None


def test_a_score_that_depends_on_the_limit_is_flagged():
    (flag,) = flags(card(truncated=0.3), worst(truncated=0.1))
    assert flag.startswith("t: 30% of its texts end at the generation limit (at most 10% of")
    assert flags(card(truncated=0.3), worst(truncated=0.3)) == ()
    assert flags(card(truncated=0.04), worst(truncated=0.0)) == ()
    assert failing(card(truncated=1.0), worst(truncated=0.0)) is None  # it has a score all the same


def test_the_worst_parent_counts():
    assert worst_of([card(empty=0.1, missed=0.4), card(empty=0.3)]) == {
        "t": {"empty": 0.3, "missed": 0.4}
    }


def test_generations_are_counted_as_they_are(open_local: OpenLocal, harness_of: HarnessOf):
    """The tiny model never stops by itself: every text has all the tokens that it may have."""
    harness = harness_of(open_local(TaskRequest("tiny_generate"), "tiny_choice"))
    found = harness.score(Role.SEARCH).symptoms
    assert set(found) == {"tiny_generate"}
    texts = [i.requests[0].resps[0] for i in harness.benchmarks[0].items[Role.SEARCH]]
    assert found["tiny_generate"] == {
        "truncated": sum(len(text) >= 6 for text in texts) / 12,  # a character is a token
        "empty": sum(not text.strip() for text in texts) / 12,
        "looping": sum(map(loops, texts)) / 12,
    }
    assert found["tiny_generate"]["truncated"] > 0.5


def test_an_answer_that_no_extractor_finds_is_missed(
    study_folder: Path, tmp_path: Path, harness_of: HarnessOf
):
    task = yaml.safe_load((study_folder / "tasks/tiny_generate.yaml").read_text())
    task["dataset_kwargs"]["data_files"] = {"test": str(study_folder / "data/test.jsonl")}
    take = {"function": "take_first"}
    regex = {"function": "regex", "regex_pattern": "(never and nowhere)"}
    task["filter_list"] = [{"name": "strict", "filter": [regex, take]}]
    (tmp_path / "tiny_generate.yaml").write_text(yaml.safe_dump(task))
    opened = open_tasks([TaskRequest("tiny_generate")], Counts(6, 2, 2), 0, [tmp_path], pytest.fail)
    rates = harness_of(opened).score(Role.SEARCH).symptoms["tiny_generate"]
    assert rates["missed"] == 1.0
    task["filter_list"].append(
        {"name": "loose", "filter": [regex | {"regex_pattern": "(.)"}, take]}
    )
    (tmp_path / "tiny_generate.yaml").write_text(yaml.safe_dump(task))
    opened = open_tasks([TaskRequest("tiny_generate")], Counts(6, 2, 2), 0, [tmp_path], pytest.fail)
    assert harness_of(opened).score(Role.SEARCH).symptoms["tiny_generate"]["missed"] < 1.0
