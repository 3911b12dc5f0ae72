"""The options of `outcross compare` as they are typed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.settings import Settings
from search.errors import StudyError
from search.lineup import WHERE, CompareOptions

_SETTINGS = ("batch_size", "max_length", "apply_chat_template", "system_instruction")


def study_file(models: Sequence[str], given: Mapping[str, Any]) -> Path:
    """The study to compare, where no tasks were named.

    Args:
        models: The arguments.
        given: Options by name; None where one was not given.

    Raises:
        StudyError: If what was given is a list of models, or an option has no meaning for a study.
    """
    if len(models) > 1 or Path(models[0]).is_dir():
        raise StudyError(["give --tasks for a list of models, or one study file"], WHERE)
    foreign = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if foreign:
        raise StudyError(
            [f"{', '.join(foreign)}: needs --tasks and a list of models; a study says it itself"],
            WHERE,
        )
    return Path(models[0])


def compare_options(tasks: str, given: Mapping[str, Any]) -> CompareOptions:
    """How to compare a list of models.

    Args:
        tasks: Names or files with commas between them.
        given: Options by name; None where one was not given.

    Raises:
        StudyError: If no task is named.
    """
    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    if not names:
        raise StudyError(["--tasks: no task is named"], WHERE)
    stated = {name: value for name, value in given.items() if value is not None}
    settings = Settings(**{name: stated.pop(name) for name in _SETTINGS if name in stated})
    return CompareOptions(names, settings=settings, **stated)
