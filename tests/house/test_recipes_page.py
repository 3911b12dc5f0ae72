"""Every example of docs/recipes.md can be read."""

import re
from pathlib import Path

import pytest
import yaml

from merge_core.recipe import from_dict
from merge_core.stages import read_stages

PAGE = Path(__file__).parents[2] / "docs/recipes.md"
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
LINEAR = {"merge_method": "linear", "models": ["a"]}


@pytest.mark.parametrize("text", EXAMPLES, ids=lambda text: text.split("\n")[0][:30])
def test_an_example_is_a_recipe_or_a_part_of_one(text: str):
    documents = list(yaml.safe_load_all(text))
    if any("merge_method" in document for document in documents):
        assert len(read_stages(documents)) == len(documents)
    else:
        assert from_dict(LINEAR | documents[0]) != from_dict(LINEAR)


def test_there_are_examples_of_every_part():
    assert len(EXAMPLES) == 5
