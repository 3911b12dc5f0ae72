"""Every example of docs/interleaving.md is a space of legal models, or a recipe that merges."""

import re
from pathlib import Path

import pytest
import yaml
from tiny_models import write_family

from merge_core.checkpoint import Checkpoint, open_checkpoint
from merge_core.plan import compile_plan
from merge_core.recipe import from_dict
from search.forms import _KEYS, is_form
from search.holes import build_space

PAGE = (Path(__file__).parents[2] / "docs/interleaving.md").read_text("utf-8")
EXAMPLES = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
FORMS = [example for example in EXAMPLES if is_form(example["slices"])]
RECIPES = [example for example in EXAMPLES if not is_form(example["slices"])]
MODELS = ("base", "a", "b")


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder = write_family(tmp_path_factory.mktemp("models"))
    return {name: open_checkpoint(folder / name, name) for name in MODELS}


@pytest.mark.parametrize("recipe", FORMS, ids=lambda one: next(iter(one["slices"])))
def test_a_form_can_be_searched(parents: dict[str, Checkpoint], recipe: dict):
    mistakes: list[str] = []
    space = build_space(recipe, MODELS, mistakes, parents)
    assert not mistakes
    depths = {compile_plan(space.decode(values), parents).depth for values in space.probes()}
    budget = recipe["slices"].get("depth", [1, 3.6])
    assert min(depths) >= budget[0]
    assert max(depths) <= budget[1]


def test_numbers_are_as_many_as_the_page_says(parents: dict[str, Checkpoint]):
    (recipe,) = (one for one in FORMS if one["slices"].get("encoding") == "numbers")
    assert "12 indicators and 3 scales" in PAGE
    assert len(build_space(recipe, MODELS, [], parents).dimensions) == 12 + 3


@pytest.mark.parametrize(("method", "depth"), [("ties", 3), ("linear", 4)])
def test_a_recipe_merges(parents: dict[str, Checkpoint], method: str, depth: int):
    recipe = next(one for one in RECIPES if one["merge_method"] == method)
    assert compile_plan(from_dict(recipe), parents).depth == depth


def test_every_key_is_explained():
    for key in {key for keys in _KEYS.values() for key in keys}:
        assert f"`{key}`" in PAGE or f"`{key}`, " in PAGE, key
