"""The studies of one name in a storage, and which of them the name stands for now.

A study whose question has changed is followed by another one, `name#2`, `name#3` and so on. The
first one tells which of all is gone on with.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from search.differences import differences
from search.errors import NothingFound
from search.storage import read_storage, refuse_place

_CURRENT = "current"
_NEXT = "next"  # of studies stored before: each names the one after it


def last_of(study: optuna.Study) -> optuna.Study:
    """The study that now goes by a study's name.

    Args:
        study: The first one.
    """
    if name := study.user_attrs.get(_CURRENT):
        return named(study, name)
    while _NEXT in study.user_attrs:
        study = named(study, study.user_attrs[_NEXT])
    return study


def stored_study(location: str, folder: Path, name: str) -> optuna.Study | None:
    """The study that now goes by a name, as far as it has been run; None if it hasn't been.

    Nothing can be written to it, and nothing is held or waited for.

    Args:
        location: As in `search.storage.open_storage`.
        folder: What a relative folder is relative to.
        name: The study's.

    Raises:
        StudyError: If opening it would be refused.
    """
    refuse_place(location, folder)
    try:
        storage = read_storage(location, folder, name)
    except NothingFound:
        return None
    return last_of(optuna.load_study(study_name=name, storage=storage))


def go_on_with(study: optuna.Study) -> None:
    """From here on this one is the study of its name."""
    named(study, _first(study)).set_user_attr(_CURRENT, study.study_name)


def made_under(
    study: optuna.Study, protocol: Mapping[str, Any], unseen: Collection[str] = ()
) -> optuna.Study | None:
    """The newest study of the same name with exactly this protocol, if there is one.

    Args:
        study: Any of the name.
        protocol: Of the one to find.
        unseen: What of it isn't known and may be anything.
    """
    known = {key: value for key, value in protocol.items() if key not in unseen}
    for found in reversed(all_of(study)):
        stated = found.user_attrs.get("protocol")
        if stated is None:
            continue
        if not differences({k: v for k, v in stated.items() if k not in unseen}, known):
            return found
    return None


def all_of(study: optuna.Study) -> list[optuna.Study]:
    """All studies of a study's name, the oldest first."""
    return [named(study, name) for name in _names(study)]


def named(study: optuna.Study, name: str) -> optuna.Study:
    """Another study of the same storage."""
    return optuna.load_study(study_name=name, storage=_storage(study))


def successor(study: optuna.Study, values: int) -> optuna.Study:
    """An empty study of the next free name; one that a killed process left half-made is made anew.

    Args:
        study: The one before, or any other of the name.
        values: How many values its trials have.
    """
    *_, last = _names(study)
    storage = _storage(study)
    if "protocol" not in named(study, last).user_attrs and last != study.study_name:
        optuna.delete_study(study_name=last, storage=storage)
    else:
        last = f"{_first(study)}#{_number(last) + 1}"
    directions = [StudyDirection.MAXIMIZE] * values
    return optuna.create_study(storage=storage, study_name=last, directions=directions)


def _names(study: optuna.Study) -> Iterator[str]:
    """Of all studies of the name, the oldest first."""
    form = re.compile(re.escape(_first(study)) + r"(#\d+)?")
    known = optuna.get_all_study_names(_storage(study))
    yield from sorted(filter(form.fullmatch, known), key=_number)


def _first(study: optuna.Study) -> str:
    return study.study_name.partition("#")[0]


def _number(name: str) -> int:
    return int(name.partition("#")[2] or 1)


def _storage(study: optuna.Study) -> BaseStorage:
    return study._storage  # pyright: ignore[reportPrivateUsage]
