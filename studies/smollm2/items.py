"""The items: kinds of words (WordNet), sums and facts (BIG-bench), all drawn from one seed."""

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from studies.smollm2.wordnet import words_by_kind


@dataclass(frozen=True, slots=True)
class Choice:
    """A question with options; `gold` is the position of the right one."""

    query: str
    choices: tuple[str, ...]
    gold: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A question and the text that has to follow it."""

    query: str
    answer: str


@dataclass(frozen=True, slots=True)
class Split:
    """Items to score and examples to train on, which share no word and no sum."""

    test: tuple[Choice | Answer, ...]
    train: tuple[Answer, ...]


TEST_ITEMS = 1200
TRAIN_ITEMS = 6000
# Relations whose answers are a name of a place or a language: base is far above chance on these.
RELATIONS = (
    "country",
    "original country",
    "native language",
    "official language",
    "capital",
    "continent",
)
Sum = tuple[int, str, int]
T = TypeVar("T")


def kinds(wordnet: Path, seed: int = 0) -> Split:
    """Returns `What is beagle? A kind of` -> animal, with as many items of each kind."""
    rng = random.Random(f"kinds {seed}")
    words = words_by_kind(wordnet)
    labels = tuple(words)
    share = TEST_ITEMS // len(labels)
    test: list[Choice | Answer] = []
    train: list[Answer] = []
    for gold, label in enumerate(labels):
        shuffled = rng.sample(words[label], len(words[label]))
        test += [Choice(_kind_query(word), labels, gold) for word in shuffled[:share]]
        rest = shuffled[share : share + TRAIN_ITEMS // len(labels)]
        train += [Answer(_kind_query(word), label) for word in rest]
    return Split(_shuffled(test, rng), _shuffled(train, rng))


def sums(bigbench: Path, seed: int = 0) -> Split:
    """Returns BIG-bench sums of two-digit numbers to score, and generated other ones to train on.

    The full stop belongs to the answer: it proves that the number ends there.
    """
    rng = random.Random(f"sums {seed}")
    files = ("addition.json", "subtraction.json")
    shipped = [[_sum_of(e["input"]) for e in _examples(bigbench / name)] for name in files]
    test = [key for keys in shipped for key in rng.sample(keys, TEST_ITEMS // len(files))]
    # All shipped sums are kept out, also those that are not scored here, and a + b with b + a.
    used = {key for keys in shipped for key in keys}
    used |= {(b, sign, a) for a, sign, b in used if sign == "plus"}
    free = [
        (a, sign, b)
        for sign in ("plus", "minus")
        for a in range(10, 100)
        for b in range(10, 100)
        if (a, sign, b) not in used
    ]
    train = rng.sample(free, TRAIN_ITEMS)
    return Split(_shuffled([_sum_item(key) for key in test], rng), tuple(map(_sum_item, train)))


def facts(bigbench: Path, is_one_token: Callable[[str], bool], seed: int = 0) -> Split:
    """Returns `The country of X is` with four answers; nothing is trained on these.

    The wrong answers are drawn as often as they are right elsewhere in the same relation, so
    that saying the commonest answer does not pay.
    """
    rng = random.Random(f"facts {seed}")
    test: list[Choice | Answer] = []
    for pairs in _relations(bigbench / "wikidata.json", is_one_token).values():
        answers = [answer for _, answer in pairs]
        for query, answer in rng.sample(pairs, min(len(pairs), TEST_ITEMS // 4)):
            test.append(_fact_item(query, answer, answers, rng))
    return Split(_shuffled(test, rng)[:TEST_ITEMS], ())


def _kind_query(word: str) -> str:
    return f"What is {word}? A kind of"


def _sum_of(question: str) -> Sum:
    found = re.fullmatch(r"What is (\d+) (plus|minus) (\d+)\?", question)
    if found is None:
        raise ValueError(f"not a sum of two numbers: {question!r}")
    return int(found[1]), found[2], int(found[3])


def _sum_item(key: Sum) -> Answer:
    a, sign, b = key
    result = a + b if sign == "plus" else a - b
    return Answer(f"What is {a} {sign} {b}?", f"{result}.")


def _relations(path: Path, is_one_token: Callable[[str], bool]) -> dict[str, list[tuple[str, str]]]:
    """Returns relation -> (query, answer), once each, for answers that are single and one token."""
    found: dict[str, dict[str, str]] = {relation: {} for relation in RELATIONS}
    for example in _examples(path):
        target = example["target"]
        answers: list[str] = [target] if isinstance(target, str) else target
        relation = example["input"].removeprefix("The ").partition(" of ")[0]
        if relation in found and len(answers) == 1 and is_one_token(answers[0]):
            found[relation].setdefault(example["input"], answers[0])
    return {relation: list(pairs.items()) for relation, pairs in found.items()}


def _fact_item(query: str, answer: str, answers: Sequence[str], rng: random.Random) -> Choice:
    choices = {answer: None}
    while len(choices) < 4:
        choices.setdefault(rng.choice(answers))
    order = rng.sample(list(choices), len(choices))
    return Choice(query, tuple(order), order.index(answer))


def _examples(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text("utf-8"))["examples"]


def _shuffled(items: Sequence[T], rng: random.Random) -> tuple[T, ...]:
    return tuple(rng.sample(items, len(items)))
