"""Orders of layers as the program `mergekit-multi` merges them: are the tensors the same?

    PYTHONPATH=.:tests/support python benchmarks/verify_layers.py --mergekit PATH/bin

Random walks through the layers of two tiny parents and their merge, with scales: what we write of
each against what mergekit makes of the documents that an export puts beside its winner. Merged in
float32: in 16 bits the methods themselves differ (docs/methods.md).
"""

import argparse
import os
import random
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch reads it

import torch
import yaml
from safetensors.torch import load_file
from tiny_models import write_family

from merge_core.checkpoint import Checkpoint, open_checkpoint
from merge_core.export import write_model
from merge_core.interleave import Run, interleave
from merge_core.parents import Parents
from merge_core.plan import compile_plan
from merge_core.recipe import Recipe, from_dict
from merge_core.staging import documents
from merge_core.writers import find_writers, scale_settings

LAYERS = 4
METHODS: Mapping[str, Mapping[str, Any]] = {
    "linear": {"weight": (0.6, 0.4)},
    "task_arithmetic": {"weight": (0.7, 0.5)},
    "ties": {"weight": (0.7, 0.5), "density": (0.5, 0.6)},
    "slerp": {},
}
Tensors = Mapping[str, torch.Tensor]


def main() -> None:
    """Print a line for each family and method."""
    options = _options()
    print("| family | method | stored as | walks | tensors | equal | largest difference |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for family in options.families.split(","):
        for method in METHODS:
            for dtype in options.dtypes.split(","):
                print(row(family, method, dtype, options), flush=True)


def row(family: str, method: str, dtype: str, options: argparse.Namespace) -> str:
    """Compare some walks; differences are in units of the last bit of a tensor's largest number."""
    tensors = equal = 0
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        parents = opened(write_family(Path(scratch) / "models", family, layers=LAYERS))
        for number in range(options.walks):
            recipe = walked(method, dtype, parents, random.Random(number))
            folder = Path(scratch) / str(number)
            ours, theirs = merged(recipe, parents, folder, options.mergekit)
            for name in ours.keys() & theirs.keys():
                tensors += 1
                equal += torch.equal(ours[name], theirs[name])
                worst = max(worst, last_bits(ours[name], theirs[name]))
            if missing := ours.keys() - theirs.keys() - {"lm_head.weight"}:
                raise SystemExit(f"{family}: mergekit leaves out {', '.join(sorted(missing))}")
    return (
        f"| {family} | {method} | {dtype} | {options.walks} | {tensors} | {equal} | {worst:.2g} |"
    )


def walked(
    method: str, dtype: str, parents: Mapping[str, Checkpoint], chance: random.Random
) -> Recipe:
    """A recipe of three to six runs, some merged, most with a scale."""
    base, a, b = parents
    models: list[dict[str, Any]] = [{"model": name, "parameters": {}} for name in (a, b)]
    for key, values in METHODS[method].items():
        for model, value in zip(models, values, strict=True):
            model["parameters"][key] = value
    whole: dict[str, Any] = {"merge_method": method, "models": models}
    whole |= {"dtype": "float32", "out_dtype": dtype}
    if method == "slerp":
        whole |= {"base_model": a, "parameters": {"t": [0.2, 0.8]}}
    elif method != "linear":
        whole["base_model"] = base
    writers = find_writers(parents[a])
    runs: list[Run] = []
    for origin in (None, *(chance.choice((None, a, b)) for _ in range(chance.randint(2, 5)))):
        start = chance.randrange(LAYERS)
        factor = chance.choice((1.0, 0.8, 1.3))
        scales = scale_settings(writers, factor) if factor != 1 else ()
        runs.append(Run(origin, start, chance.randint(start + 1, LAYERS), scales))
    chance.shuffle(runs)
    return interleave(from_dict(whole), runs, dict.fromkeys(parents, LAYERS))


def merged(
    recipe: Recipe, parents: Mapping[str, Checkpoint], folder: Path, mergekit: Path
) -> tuple[Tensors, Tensors]:
    """The tensors that we write, and mergekit's."""
    plan = compile_plan(recipe, parents)
    write_model(plan, Parents(parents, torch.device("cpu")), folder / "ours")
    stated = documents(recipe, dict.fromkeys(parents, LAYERS))
    (folder / "recipe.yaml").write_text(yaml.safe_dump_all(stated, sort_keys=False), "utf-8")
    made = [folder / "recipe.yaml", "--out-path", folder / "theirs", "--no-copy-tokenizer"]
    command = [mergekit / "mergekit-multi", *made, "--intermediate-dir", folder / "stages"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(tensors_of(folder / "ours")), dict(tensors_of(folder / "theirs"))


def tensors_of(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """All of a model's."""
    for file in sorted(folder.glob("*.safetensors")):
        yield from load_file(file).items()


def opened(folder: Path) -> dict[str, Checkpoint]:
    """A family's base and parents, by path as mergekit wants them."""
    paths = [folder / name for name in ("base", "a", "b")]
    return {str(path): open_checkpoint(path, str(path)) for path in paths}


def last_bits(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, in units of the last bit of the largest number.

    Of each number's own last bit it would say little: sums that nearly cancel have few right ones.
    """
    wide, others = one.double(), other.double()
    exponent = torch.floor(torch.log2(torch.maximum(wide.abs(), others.abs()).max()))
    return float((wide - others).abs().max() / torch.exp2(exponent)) / torch.finfo(one.dtype).eps


def _options() -> argparse.Namespace:
    stated = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    stated.add_argument(
        "--mergekit", type=Path, required=True, help="bin folder of its environment"
    )
    stated.add_argument("--families", default="llama,gpt2")
    stated.add_argument("--dtypes", default="float32,bfloat16")
    stated.add_argument("--walks", type=int, default=3)
    return stated.parse_args()


if __name__ == "__main__":
    main()
