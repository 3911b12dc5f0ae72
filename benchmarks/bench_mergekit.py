"""outcross and mergekit on the same synthetic parents, in turn, in one process tree.

    PYTHONPATH=.:tests/support python benchmarks/bench_mergekit.py --mergekit PATH/bin --quick

PATH/bin is the folder of mergekit's own environment with `python` and `mergekit-yaml`. Times are
CPU seconds of one thread. Bandwidth is that of torch.add(a, b, alpha=2, out=c) on 64M float32 (12
bytes an element), measured beside each row, so that a busy machine slows both sides of the ratio.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import reference_merges as slow
import torch
from mergekit_cases import CASES, TUNES, Case
from mergekit_programs import export_lines, memory_lines
from safetensors.torch import load_file
from synthetic import SIZES, write_parents

from merge_core.apply import Workbench, apply, apply_all
from merge_core.checkpoint import Checkpoint, open_checkpoint
from merge_core.parents import Parents
from merge_core.plan import MergePlan, compile_plan
from merge_core.recipe import from_dict

TUNED = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:"
    "glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456"
)
TENSOR = "model.layers.1.mlp.down_proj.weight"  # the one whose error is measured
TRIAD = 1 << 26
COLUMNS = (
    "method", "B/param", "apply ms", "plan ms", "of triad", "triad GB/s", "wanted", "mergekit s",
    "ratio", "wanted", "prep s", "off ours", "off mergekit", "same, float32",
)  # fmt: skip


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}")
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.size.split(","):
            folders = write_parents(Path(options.data or scratch) / name, SIZES[name])
            print(f"\n## {name}: {SIZES[name].numel() / 1e6:.1f}M parameters\n", flush=True)
            if "table" in options.parts:
                _table(folders, options)
            if "lines" in options.parts:
                _lines(folders)
            if "memory" in options.parts:
                for line in memory_lines(folders):
                    print(line, flush=True)
            if "export" in options.parts:
                for line in export_lines(folders, options.mergekit):
                    print(line, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mergekit", type=Path, help="bin folder of mergekit's environment")
    parser.add_argument("--data", help="where the parents are kept; default a temporary folder")
    parser.add_argument("--size", default="120m,500m", help="which of " + ", ".join(SIZES))
    parser.add_argument("--quick", action="store_true", help="the small size only")
    parser.add_argument("--methods", default="", help="labels of rows; default all")
    parser.add_argument("--rounds", type=int, default=5, help="candidates of ours per row")
    parser.add_argument("--parts", default="table,lines,memory,export")
    options = parser.parse_args()
    options.size = "120m" if options.quick else options.size
    options.methods = set(filter(None, options.methods.split(",")))
    options.parts = options.parts.split(",")
    return options


# --- ours -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Ours:
    """Parents and a live model of our side."""

    checkpoints: dict[str, Checkpoint]
    bench: Workbench

    @classmethod
    def open(cls, folders: Mapping[str, Path]) -> "Ours":
        opened = {name: open_checkpoint(path, name) for name, path in folders.items()}
        parents = Parents(opened, torch.device("cpu"))
        specs = opened["base"].tensors.values()
        slots = {spec.name: _slot(torch.zeros(spec.shape, dtype=spec.dtype)) for spec in specs}
        for name in opened:
            for spec in specs:
                parents.tensor(name, spec.name).view(torch.int16).amax()  # into the page cache
        return cls(opened, Workbench(parents, slots))

    def candidate(self, recipe: dict[str, Any], whole: bool = True) -> tuple[float, float]:
        """CPU seconds of planning and of applying; `whole` forgets what the slots hold."""
        read = from_dict(recipe)
        start = time.process_time()
        plan: MergePlan = compile_plan(read, self.checkpoints)
        middle = time.process_time()
        if whole:
            self.bench.done.clear()
        apply(plan, self.bench)
        return middle - start, time.process_time() - middle


def _slot(tensor: torch.Tensor) -> torch.nn.Parameter:
    """A live model's parameter."""
    return torch.nn.Parameter(tensor, requires_grad=False)


def _warm() -> None:
    """Load the compiled loops before anything is timed."""
    parents = {name: torch.randn(4, 512).bfloat16() for name in ("base", *TUNES)}
    for case in CASES:
        base = parents["base"] if _has_base(case) else None
        inputs = [parents[name] for name in case.inputs]
        values = case.values(0)
        slow.fast_merge(case.method, inputs, base, out_dtype=torch.bfloat16, **case.given(values))


def _has_base(case: Case) -> bool:
    return case.base is not None and case.base not in case.inputs


# --- mergekit ---------------------------------------------------------------------------------


class Theirs:
    """The worker with mergekit: one line in, one line out."""

    def __init__(self, folder: Path | None, parents: Mapping[str, Path]) -> None:
        self.process = None
        if folder is None:
            return
        environment = {"GLIBC_TUNABLES": TUNED, "OMP_NUM_THREADS": "1"}
        kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        self.process = subprocess.Popen(
            [folder / "python", Path(__file__).with_name("mergekit_worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=kept | environment,
        )
        self.loaded = self.ask({"load": {name: str(path) for name, path in parents.items()}})

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        assert self.process
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("mergekit's worker ended; its error stands above")
        return json.loads(line)

    def close(self) -> None:
        """End the worker."""
        if self.process and self.process.stdin:
            self.process.stdin.close()
            self.process.wait()


# --- the table --------------------------------------------------------------------------------


@dataclass(slots=True)
class Row:
    """What was measured for a case: lists of CPU seconds."""

    case: Case
    plan: list[float] = field(default_factory=list)
    apply: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    triad: list[float] = field(default_factory=list)
    first: float = 0.0
    off: tuple[float, ...] = ()

    def cells(self, numel: int) -> Iterator[str]:
        """The row's cells, as in COLUMNS."""
        ours = min(self.apply)
        share = 100 * self.case.moved * numel / ours / (12 * TRIAD / min(self.triad))
        yield from (self.case.label, str(self.case.moved), f"{1e3 * ours:.1f}")
        speed = 12 * TRIAD / min(self.triad) / 1e9
        yield from (f"{1e3 * min(self.plan):.2f}", f"{share:.0f} %", f"{speed:.1f}")
        yield f"{self.case.wanted[0]} %"
        if self.theirs:
            ratio = min(self.theirs) / (ours + min(self.plan))
            yield from (f"{min(self.theirs):.2f}", f"{ratio:.0f}x")
        else:
            yield from ("-", "-")
        yield from (f"{self.case.wanted[1]}x", f"{max(0.0, self.first - ours):.2f}")
        cells = [f"{100 * share:.3f} %" for share in self.off]
        yield from (*cells, *["-"] * (3 - len(cells)))


def _table(folders: Mapping[str, Path], options: argparse.Namespace) -> None:
    _warm()
    ours = Ours.open(folders)
    theirs = Theirs(options.mergekit, folders)
    numel = sum(slot.numel() for slot in ours.bench.slots.values())
    triad = _Triad()
    _print_row(COLUMNS)
    _print_row(["---"] * len(COLUMNS))
    speeds: list[float] = []
    known: dict[str, list[float]] = {}  # mergekit knows one rescaling only
    for case in CASES:
        if options.methods and case.label not in options.methods:
            continue
        row = Row(case)
        _measure(row, ours, theirs, triad, options.rounds, known.get(case.method, []))
        row.off = _errors(case, ours, theirs)
        speeds += row.triad
        if not case.ours:
            known[case.method] = row.theirs
        _print_row(row.cells(numel))
    print(f"\n- Triad: {12 * TRIAD / min(speeds) / 1e9:.1f} GB/s at best.")
    if theirs.process:
        model = 2 * numel
        rss = theirs.ask({"merge": 1, **CASES[0].request(CASES[0].values(99))})["rss"]
        print(f"- Anonymous memory of mergekit's worker: {rss / model:.1f} model sizes, of which")
        print(
            f"  {theirs.loaded['rss'] / model:.1f} before the first merge: 4 parents, live model."
        )
    theirs.close()


def _measure(
    row: Row, ours: Ours, theirs: Theirs, triad: "_Triad", rounds: int, known: list[float]
) -> None:
    case = row.case
    ours.bench.geometry = type(ours.bench.geometry)(ours.bench.parents)  # a new study
    row.first = ours.candidate(case.recipe(case.values(0)))[1]
    if case.ours:
        row.theirs = list(known)
    for number in range(1, rounds + 1):
        row.triad.append(triad.seconds())
        plan, applied = ours.candidate(case.recipe(case.values(number)))
        row.plan.append(plan)
        row.apply.append(applied)
        if theirs.process and number <= case.turns and not (case.ours and known):
            request = {"merge": 1, **case.request(case.values(number))}
            row.theirs.append(theirs.ask(request)["cpu"])


class _Triad:
    """c = a + 2 b on 64M float32."""

    def __init__(self) -> None:
        self.a, self.b, self.c = (torch.ones(TRIAD) for _ in range(3))
        self.seconds()

    def seconds(self) -> float:
        """CPU seconds of one pass, the best of two."""
        found = []
        for _ in range(2):
            start = time.process_time()
            torch.add(self.a, self.b, alpha=2, out=self.c)
            found.append(time.process_time() - start)
        return min(found)


def _print_row(cells: Any) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


# --- errors -----------------------------------------------------------------------------------


def _errors(case: Case, ours: Ours, theirs: Theirs) -> tuple[float, ...]:
    """Shares of one tensor's elements that differ from the correctly rounded bfloat16.

    Returns:
        Ours; mergekit's; mergekit's with dtype float32. Only ours where mergekit's masks differ.
    """
    values = case.values(1)
    tensors = {name: ours.bench.parents.tensor(name, TENSOR) for name in ours.checkpoints}
    if case.twin is None:
        return ()
    exact = rounded(case.twin(tensors, values))
    base = tensors["base"] if _has_base(case) else None
    inputs = [tensors[name] for name in case.inputs]
    given = case.given(values)
    mine = slow.fast_merge(case.method, inputs, base, out_dtype=torch.bfloat16, **given)
    found = [_off(mine, exact)]
    if theirs.process and not case.random:
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/merged.safetensors"
            theirs.ask({"save": path, "tensor": TENSOR, **case.request(values)})
            merged = load_file(path)
        found += [_off(merged["plain"], exact), _off(merged["wide"], exact)]
    return tuple(found)


def rounded(values: torch.Tensor) -> torch.Tensor:
    """The nearest bfloat16, ties to even, without a stop at float32."""
    bits = values.double().contiguous().view(torch.int64)
    bits = bits + ((1 << 44) - 1) + ((bits >> 45) & 1)
    return (bits >> 45 << 45).view(torch.float64).bfloat16()


def _off(got: torch.Tensor, exact: torch.Tensor) -> float:
    return float((got != exact).double().mean())


# --- lines ------------------------------------------------------------------------------------


def _lines(folders: Mapping[str, Path]) -> None:
    """What the table doesn't show: no arithmetic at all, partial changes, batches."""
    _warm()
    ours = Ours.open(folders)
    layers = ours.checkpoints["base"].config["num_hidden_layers"]
    print()
    for label, recipes in (("passthrough", _swaps()), ("interleave", _stacks(layers))):
        plan, applied = _best(ours, recipes)
        print(f"- {label}: {1e3 * (plan + applied):.2f} ms a candidate, of which planning", end="")
        print(f" {1e3 * plan:.2f} ms (wanted: < 1 ms).", flush=True)
    for case in (c for c in CASES if c.label in ("linear", "ties")):
        _partial(case, ours, layers)
    _batch(ours)


def _best(ours: Ours, recipes: Iterator[dict[str, Any]]) -> tuple[float, float]:
    found = [ours.candidate(recipe, whole=False) for recipe in recipes]
    return min(found[1:], key=sum)


def _swaps() -> Iterator[dict[str, Any]]:
    for number in range(7):
        models = [{"model": TUNES[number % 3]}]
        yield {"merge_method": "passthrough", "models": models, "out_dtype": "bfloat16"}


def _stacks(layers: int) -> Iterator[dict[str, Any]]:
    """The lower layers of one parent under the upper ones of another."""
    for number in range(7):
        cut = 2 + number % (layers - 3)
        lower, upper = TUNES[number % 3], TUNES[(number + 1) % 3]
        slices = [
            {"sources": [{"model": lower, "layer_range": [0, cut]}]},
            {"sources": [{"model": upper, "layer_range": [cut, layers]}]},
        ]
        yield {"merge_method": "passthrough", "slices": slices, "out_dtype": "bfloat16"}


def _partial(case: Case, ours: Ours, layers: int) -> None:
    """One layer of all has new numbers."""
    values = case.values(0)
    whole = [sum(ours.candidate(case.recipe(case.values(n)))) for n in range(5)]
    found = []
    for number in range(1, 6):
        recipe = case.recipe(values)
        for model in recipe["models"]:
            name = f"layers.{layers // 2}."
            old = model["parameters"]["weight"]
            new = case.values(number).each["weight"][model["model"]]
            model["parameters"]["weight"] = [{"filter": name, "value": new}, {"value": old}]
        found.append(ours.candidate(recipe, whole=False))
    best = min(sum(pair) for pair in found[1:])
    layer = sum(x.numel() for key, x in ours.bench.slots.items() if f".{layers // 2}." in key)
    share = layer / sum(x.numel() for x in ours.bench.slots.values())
    print(
        f"- {case.label}, one layer of {layers} changed: {100 * best / min(whole[1:]):.1f} % of the"
    )
    print(
        f"  time of all, {1e3 * best:.2f} ms with planning; the layer is {100 * share:.1f} % of the"
    )
    print("  parameters.", flush=True)


def _batch(ours: Ours) -> None:
    """Four candidates in one pass against four single ones."""
    slots = ours.bench.slots
    benches = [
        Workbench(ours.bench.parents, {key: _slot(torch.zeros_like(x)) for key, x in slots.items()})
        for _ in range(4)
    ]
    for bench in benches:
        bench.geometry = ours.bench.geometry
    for case in (c for c in CASES if c.label in ("linear", "task_arithmetic", "ties")):
        one, four = math.inf, math.inf
        for number in range(6):
            one = min(one, ours.candidate(case.recipe(case.values(number)))[1])
            recipes = [from_dict(case.recipe(case.values(10 * number + i))) for i in range(4)]
            plans = [compile_plan(recipe, ours.checkpoints) for recipe in recipes]
            start = time.process_time()
            apply_all(list(zip(plans, benches, strict=True)))
            four = min(four, time.process_time() - start)
        print(
            f"- four candidates in one pass ({case.label}): {100 * four / (4 * one):.0f} %", end=""
        )
        print(" of four single ones (wanted: at most 60 %).", flush=True)


if __name__ == "__main__":
    main()
