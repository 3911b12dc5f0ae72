"""The hot loop: plan + parents → a live model's parameters, in place, changed tensors only."""

import time
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

import torch

from merge_core.errors import MergeError
from merge_core.geometry import Geometry, TensorGroup
from merge_core.kernel import Job, execute
from merge_core.parents import Parents
from merge_core.plan import MergePlan, MergeStep
from merge_core.registry import find_method

_Content = tuple[tuple[object, ...], ...]
_UNSCALED = (("scale", (1.0,)),)
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


@dataclass(frozen=True, slots=True)
class Pack:
    """A live tensor that holds several of a checkpoint's: all experts' matrices of a layer.

    Attributes:
        live: The whole.
        names: The slots that are views of it, in an order that is the same in every layer.
    """

    live: torch.Tensor
    names: tuple[str, ...]


@dataclass(slots=True)
class Workbench:
    """Parents, their geometry and a live model's tensors, which `apply` overwrites.

    Attributes:
        parents: Where the inputs are.
        slots: The live tensors by output name; a plan's tensor without a slot is skipped (a head
            that shares its storage with the embeddings).
        packs: Live tensors that hold several slots.
        geometry: Figures that every trial shares.
        done: The step that made each slot's present content.
        lent: The own storage of slots that are a parent's tensor at present.
    """

    parents: Parents
    slots: MutableMapping[str, torch.Tensor]
    packs: Sequence[Pack] = ()
    geometry: Geometry = field(init=False)
    done: dict[str, MergeStep] = field(default_factory=dict[str, MergeStep])
    lent: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])

    def __post_init__(self) -> None:
        """Tie the geometry to the parents."""
        self.geometry = Geometry(self.parents)

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
    for plan, bench in work:
        steps = [step for step in plan.steps if step.out in bench.slots]
        _exchange(steps, bench)
        pending = [step for step in steps if bench.done.get(step.out) != step]
        for step in pending:
            bench.done.pop(step.out, None)
            if (tensor := _lendable(step, bench)) is not None:
                lent.append((step, bench, tensor))
            else:
                jobs.append((step, bench.own(step.out)))
        made.append((bench, pending, len(steps) - len(pending)))
    run_steps(jobs, work[0][1].geometry)
    for step, bench, tensor in lent:
        bench.lend(step.out, tensor)
    for bench, pending, _ in made:
        bench.done.update([(step.out, step) for step in pending])
    seconds = time.perf_counter() - start
    return [MergeStats(seconds, len(pending), kept) for _, pending, kept in made]


def _exchange(steps: Sequence[MergeStep], bench: Workbench) -> None:
    """Have packed tensors change places where one holds what another is to be: no byte moves.

    A parent's tensors can't be lent to views into a pack, so this is how layers are moved.
    """
    asked = {step.out: step for step in steps} if bench.packs else {}
    wants = [_passed(pack, asked) for pack in bench.packs]
    has = [_passed(pack, bench.done) for pack in bench.packs]
    free = {held: at for at, held in enumerate(has) if held is not None and wants[at] != held}
    for at, want in enumerate(wants):
        if want is not None and has[at] != want and (other := free.pop(want, None)) is not None:
            held, has[at] = has[at], want
            has[other] = held
            _trade(bench, bench.packs[at], bench.packs[other], known=held is not None)
            bench.done.update((name, asked[name]) for name in bench.packs[at].names)
            if held is not None:
                free.pop(held, None)
                if wants[other] != held:
                    free[held] = other


def _trade(bench: Workbench, mine: Pack, theirs: Pack, *, known: bool) -> None:
    """Swap two packs' memory; `known`: mine is a parent's, so what is known of it goes along."""
    _swap(mine.live, theirs.live)
    for name, there in zip(mine.names, theirs.names, strict=True):
        _swap(bench.slots[name], bench.slots[there])
        bench.done.pop(there, None)
        if known:
            bench.done[there] = bench.done[name]._replace(out=there)


def _passed(pack: Pack, steps: Mapping[str, MergeStep]) -> _Content | None:
    """What a pack is of, if all of it is a parent's tensors as they are; wherever it stands."""
    made = [steps.get(name) for name in pack.names]
    if any(step is None or step.method != "passthrough" for step in made):
        return None
    return tuple((s.inputs, s.params, s.rounding, s.dtype, s.shape) for s in made if s is not None)


def _swap(one: torch.Tensor, other: torch.Tensor) -> None:
    one.data, other.data = other.data, one.data


def _lendable(step: MergeStep, bench: Workbench) -> torch.Tensor | None:
    """The parent's tensor that a slot may be itself where a step only passes it through."""
    if step.method != "passthrough" or step.params != _UNSCALED or step.rounding is not None:
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


def _agreed(step: MergeStep, geometry: Geometry) -> torch.Tensor:
    """What all parents hold, of a tensor that can't be merged."""
    first, *others = (geometry.parents.tensor(ref.parent, ref.name) for ref in step.inputs)
    if not all(torch.equal(first, other) for other in others):
        raise MergeError(
            f"tensor '{step.out}' holds no floating-point numbers and differs between "
            f"{', '.join(ref.parent for ref in step.inputs)}; it can't be merged"
        )
    return first
