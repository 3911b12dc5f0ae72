from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import write_family


@pytest.fixture(scope="session")
def family(tmp_path_factory) -> Callable[[str], Path]:
    """Folder with models `base`, `a` and `b` of a family, written once a session."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = write_family(tmp_path_factory.mktemp(name), name)
        return made[name]

    return folder
