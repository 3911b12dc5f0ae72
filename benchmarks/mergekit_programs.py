"""Memory and whole programs, each in a process of its own so that nothing else counts."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SEARCHED = ("linear", "karcher", "ties", "dare_ties", "dare_ties density", "della")
EXPORTED = ("linear", "ties")
ROUNDS = 5
_POLL = 0.005  # seconds between looks at another process's memory


def anonymous(process: int | str = "self") -> int:
    """RssAnon of a process in bytes; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text("utf-8").splitlines()
    except OSError:
        return 0
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith("RssAnon")), 0)


def memory_lines(folders: Mapping[str, Path]) -> Iterator[str]:
    """Anonymous memory of a search beyond its mapped parents, against the start."""
    for label in SEARCHED:
        found = _child("search", label, folders, None)
        yield (
            f"- searching with {label}: {found['peak']:.2f} model sizes of anonymous memory at its"
            f" peak, {found['end']:.2f} after it; the live model counts 1."
        )


def export_lines(folders: Mapping[str, Path], mergekit: Path | None) -> Iterator[str]:
    """Writing a merge to files, against the program `mergekit-yaml`; imports are taken off."""
    for label in EXPORTED:
        # The sides take turns; the first round also pays for pages that the machine has to find.
        rounds = [_exported(label, folders, mergekit) for _ in range(ROUNDS)]
        ours, theirs = (min(side, key=lambda one: one["cpu"]) for side in zip(*rounds, strict=True))
        yield (
            f"- exporting {label}: {ours['peak']:.2f} model sizes of anonymous memory over"
            f" imports, {ours['cpu']:.2f} s of CPU time."
        )
        if mergekit is not None:
            yield (
                f"  mergekit-yaml: {theirs['peak']:.2f} model sizes, {theirs['cpu']:.2f} s"
                f" ({theirs['cpu'] / ours['cpu']:.1f}x)."
            )


def _exported(
    label: str, folders: Mapping[str, Path], mergekit: Path | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Peak and CPU time of ours and of mergekit's, which is ours again without mergekit."""
    with tempfile.TemporaryDirectory() as scratch:
        ours = _child("export", label, folders, Path(scratch) / "ours")
        theirs = ours if mergekit is None else _program(mergekit, label, folders, Path(scratch))
    return ours, theirs


def _child(kind: str, label: str, folders: Mapping[str, Path], out: Path | None) -> dict[str, Any]:
    request = {
        "kind": kind,
        "label": label,
        "folders": {name: str(path) for name, path in folders.items()},
        "out": str(out),
    }
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(request)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


class _Peak:
    """The most anonymous memory that a process has while the block runs, over what it had."""

    def __init__(self, process: int | str = "self") -> None:
        self.process = process
        self.start = self.most = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Peak":
        self.start = anonymous(self.process)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_POLL):
            self.most = max(self.most, anonymous(self.process))

    @property
    def over(self) -> int:
        """Bytes over the start."""
        return max(self.most, anonymous(self.process)) - self.start


def _run_child(request: dict[str, Any]) -> dict[str, float]:
    import bench_mergekit as bench
    import torch
    from mergekit_cases import CASES

    torch.set_num_threads(1)
    case = next(case for case in CASES if case.label == request["label"])
    bench._warm()
    folders = {name: Path(path) for name, path in request["folders"].items()}
    if request["kind"] == "export":
        return _export(case, folders, Path(request["out"]))
    with _Peak() as peak:
        ours = bench.Ours.open(folders)
        for number in range(6):
            ours.candidate(case.recipe(case.values(number)))
        end = anonymous() - peak.start
    model = ours.checkpoints["base"].bytes
    return {"peak": peak.over / model, "end": end / model}


def _export(case: Any, folders: dict[str, Path], out: Path) -> dict[str, float]:
    import torch

    from merge_core.checkpoint import open_checkpoint
    from merge_core.export import write_model
    from merge_core.parents import Parents
    from merge_core.plan import compile_plan
    from merge_core.recipe import from_dict

    recipe = from_dict(case.recipe(case.values(0)))
    start = time.process_time()
    with _Peak() as peak:
        opened = {name: open_checkpoint(path, name) for name, path in folders.items()}
        write_model(compile_plan(recipe, opened), Parents(opened, torch.device("cpu")), out)
    seconds = time.process_time() - start
    return {"peak": peak.over / opened["base"].bytes, "cpu": seconds}


def _program(
    mergekit: Path, label: str, folders: Mapping[str, Path], scratch: Path
) -> dict[str, float]:
    """`mergekit-yaml` less what its imports take (`--help`)."""
    from mergekit_cases import CASES

    case = next(case for case in CASES if case.label == label)
    recipe = case.recipe(case.values(0)) | {"dtype": "bfloat16"}
    for model in recipe["models"]:
        model["model"] = str(folders[model["model"]])
    if case.base:
        recipe["base_model"] = str(folders[case.base])
    (scratch / "recipe.yaml").write_text(json.dumps(recipe), "utf-8")  # JSON is YAML
    program = shutil.which("mergekit-yaml", path=str(mergekit)) or "mergekit-yaml"
    idle = _watched([program, "--help"])
    arguments = [str(scratch / "recipe.yaml"), str(scratch / "theirs"), "--no-copy-tokenizer"]
    whole = _watched([program, *arguments])
    size = (folders["base"] / "model.safetensors").stat().st_size
    return {"cpu": whole[0] - idle[0], "peak": (whole[1] - idle[1]) / size}


def _watched(command: list[str]) -> tuple[float, int]:
    """CPU seconds and peak of anonymous memory of a program."""
    keep = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    environment = keep | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    most = 0
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        most = max(most, anonymous(process.pid))
        time.sleep(_POLL)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.stderr.read().decode() if process.stderr else command[0])
    return usage.ru_utime + usage.ru_stime, most


if __name__ == "__main__":
    print(json.dumps(_run_child(json.loads(sys.argv[1]))))
