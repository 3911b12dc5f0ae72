"""Makes everything the study needs in one folder: the base, two siblings, the data and the tasks.

Run as `python -m studies.smollm2.make_parents FOLDER`; a second run keeps what is finished.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from studies.smollm2.parts import PartError, clear, once, part_of

SIBLINGS = {
    "words": ("kinds.train.jsonl", "60", "64", "3e-4", "0"),
    "sums": ("sums.train.jsonl", "70", "64", "3e-4", "0"),
}
STUDIES = ("study.yaml", "layers.yaml")
_NEEDED = ("pip", "setuptools", "torch", "transformers", "gguf", "accelerate", "yaml")


def make_parents(folder: Path) -> None:
    """Fetches, converts, writes the data and fine-tunes; each finished part is kept."""
    _check_modules()
    # Imported only now, so that a missing module is reported in one line.
    from studies.smollm2 import fetch
    from studies.smollm2.convert import convert
    from studies.smollm2.data import write_data, write_tasks

    sources = folder / "sources"
    once(sources / "model", lambda out: fetch.fetch(fetch.MODEL, out))
    once(sources / "wordnet", lambda out: fetch.fetch(fetch.WORDNET, out))
    once(sources / "bigbench", lambda out: fetch.fetch(fetch.BIGBENCH, out))
    once(folder / "models" / "base", lambda out: convert(sources / "model" / "smollm2.gguf", out))
    once(folder / "data", lambda out: write_data(_splits(folder), sources / "bigbench", out))
    once(folder / "tasks", write_tasks)
    for name in STUDIES:
        once(folder / name, partial(_copy_study, name))
    fine_tune_siblings(folder)


def fine_tune_siblings(folder: Path) -> None:
    """Fine-tunes the siblings that are missing, each in its own process of one thread."""
    targets = {name: folder / "models" / name for name in SIBLINGS}
    missing = {name: path for name, path in targets.items() if not path.exists()}
    for name in sorted(targets.keys() - missing.keys()):
        print(f"{name}: kept", flush=True)
    running = {name: _start(name, folder, path) for name, path in missing.items()}
    failed = [name for name, process in running.items() if process.wait() != 0]
    for name in sorted(missing.keys() - set(failed)):
        os.replace(part_of(missing[name]), missing[name])
        print(f"{name}: made", flush=True)
    if failed:
        names = " and ".join(failed)
        raise PartError(f"fine-tuning {names} stopped, see above; free 4 GB for each, run again")


def _start(name: str, folder: Path, target: Path) -> subprocess.Popen[bytes]:
    clear(part_of(target))
    examples, *numbers = SIBLINGS[name]
    paths = (folder / "models" / "base", folder / "data" / examples, part_of(target))
    command = [sys.executable, "-m", "studies.smollm2.finetune", *map(str, paths), *numbers]
    # One thread each: two processes of one thread beat one of two, and the sums stay in order.
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})


def _copy_study(name: str, out: Path) -> None:
    shutil.copyfile(Path(__file__).with_name(name), out)


def _splits(folder: Path) -> Any:
    from studies.smollm2.items import facts, kinds, sums
    from studies.smollm2.loading import load_tokenizer

    tokenizer = load_tokenizer(folder / "models" / "base")

    def is_one_token(word: str) -> bool:
        return len(tokenizer(f" {word}")["input_ids"]) == 1

    bigbench = folder / "sources" / "bigbench"
    return {
        "kinds": kinds(folder / "sources" / "wordnet"),
        "sums": sums(bigbench),
        "facts": facts(bigbench, is_one_token),
    }


def _check_modules() -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        names = " ".join("pyyaml" if name == "yaml" else name for name in missing)
        raise PartError(f"this study needs more packages; run: python -m pip install {names}")


def main(arguments: Sequence[str]) -> int:
    """Runs the script; returns the exit status."""
    if len(arguments) != 1:
        print("usage: python -m studies.smollm2.make_parents FOLDER", file=sys.stderr)
        return 2
    start = time.monotonic()
    try:
        make_parents(Path(arguments[0]).resolve())
    except PartError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"ready in {(time.monotonic() - start) / 60:.1f} minutes: {arguments[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
