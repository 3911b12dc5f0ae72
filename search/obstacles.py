"""Why a study's folder can't be where its file says, found without making anything."""

import os
from collections.abc import Sequence
from pathlib import Path

_KERNEL = ("/proc", "/sys")  # they may seem to be writable


def obstacle(home: Path, files: Sequence[str]) -> str | None:
    """What is in the way, as far as that shows; None if nothing seems to be.

    Args:
        home: The folder, absolute; it needn't be there.
        files: Names of what will be written in it.
    """
    there = next(path for path in (home, *home.parents) if os.path.lexists(path))
    if not os.path.isdir(there):
        return f"{there} is no folder"
    if any(Path(os.path.realpath(home)).is_relative_to(kernel) for kernel in _KERNEL):
        return "the kernel keeps no files of others there"
    known = [home / name for name in files if os.path.lexists(home / name)]
    if folders := [path for path in known if os.path.isdir(path)]:
        return f"{folders[0]} is a folder where a file belongs"
    closed = [path for path in (there, *known) if not os.access(path, os.W_OK)]
    return f"{closed[0]} can't be written to" if closed else None
