"""Write a merge as a model folder: tensor by tensor, bounded memory, all or nothing."""

import json
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from merge_core.apply import run_steps
from merge_core.checkpoint import DTYPES, INDEX, SINGLE, open_checkpoint
from merge_core.companions import Companion, companions, write_companions
from merge_core.errors import MergeError
from merge_core.geometry import Geometry
from merge_core.mapped import map_file
from merge_core.parents import Parents
from merge_core.plan import MergePlan, MergeStep

SHARD_BYTES = 5_000_000_000
_CODES = {dtype: code for code, dtype in DTYPES.items()}


def write_model(
    plan: MergePlan,
    parents: Parents,
    folder: Path,
    *,
    files: Mapping[str, Companion] | None = None,
    extra: dict[str, str] | None = None,
    progress: Callable[[str], None] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Merge straight into safetensors files.

    Memory stays at one output tensor and the mapped pages of its inputs. The arithmetic is that
    of `apply`, so the file holds the bits that the search has seen.

    Args:
        plan: What to merge.
        parents: The opened parents, on any device.
        folder: Where to write; must not exist or be empty.
        files: What stands beside the weights (tokenizer, generation settings); default the donor's.
        extra: Text files to put beside the model, by name.
        progress: Called with each tensor's name.
        shard_bytes: Largest size of a weight file.

    Raises:
        MergeError: If the folder is not empty, or if what was written is not what was planned;
            nothing is left there then.
    """
    with new_folder(folder) as draft:
        shards = list(_shards(plan.steps, shard_bytes))
        for number, steps in enumerate(shards, 1):
            _write_shard(draft / _shard_name(number, len(shards)), steps, parents, progress)
        if len(shards) > 1:
            _write_index(draft, shards)
        (draft / "config.json").write_text(json.dumps(plan.config, indent=2) + "\n", "utf-8")
        donor = parents.checkpoints[plan.donor]
        write_companions(companions(donor) if files is None else files, draft)
        for name, text in (extra or {}).items():
            (draft / name).write_text(text, "utf-8")
        verify(draft, plan)


def verify(folder: Path, plan: MergePlan) -> None:
    """Reopen what was written: every tensor of the plan is there, with its shape and dtype.

    Raises:
        MergeError: If not; a disk that lies about a full write is one cause.
    """
    written = open_checkpoint(folder, "written").tensors
    for step in plan.steps:
        spec = written.get(step.out)
        if spec is None or (spec.shape, spec.dtype) != (step.shape, step.dtype):
            raise MergeError(
                f"tensor '{step.out}' was to be written as {step.shape} {step.dtype}, but the file "
                f"holds {f'{spec.shape} {spec.dtype}' if spec else 'none'}; merge again"
            )
    if extra := written.keys() - {step.out for step in plan.steps}:
        raise MergeError(f"tensor '{min(extra)}' was written but not planned; merge again")


def check_new(folder: Path) -> None:
    """Refuse to write over anything.

    Raises:
        MergeError: If the folder exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MergeError(f"{folder} is not empty; give a new folder")


@contextmanager
def new_folder(folder: Path) -> Generator[Path]:
    """A draft folder that gets its name only when the block ends well.

    Raises:
        MergeError: If the folder exists and is not empty.
    """
    check_new(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        draft.chmod(0o755)
        yield draft
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _shards(steps: tuple[MergeStep, ...], limit: int) -> Iterator[list[MergeStep]]:
    shard: list[MergeStep] = []
    size = 0
    for step in steps:
        if shard and size + _bytes(step) > limit:
            yield shard
            shard, size = [], 0
        shard.append(step)
        size += _bytes(step)
    yield shard


def _bytes(step: MergeStep) -> int:
    return torch.Size(step.shape).numel() * step.dtype.itemsize


def _shard_name(number: int, count: int) -> str:
    return SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _write_shard(
    path: Path,
    steps: list[MergeStep],
    parents: Parents,
    progress: Callable[[str], None] | None,
) -> None:
    """The safetensors format: 8 bytes of header length, a JSON header, the tensors in its order.

    Tensors are merged straight into the mapped file, so that none of them takes memory.
    """
    header = _header(steps)
    path.write_bytes(header)
    file = map_file(path, len(header) + sum(map(_bytes, steps)))
    at = len(header)
    for step in steps:
        place = file[at : at + _bytes(step)]
        at += _bytes(step)
        # Geometry of its own: figures of a tensor that is written are of no more use.
        _write(step, Geometry(parents), place)
        parents.forget()
        if progress:
            progress(step.out)


def _write(step: MergeStep, geometry: Geometry, place: torch.Tensor) -> None:
    fits = place.storage_offset() % step.dtype.itemsize == 0
    if fits and geometry.parents.device.type == "cpu":
        run_steps([(step, place.view(step.dtype).view(step.shape))], geometry)
        return
    out = torch.empty(step.shape, dtype=step.dtype, device=geometry.parents.device)
    run_steps([(step, out)], geometry)
    place.copy_(out.cpu().reshape(-1).view(torch.uint8))


def _header(steps: list[MergeStep]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for step in steps:
        entries[step.out] = {
            "dtype": _CODES[step.dtype],
            "shape": list(step.shape),
            "data_offsets": [at, at + _bytes(step)],
        }
        at += _bytes(step)
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)  # tensors begin on cache lines
    return len(text).to_bytes(8, "little") + text


def _write_index(folder: Path, shards: list[list[MergeStep]]) -> None:
    files = {
        step.out: _shard_name(number, len(shards))
        for number, steps in enumerate(shards, 1)
        for step in steps
    }
    total = sum(_bytes(step) for steps in shards for step in steps)
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
