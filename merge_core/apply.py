"""The hot loop: plan + parents → a live model's parameters, in place, changed tensors only."""

import time
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field

import torch

from merge_core.errors import MergeError
from merge_core.geometry import Geometry, TensorGroup
from merge_core.kernel import Job, execute
from merge_core.packs import Loan, Pack, Packs
from merge_core.parents import Parents
from merge_core.plan import MergePlan, MergeStep
from merge_core.registry import find_method

_NARROW = (torch.float32, torch.float16, torch.bfloat16)  # torch multiplies them in float32


@dataclass(frozen=True, slots=True)
class MergeStats:
    """What one merge did.

    Attributes:
        seconds: Wall time.
        written: Tensors written.
        kept: Tensors that already held what the plan asks for.
    """

    seconds: float
    written: int
    kept: int


@dataclass(slots=True)
class Workbench:
    """Parents, their geometry and a live model's tensors, which `apply` overwrites.

    Attributes:
        parents: Where the inputs are.
        slots: The live tensors by output name; a plan's tensor without a slot is skipped (a head
            that shares its storage with the embeddings).
        packs: Live tensors that hold several slots.
        geometry: Figures that every trial shares.
        loans: What packs are lent at present.
        done: The step that made each slot's present content.
        lent: The own storage of slots that are a parent's tensor at present.
    """

    parents: Parents
    slots: MutableMapping[str, torch.Tensor]
    packs: Sequence[Pack] = ()
    geometry: Geometry = field(init=False)
    loans: Packs = field(init=False)
    done: dict[str, MergeStep] = field(default_factory=dict[str, MergeStep])
    lent: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])

    def __post_init__(self) -> None:
        """Tie the geometry to the parents, and the packs to the slots."""
        self.geometry = Geometry(self.parents)
        self.loans = Packs(self.packs, self.slots, self.done)

    def own(self, name: str) -> torch.Tensor:
        """A slot that may be written to: never a parent's own memory."""
        slot = self.slots[name]
        if name in self.lent:
            slot.data = self.lent.pop(name)
        return slot

    def lend(self, name: str, tensor: torch.Tensor) -> None:
        """Let a slot be a parent's tensor itself: no byte moves."""
        slot = self.slots[name]
        self.lent.setdefault(name, slot.data)
        slot.data = tensor

    def renew(self) -> None:
        """Trust no live tensor any more, because somebody else has written to some of them.

        What was lent is a parent's own memory, so the parents are made whole too.

        Raises:
            MergeError: If a parent's files can't be read again.
        """
        self.parents.heal()
        self.geometry.packed.clear()
        self.done.clear()


def apply(plan: MergePlan, bench: Workbench) -> MergeStats:
    """Make the live model be what the plan describes.

    Every write starts from the parents, so thousands of trials leave no drift, and a plan applied
    after another gives what it gives alone.

    Raises:
        MergeError: If a method refuses its numbers (weights that sum to zero), before anything is
            written.
    """
    return apply_all([(plan, bench)])[0]


def apply_all(work: Sequence[tuple[MergePlan, Workbench]]) -> list[MergeStats]:
    """Make several live models be what their plans describe, reading the parents once.

    Args:
        work: Plans with their benches; the benches share their geometry, not their slots.

    Raises:
        MergeError: As `apply`.
    """
    start = time.perf_counter()
    jobs: list[tuple[MergeStep, torch.Tensor]] = []
    lent: list[tuple[MergeStep, Workbench, torch.Tensor]] = []
    made: list[tuple[Workbench, list[MergeStep], int]] = []
    loans: list[Loan] = []
    for plan, bench in work:
        steps = [step for step in plan.steps if step.out in bench.slots]
        loans.append(bench.loans.plan(steps, bench.geometry))
        pending = [step for step in steps if bench.done.get(step.out) != step]
        jobs.extend(loans[-1].jobs)
        packed = loans[-1].names
        for step in pending:
            if step.out in packed:
                continue
            bench.done.pop(step.out, None)
            if (tensor := _lendable(step, bench)) is not None:
                lent.append((step, bench, tensor))
            else:
                jobs.append((step, bench.own(step.out)))
        made.append((bench, pending, len(steps) - len(pending)))
    try:
        run_steps(jobs, work[0][1].geometry)
    except BaseException:
        for loan, (_, bench) in zip(loans, work, strict=True):
            loan.drop(bench.geometry)
        raise
    for step, bench, tensor in lent:
        bench.lend(step.out, tensor)
    for loan in loans:
        loan.settle()
    for bench, pending, _ in made:
        bench.done.update([(step.out, step) for step in pending])
    seconds = time.perf_counter() - start
    return [MergeStats(seconds, len(pending), kept) for _, pending, kept in made]


def _lendable(step: MergeStep, bench: Workbench) -> torch.Tensor | None:
    """The parent's tensor that a slot may be itself where a step only passes it through."""
    if not step.copies or step.rounding is not None:
        return None
    slot = bench.slots[step.out]
    if not isinstance(slot, torch.nn.Parameter):
        return None  # a view into packed weights has to be written
    tensor = bench.parents.tensor(step.inputs[0].parent, step.inputs[0].name)
    fits = tensor.dtype == slot.dtype and tensor.device == slot.device and tensor.is_contiguous()
    return tensor if fits else None


@torch.inference_mode()
def run_steps(steps: Iterable[tuple[MergeStep, torch.Tensor]], geometry: Geometry) -> None:
    """Write output tensors: all methods decide first, then the kernels run.

    Args:
        steps: How each is made, and a contiguous tensor of its shape to write to.
        geometry: Gives the parents' tensors and their figures.

    Raises:
        MergeError: If a method refuses its numbers, or buffers that can't be merged differ between
            the parents.
    """
    jobs: list[Job] = []
    copies: list[tuple[torch.Tensor, torch.Tensor]] = []
    scaled: list[tuple[torch.Tensor, float]] = []
    for step, out in steps:
        if step.method is None:
            copies.append((out, _agreed(step, geometry)))
            continue
        if step.copies and (tensor := _wide(step, geometry)) is not None:
            copies.append((out, tensor))
            continue
        jobs.append(_job(step, geometry, out))
        if step.scale != 1.0:
            scaled.append((out, step.scale))
    for out, tensor in copies:
        out.copy_(tensor)
    execute(jobs)
    for out, scale in scaled:
        _multiply(out, scale)


def _multiply(out: torch.Tensor, scale: float) -> None:
    """What `passthrough` makes of a model that holds this: a float32 product, rounded once."""
    if scale == 0:
        out.zero_()  # 0 * inf
    elif out.dtype in _NARROW:
        out.mul_(scale)
    else:
        out.copy_(out.to(torch.float32).mul_(scale))


def _job(step: MergeStep, geometry: Geometry, out: torch.Tensor) -> Job:
    assert step.method is not None
    group = TensorGroup(
        step.out, step.inputs, step.base, step.rounding, step.seed, geometry, step.compat
    )
    keywords = {"lambda_" if name == "lambda" else name: value for name, value in step.params}
    return Job(find_method(step.method).combine(group, **keywords), group, out)


def _wide(step: MergeStep, geometry: Geometry) -> torch.Tensor | None:
    """The one input of a copy if it is float64, which arithmetic in float32 would round."""
    tensor = geometry.tensor(step.inputs[0])
    if tensor.dtype != torch.float64:
        return None
    return tensor if step.rounding is None else tensor.to(step.rounding)


def _agreed(step: MergeStep, geometry: Geometry) -> torch.Tensor:
    """What all parents hold, of a tensor that can't be merged."""
    first, *others = (geometry.parents.tensor(ref.parent, ref.name) for ref in step.inputs)
    if not all(torch.equal(first, other) for other in others):
        raise MergeError(
            f"tensor '{step.out}' holds no floating-point numbers and differs between "
            f"{', '.join(ref.parent for ref in step.inputs)}; it can't be merged; quantised "
            "weights have to be dequantised first"
        )
    return first
