"""mergekit's side of `bench_mergekit.py`: JSON lines in, JSON lines out.

Runs in mergekit's own environment and uses its public in-memory API only. The state dictionaries
are anonymous memory, and so is the live model that every result is copied into.
"""

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from mergekit.merge_methods.api import merge_state_dicts
from safetensors.torch import load_file, save_file

State = dict[str, torch.Tensor]


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    answers = os.fdopen(os.dup(1), "w")
    models: dict[str, State] = {}
    live: State = {}
    with contextlib.redirect_stdout(sys.stderr), torch.no_grad():
        for line in sys.stdin:
            request = json.loads(line)
            if "load" in request:
                models, live = _load(request["load"])
                answer = {"torch": torch.__version__, "rss": anonymous()}
            elif "save" in request:
                answer = _save(models, request)
            else:
                answer = _timed(models, live, request)
            print(json.dumps(answer), file=answers, flush=True)


def anonymous() -> int:
    """RssAnon of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def _load(folders: dict[str, str]) -> tuple[dict[str, State], State]:
    models = {
        name: {key: x.clone() for key, x in load_file(f"{folder}/model.safetensors").items()}
        for name, folder in folders.items()
    }
    first = next(iter(models.values()))
    return models, {key: torch.zeros_like(tensor) for key, tensor in first.items()}


def _timed(models: dict[str, State], live: State, request: dict[str, Any]) -> dict[str, Any]:
    start = time.process_time()
    merged = _merge(models, request, torch.float32 if request["wide"] else None)
    for name, tensor in merged.items():
        live[name].copy_(tensor)
    return {"cpu": time.process_time() - start, "rss": anonymous()}


def _save(models: dict[str, State], request: dict[str, Any]) -> dict[str, Any]:
    """Merge one tensor twice, in the parents' dtype and in float32, for its error."""
    name = request["tensor"]
    single = {key: {name: state[name]} for key, state in models.items()}
    plain = _merge(single, request)[name]
    wide = _merge(single, request, torch.float32)[name]
    save_file({"plain": plain.contiguous(), "wide": wide.bfloat16()}, request["save"])
    return {}


def _merge(
    models: dict[str, State], request: dict[str, Any], dtype: torch.dtype | None = None
) -> State:
    return merge_state_dicts(
        {name: models[name] for name in request["models"]},
        request["method"],
        parameters=request["parameters"],
        base=request["base"],
        dtype=dtype,
        out_dtype=torch.bfloat16,
    )


if __name__ == "__main__":
    main()
