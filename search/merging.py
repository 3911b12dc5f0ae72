"""`outcross merge`: recipes of one or several documents, all planned before any is merged."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch

from merge_core.alignment import Aligned
from merge_core.checkpoint import Checkpoint, digest, open_checkpoint
from merge_core.errors import CheckpointError, MergeError
from merge_core.export import SHARD_BYTES, check_new, write_model
from merge_core.filters import silent_filters, tensor_names
from merge_core.keys import nearest
from merge_core.parents import Parents
from merge_core.plan import MergePlan, compile_plan
from merge_core.stages import Stage, planned_checkpoint, read_stages
from merge_core.token_sources import BASE, UNION
from merge_core.vocabulary import align_vocabularies
from search.config import read_documents
from search.errors import StudyError
from search.models import open_model

RECIPE = "recipe.yaml"
_MARK = "stage.json"  # in a kept stage: what it was made of


@dataclass(frozen=True, slots=True)
class Job:
    """One document, ready to be merged.

    Attributes:
        stage: The document.
        aligned: Its models in one vocabulary, and what stands beside its weights.
        plan: What will be done.
        silent: Filters that are part of no tensor's name in any document, a sentence each.
    """

    stage: Stage
    aligned: Aligned
    plan: MergePlan
    silent: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before the merge, each once."""
        told = (
            *self.stage.warnings,
            *self.aligned.warnings,
            *self.plan.warnings,
            *self.silent,
        )
        return tuple(dict.fromkeys(told))


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """How to merge.

    Attributes:
        seed: Of random masks.
        device: Where the arithmetic runs.
        shard_bytes: Largest size of a weight file.
        stages: Where to keep the results of named documents; None: beside the output, removed.
    """

    seed: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    shard_bytes: int = SHARD_BYTES
    stages: Path | None = None


def plan_file(path: Path, seed: int) -> tuple[Job, ...]:
    """Check every document of a recipe file, from headers alone.

    Returns:
        The jobs in the order of merging; the result is the last.

    Raises:
        StudyError: For any mistake; nothing was merged.
    """
    documents = read_documents(path)
    known: dict[str, Checkpoint] = {}
    jobs: list[Job] = []
    stage = None
    try:
        for stage in read_stages(documents):
            job = _job(stage, known, seed)
            if stage.name:
                known[stage.name] = planned_checkpoint(job.plan, stage.name, job.aligned.files)
            jobs.append(job)
    except MergeError as error:
        raise StudyError([f"{stage.where if stage else ''}{error}"], str(path)) from None
    names = tensor_names(job.plan for job in jobs)
    return tuple(replace(job, silent=silent_filters(job.stage.recipe, names)) for job in jobs)


def merge_file(path: Path, jobs: tuple[Job, ...], folder: Path, options: MergeOptions) -> None:
    """Merge what was planned.

    Args:
        path: The recipe file; its text goes into the output.
        jobs: What `plan_file` gave.
        folder: Where the result goes; new or empty.
        options: How to merge.

    Raises:
        MergeError: If a folder is not empty or a method refuses its numbers.
    """
    check_new(folder)
    text = path.read_text("utf-8")
    *stages, result = jobs
    known: dict[str, Checkpoint] = {}
    with _stage_folder(folder, options, bool(stages)) as place:
        for job in stages:
            name = job.stage.name or ""
            _merge_stage(_job(job.stage, known, options.seed), place / name, options)
            known[name] = open_checkpoint(place / name, name)
        final = _job(result.stage, known, options.seed) if stages else result
        _write(final, folder, {RECIPE: text}, options)


def _job(stage: Stage, known: dict[str, Checkpoint], seed: int) -> Job:
    """Plan one document; opens the models that are not known yet."""
    block = stage.recipe.tokenizer
    for model in stage.recipe.references:
        if model not in known:
            words = (UNION, BASE) if block and model == block.source else ()
            known[model] = _open(model, known, words)
    models = {model: known[model] for model in stage.recipe.references}
    aligned = align_vocabularies(stage.recipe, models)
    return Job(stage, aligned, compile_plan(stage.recipe, aligned.checkpoints, seed))


def _open(model: str, known: Mapping[str, Checkpoint], words: tuple[str, ...]) -> Checkpoint:
    """Open a model; `words` is what else may stand where its name was read."""
    try:
        return open_model(model, Path(), model)
    except CheckpointError as error:
        stages = [name for name, found in known.items() if found.companions is not None]
        hint = f"; of the documents {nearest(model, stages)}" if stages else ""
        hint += f"; tokenizer.source: {nearest(model, words)}" if words else ""
        raise CheckpointError(f"{error}{hint}") from None


def _write(job: Job, folder: Path, extra: dict[str, str], options: MergeOptions) -> None:
    parents = Parents(job.aligned.checkpoints, options.device, _existing(folder))
    files = job.aligned.files
    write_model(
        job.plan, parents, folder, files=files, extra=extra, shard_bytes=options.shard_bytes
    )


def _merge_stage(job: Job, folder: Path, options: MergeOptions) -> None:
    """Merge a stage, unless the folder holds the same one already."""
    mark = folder / _MARK
    made_of = _made_of(job, options.seed) if options.stages else ""
    if mark.is_file():
        if json.loads(mark.read_text("utf-8")).get("made_of") == made_of:
            return
        shutil.rmtree(folder)  # an earlier one of ours, of another recipe or other parents
    _write(job, folder, {_MARK: json.dumps({"made_of": made_of}) + "\n"}, options)


def _made_of(job: Job, seed: int) -> str:
    """sha256 over recipe, seed, version, the parents' contents and what goes beside the weights."""
    recipe = job.stage.recipe
    parents = [digest(job.aligned.checkpoints[model]) for model in recipe.references]
    files = {
        name: file if isinstance(file, str) else hashlib.sha256(file.read_bytes()).hexdigest()
        for name, file in sorted(job.aligned.files.items())
    }
    text = json.dumps([recipe.fingerprint, seed, version("outcross"), parents, files])
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def _stage_folder(folder: Path, options: MergeOptions, needed: bool) -> Generator[Path]:
    if options.stages is not None or not needed:
        yield options.stages or folder
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-stages-", dir=folder.parent) as place:
        yield Path(place)


def _existing(folder: Path) -> Path | None:
    """Where tensors that no file holds are laid down: the disk of the output."""
    return next((parent for parent in folder.absolute().parents if parent.is_dir()), None)
