"""Every example of docs/search-space.md is a recipe with holes."""

import re
from pathlib import Path

import pytest
import yaml
from tiny_models import write_family

from merge_core.checkpoint import Checkpoint, open_checkpoint
from merge_core.plan import compile_plan
from search.holes import build_space

PAGE = (Path(__file__).parents[2] / "docs/search-space.md").read_text("utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
MODELS = ("base", "a", "b", "c")


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder = write_family(tmp_path_factory.mktemp("models"), experts=3)
    return {name: open_checkpoint(folder / name, name) for name in MODELS}


@pytest.mark.parametrize("text", EXAMPLES, ids=lambda text: text.split("\n")[0][:30])
def test_an_example_can_be_searched(parents: dict[str, Checkpoint], text: str):
    mistakes: list[str] = []
    space = build_space(yaml.safe_load(text), MODELS, mistakes, parents)
    assert not mistakes
    for values in space.probes():
        assert compile_plan(space.decode(values), parents).depth == 3


def test_there_are_examples_of_every_key():
    numbers = ("range", "log", "start", "prior", "by", "roles", "knots", "per")
    for key in (*numbers, "simplex", "choice"):
        assert any(f"{key}:" in text for text in EXAMPLES), key
    assert len(EXAMPLES) == 7


@pytest.mark.parametrize("hole", re.findall(r"`max_iter: (\{.*?\})`", PAGE))
def test_the_example_of_a_whole_number(hole: str):
    recipe = {"merge_method": "karcher", "models": ["a", "b"]}
    mistakes: list[str] = []
    build_space(recipe | {"parameters": {"max_iter": yaml.safe_load(hole)}}, MODELS, mistakes)
    assert not mistakes
