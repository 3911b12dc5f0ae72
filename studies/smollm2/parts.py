"""A long job in parts: what is finished is kept, and half a part never looks finished."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path


class PartError(Exception):
    """A stop that the user can act on; its text is one line that says what to do."""


def part_of(target: Path) -> Path:
    """Returns the temporary name under which `target` is written until it is whole."""
    return target.with_name(target.name + ".part")


def clear(path: Path) -> None:
    """Removes a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def once(target: Path, make: Callable[[Path], None]) -> None:
    """Makes `target` if it is missing: `make` writes a temporary name, which is then renamed."""
    if target.exists():
        print(f"{target.name}: kept", flush=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    clear(part_of(target))
    start = time.monotonic()
    make(part_of(target))
    os.replace(part_of(target), target)
    print(f"{target.name}: made in {time.monotonic() - start:.0f} s", flush=True)
