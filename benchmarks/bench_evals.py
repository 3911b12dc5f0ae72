"""Scoring a candidate: our harness against `lm_eval.simple_evaluate`, side by side in one run.

lm-eval gets an in-memory HFLM and a TaskManager that is made once; ours gets its plan made once.
Both score the same live model, whose weights change between rounds; the sides take turns.
"""

import argparse
import contextlib
import ctypes
import gc
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.quiet import quiet

quiet()  # before anything reads the environment

import lm_eval  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from eval_cases import CASES, Case, write_cases  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig  # noqa: E402

from evals.activations import Keys, find_layers  # noqa: E402
from evals.harness import Harness  # noqa: E402
from evals.items import Counts, Role  # noqa: E402
from evals.loading import TaskRequest  # noqa: E402
from evals.resident import Resident  # noqa: E402
from evals.settings import Settings  # noqa: E402
from evals.tasks import open_tasks  # noqa: E402


@dataclass(slots=True)
class Side:
    """CPU seconds and peak memory of one way of scoring.

    Attributes:
        seconds: The best round's.
        peak: Bytes above what was in use before, at most.
        values: Per-item results of the last round.
    """

    seconds: float = float("inf")
    peak: int = 0
    values: Any = None


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"lm-eval {lm_eval.__version__}, Python {platform.python_version()}, {platform.machine()}"
    )
    model, tokenizer = _model(options.model, options.tokenizer)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"{size:.1f}M parameters, {model.dtype}; {options.items} items, batch size "
        f"{options.batch}; CPU seconds of one thread, best of {options.rounds}, peak in MB\n"
    )
    print(
        "| case | lm-eval s | ours s | ratio | wanted | lm-eval peak | ours peak | once s | equal |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        tasks = write_cases(Path(folder), options.items)
        for case in CASES:
            if not options.cases or case.name in options.cases:
                print(_row(case, tasks, Resident(model, tokenizer, {}), options), flush=True)
        print(_upper_third(tasks, Resident(model, tokenizer, {}), options))


def _upper_third(tasks: Path, resident: Resident, options: argparse.Namespace) -> str:
    """Candidates that differ in the upper third of the layers only: with and without knowing it."""
    case = next(case for case in CASES if case.name == options.upper)
    harness = _harness(case, tasks, resident, options.batch)
    layers = find_layers(resident.model)
    start = 2 * len(layers) // 3
    keys = [0] * (len(layers) + 1)
    known, unknown, equal = Side(), Side(), True
    for number in range(3 + options.rounds):
        for at in range(start, len(layers)):
            _change(layers[at], number)
            keys[at + 1] = number
        if number < 3:  # the first two find out what stays, the third checks that it is exact
            harness.score(Role.SEARCH, tuple(keys))
            continue
        _measure(known, lambda: _ours(harness, tuple(keys)))
        _measure(unknown, lambda: _ours(harness))
        equal = equal and known.values == unknown.values
    return (
        f"\nOnly layers {start} to {len(layers) - 1} of {len(layers)} vary ({case.what}): "
        f"{unknown.seconds:.3f} s for all layers, {known.seconds:.3f} s for those "
        f"({unknown.seconds / known.seconds:.2f}x); scores {'equal' if equal else 'DIFFER'}"
    )


def _row(case: Case, tasks: Path, resident: Resident, options: argparse.Namespace) -> str:
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    lm = HFLM(
        pretrained=resident.model,
        tokenizer=resident.tokenizer,
        batch_size=options.batch,
        softmax_dtype="float32",
    )
    start = time.process_time()
    harness = _harness(case, tasks, resident, options.batch)
    harness.score(Role.SEARCH)  # the plan is laid out, and compared with lm-eval's way
    once = time.process_time() - start
    theirs, ours = Side(), Side()
    for number in range(options.rounds):
        _change(resident.model, number)
        _measure(ours, lambda: _ours(harness))
        once -= ours.seconds if number == 0 else 0
        if not options.ours:
            _measure(theirs, lambda: _simple(lm, manager, case.name))
    if options.ours:
        return (
            f"| {case.what} | | {ours.seconds:.3f} | | | | {ours.peak / 1e6:.0f} | {once:.2f} | |"
        )
    return (
        f"| {case.what} | {theirs.seconds:.3f} | {ours.seconds:.3f} "
        f"| {theirs.seconds / ours.seconds:.1f}x | {case.wanted:g}x | {theirs.peak / 1e6:.0f} "
        f"| {ours.peak / 1e6:.0f} | {once:.2f} | {_equal(case, ours.values, theirs.values)} |"
    )


def _harness(case: Case, tasks: Path, resident: Resident, batch: int) -> Harness:
    mistakes: list[str] = []
    opened = open_tasks(
        [TaskRequest(case.name)],
        Counts(None, 0, 0),
        0,
        [tasks],
        lambda _, text: mistakes.append(text),
    )
    assert not mistakes, mistakes
    return Harness(resident, opened, (Role.SEARCH,), Settings(batch_size=batch))


def _ours(harness: Harness, keys: Keys | None = None) -> dict[str, list[Any]]:
    """Responses by question."""
    harness.score(Role.SEARCH, keys)
    items = harness.benchmarks[0].items[Role.SEARCH]
    return {item.document["question"]: [r.resps[0] for r in item.requests] for item in items}


def _simple(lm: HFLM, manager: TaskManager, name: str) -> dict[str, list[Any]]:
    found = lm_eval.simple_evaluate(
        lm, tasks=[name], task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    return {
        sample["doc"]["question"]: [response[0] for response in sample["resps"]]
        for sample in found["samples"][name]
    }


def _equal(case: Case, ours: dict[str, list[Any]], theirs: dict[str, list[Any]]) -> str:
    """Largest difference of a log-likelihood, or whether the strings are equal."""
    if case.shots and not case.fixed:
        return "other shots"
    pairs = [pair for key in theirs for pair in zip(ours[key], theirs[key], strict=True)]
    if case.output == "generate_until":
        return f"{sum(one == other for one, other in pairs)} of {len(pairs)}"
    if case.output == "multiple_choice":
        assert all(one[1] == other[1] for one, other in pairs), "greedy flags differ"
        pairs = [(one[0], other[0]) for one, other in pairs]
    return f"{max(abs(float(one) - float(other)) for one, other in pairs):.0e}"


def _measure(side: Side, work: Callable[[], Any]) -> None:
    before = _reset_peak()
    start = time.process_time()
    side.values = work()
    side.seconds = min(side.seconds, time.process_time() - start)
    side.peak = max(side.peak, _status("VmHWM") - before)


def _reset_peak() -> int:
    """Give free memory back and have Linux forget the peak so far; returns bytes in use."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


@torch.no_grad()
def _change(model: torch.nn.Module, number: int) -> None:
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(1.01 if number % 2 else 1 / 1.01)


def _model(model: Path | None, tokenizer: Path) -> tuple[Any, Any]:
    speaker = AutoTokenizer.from_pretrained(tokenizer)
    if model is not None:
        return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval(), speaker
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=len(speaker),
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(config).eval(), speaker


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of SmolLM2-135M")
    parser.add_argument("--model", type=Path, help="its folder again; a tiny Llama without")
    parser.add_argument("--items", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    names = [case.name for case in CASES]
    parser.add_argument("--upper", choices=names, default="phrases_header")
    parser.add_argument("--ours", action="store_true", help="without lm-eval's side")
    parser.add_argument("--cases", nargs="*", choices=names)
    return parser.parse_args()


if __name__ == "__main__":
    main()
