"""Merging a candidate in a search against the obvious twin of each method, in one run."""

import platform
import time
from collections.abc import Callable

import reference_merges as slow
import torch

from merge_core.apply import run_steps
from merge_core.geometry import Geometry, TensorRef
from merge_core.plan import MergeStep
from merge_core.registry import find_method

ROUNDS = 5
SHAPE = (2048, 2048)
TENSORS = 4


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}")
    print(f"{TENSORS} tensors of {SHAPE}, bfloat16, base and two fine-tunes; CPU seconds, best of")
    print(f"{ROUNDS}, sides taking turns\n")
    print(f"{'method':16} {'twin s':>8} {'ours s':>8} {'ratio':>7}")
    memory = _memory()
    for method, twin, densities in CASES:
        theirs, ours = _turns(memory, method, twin, densities)
        print(f"{method:16} {theirs:8.3f} {ours:8.3f} {theirs / ours:6.1f}x")


def _masks(density: float, parents: list[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.rand(x.shape) < density for x in parents]


CASES: list[tuple[str, Callable[..., torch.Tensor], tuple[float, ...]]] = [
    ("linear", lambda p, _b, _d: slow.linear(p, (0.4, 0.6)), (1.0,) * ROUNDS),
    ("slerp", lambda p, b, _d: slow.slerp([b, p[0]], 0.3), (1.0,) * ROUNDS),
    ("task_arithmetic", lambda p, b, _d: slow.task_arithmetic(p, b, (0.4, 0.6)), (1.0,) * ROUNDS),
    ("ties", lambda p, b, d: slow.ties(p, b, (0.4, 0.6), (d, d)), (0.2, 0.3, 0.4, 0.5, 0.6)),
    (
        "dare_linear",
        lambda p, b, d: slow.dare_linear(p, b, (0.4, 0.6), _masks(d, p)),
        (0.2, 0.3, 0.4, 0.5, 0.6),
    ),
    (
        "dare_ties",
        lambda p, b, d: slow.dare_ties(p, b, (0.4, 0.6), _masks(d, p)),
        (0.2, 0.3, 0.4, 0.5, 0.6),
    ),
]


class _Memory:
    """Stands in for `Parents`: tensors by parent and name."""

    device = torch.device("cpu")

    def __init__(self, tensors: dict[tuple[str, str], torch.Tensor]) -> None:
        self.tensors = tensors

    def tensor(self, parent: str, name: str) -> torch.Tensor:
        return self.tensors[parent, name]


def _memory() -> _Memory:
    torch.manual_seed(0)
    tensors: dict[tuple[str, str], torch.Tensor] = {}
    for number in range(TENSORS):
        base = torch.randn(SHAPE) * 0.02
        tensors["base", str(number)] = base.bfloat16()
        for parent in "ab":
            noise = 1.3e-3 * torch.randn(SHAPE)
            tensors[parent, str(number)] = (base + noise).bfloat16()
    return _Memory(tensors)


def _turns(
    memory: _Memory,
    method: str,
    twin: Callable[..., torch.Tensor],
    densities: tuple[float, ...],
) -> tuple[float, float]:
    geometry = Geometry(memory)  # type: ignore[arg-type]
    out = torch.empty(TENSORS, *SHAPE, dtype=torch.bfloat16)
    theirs: list[float] = []
    ours: list[float] = []
    _ours(geometry, method, 0.9, out)  # the geometry, once per study
    for density in densities:
        start = time.process_time()
        for number in map(str, range(TENSORS)):
            parents = [memory.tensor(p, number) for p in "ab"]
            out[int(number)].copy_(twin(parents, memory.tensor("base", number), density))
        middle = time.process_time()
        _ours(geometry, method, density, out)
        theirs.append(middle - start)
        ours.append(time.process_time() - middle)
    return min(theirs), min(ours)


def _ours(geometry: Geometry, method: str, density: float, out: torch.Tensor) -> None:
    given = {"weight": (0.4, 0.6), "density": (density, density), "t": 0.3}
    parameters = find_method(method).parameters
    params = tuple((p.name, given.get(p.name, p.default)) for p in parameters)
    steps = []
    for number in map(str, range(TENSORS)):
        names = ("base", "a") if method == "slerp" else ("a", "b")
        inputs = tuple(TensorRef(name, number) for name in names)
        base = None if method in ("linear", "slerp") else TensorRef("base", number)
        step = MergeStep(number, SHAPE, out[0].dtype, method, inputs, base, params, None, 0)
        steps.append((step, out[int(number)]))
    run_steps(steps, geometry)


if __name__ == "__main__":
    main()
