"""What changed in a protocol is named where it changed."""

import json

import pytest

from search.differences import differences
from search.errors import ProtocolError, StudyError

LONG = "x" * 100


@pytest.mark.parametrize(
    ("stored", "stated", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": None}, {}, []),
        ({"a": [1, {"b": None}], "c": "x"}, {"c": "x", "a": [1, {"b": None}]}, []),
        ({"a": [1, 2]}, {"a": (1, 2)}, []),  # as JSON they are the same
        ({"a": 1, "b": 2}, {"a": 2, "b": 3}, ["a: was 1, is 2", "b: was 2, is 3"]),
        ({"a": {"b": 1}}, {"a": 3}, ['a: was {"b": 1}, is 3']),
        ({}, {"goal": "pareto"}, ['goal: was not given, is "pareto"']),
        ({"b": {"c": 1}}, {"b": {}}, ["b.c: was 1, is not given"]),
        ({"rungs": [0.5, 1.0]}, {"rungs": [1.0]}, ["rungs: was [0.5, 1.0], is [1.0]"]),
        (
            {"space": [["a.weight", 0.0, 1.5], ["b.weight", 0.0, 1.5]]},
            {"space": [["b.weight", 0.0, 1.5], ["a.weight", 0.4, 1.5], ["c.weight", 0.0, 1.0]]},
            [
                "space: 'c.weight' is new",
                'space[a.weight]: was ["a.weight", 0.0, 1.5], is ["a.weight", 0.4, 1.5]',
                'space, the order: was ["a.weight", "b.weight"], is ["b.weight", "a.weight"]',
            ],
        ),
        (
            {"objectives": [{"task": "one", "weight": 1.0}, {"text": "./t.txt", "task": None}]},
            {"objectives": [{"task": "one", "weight": 2.0}]},
            ["objectives: './t.txt' is gone", "objectives[one].weight: was 1.0, is 2.0"],
        ),
        (
            {"objectives": [{"task": {"task": "one", "doc_to_text": "a"}}]},
            {"objectives": [{"task": {"task": "one", "doc_to_text": "b"}}]},
            ['objectives[one].task.doc_to_text: was "a", is "b"'],
        ),
        (
            {"slices": [{"layers": 1}, {"layers": 2}]},
            {"slices": [{"layers": 1}, {"layers": 3}]},
            ["slices[1].layers: was 2, is 3"],
        ),
        (
            {"slices": [{"layers": 1}]},
            {"slices": [{"layers": 1}, {"layers": 3}]},
            ['slices: was [{"layers": 1}], is [{"layers": 1}, {"layers": 3}]'],
        ),
    ],
)
def test_each_place_has_a_line(stored: dict, stated: dict, expected: list[str]):
    assert differences(stored, stated) == expected


def test_a_long_value_is_cut_around_the_first_difference():
    (line,) = differences(LONG + "old" + LONG, LONG + "new" + LONG)
    before, after = "x" * 20, "x" * 37
    assert line == f": was ...{before}old{after}..., is ...{before}new{after}..."


def test_a_value_that_is_the_start_of_a_longer_one_is_told_from_it():
    (line,) = differences(LONG, LONG + "y")
    assert line.endswith('y"')
    assert json.dumps(LONG)[-20:] in line


def test_advice_is_not_counted():
    one = StudyError(["a: was 1, is 2"], "study", "undo it")
    assert str(one) == "study: a: was 1, is 2; undo it"
    two = ProtocolError(["a: was 1, is 2", "b: was 1, is 2"], "study", "undo them")
    assert str(two) == "study: 2 differences\n  - a: was 1, is 2\n  - b: was 1, is 2\nundo them"
