"""What several tests of search share: one study folder and short ways to read recipes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_study import write_study

from merge_core.checkpoint import Checkpoint, open_checkpoint
from search.holes import build_space
from search.space import SearchSpace

ALIASES = ("base", "a", "b")


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A study with models `base`, `a`, `b` and local tasks; nothing in it is to be changed."""
    import datasets

    folder = tmp_path_factory.mktemp("study")
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    yield write_study(folder).parent
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture
def recipe(study_folder: Path, tmp_path: Path) -> Path:
    """A mergekit recipe over the study's models."""
    models = [
        {"model": str(study_folder / "models" / name), "parameters": {"weight": 0.5}}
        for name in ("a", "b")
    ]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    return path


@pytest.fixture(scope="session")
def checkpoints(study_folder: Path) -> dict[str, Checkpoint]:
    """The study's opened parents."""
    return {name: open_checkpoint(study_folder / "models" / name, name) for name in ALIASES}


@pytest.fixture(scope="session")
def read_space() -> Callable[[dict[str, Any]], SearchSpace]:
    """Read a recipe with holes that has no mistake."""

    def read(recipe: dict[str, Any]) -> SearchSpace:
        mistakes: list[str] = []
        space = build_space(recipe, ALIASES, mistakes)
        assert not mistakes
        return space

    return read
