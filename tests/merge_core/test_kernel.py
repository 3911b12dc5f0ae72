"""Compiled loops and plain torch: one semantics, over dtypes, sizes, threads and batches."""

import ctypes
import itertools
import mmap
import sys
from dataclasses import replace

import pytest
import torch
from reference_merges import Memory, fast_merge
from tiny_models import write_family

from merge_core import backends, fused
from merge_core.apply import Workbench, apply, apply_all, run_steps
from merge_core.checkpoint import open_checkpoint
from merge_core.geometry import Geometry, TensorRef
from merge_core.parents import Parents
from merge_core.plan import MergeStep, compile_plan
from merge_core.recipe import from_dict

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
CASES = {
    "linear": ("linear", {}),
    "linear with one left out": ("linear", {"weight": (0.0, 0.5, 0.3, 0.2, 0.1)}),
    "task_arithmetic": ("task_arithmetic", {"lambda_": 0.7}),
    "task_arithmetic, normalized": ("task_arithmetic", {"normalize": True}),
    "ties": ("ties", {"density": (0.3, 0.6, 0.05, 0.9, 0.5)}),
    "ties, plain sums": ("ties", {"density": 0.4, "normalize": False, "rescale": True}),
    "ties, one left out": ("ties", {"weight": (0.0, 0.5, 0.3, 0.2, 0.1), "density": 0.5}),
    "breadcrumbs": ("breadcrumbs", {"density": 0.5, "gamma": 0.1}),
    "breadcrumbs_ties": ("breadcrumbs_ties", {"density": 0.5, "gamma": 0.1}),
    "dare_linear": ("dare_linear", {"density": (0.3, 0.5, 0.9, 1.0, 0.2)}),
    "dare_ties": ("dare_ties", {"density": 0.4, "normalize": True}),
    "dare_ties, first left out": (
        "dare_ties",
        {"weight": (0.0, 0.5, 0.3, 0.2, 0.1), "density": 0.4},
    ),
    "della": ("della", {"density": 0.5, "epsilon": 0.2}),
    "della_linear": ("della_linear", {"density": 0.5}),
}


def with_loops(monkeypatch, kind):
    monkeypatch.setenv("OUTCROSS_LOOPS", kind)
    backends.native_loops.cache_clear()


@pytest.fixture(autouse=True)
def loops_as_they_were():
    yield
    backends.native_loops.cache_clear()


@pytest.fixture
def uncompiled(monkeypatch):
    """An accelerator's loops as they are before torch.compile."""
    monkeypatch.setattr(backends, "_compiles", lambda _device: True)
    monkeypatch.setattr(fused, "_compiled", lambda piece: piece)


def family_of_tensors(count, size, dtype):
    """Fine-tunes as they are: a third of the magnitudes are tied in 16 bits."""
    generator = torch.Generator().manual_seed(size + count)
    base = torch.randn(size, generator=generator) * 0.02
    parents = [
        (base + 2e-4 * torch.randn(size, generator=generator)).to(dtype) for _ in range(count)
    ]
    return parents, base.to(dtype)


def assert_agreement(kind, case, dtype, sizes, monkeypatch):
    """A kind of loops gives what plain ones give."""
    method, params = CASES[case]
    for count, size in itertools.product((1, 2, 3, 5), sizes):
        parents, base = family_of_tensors(count, size, dtype)
        given = {"weight": (0.4, 0.7, 0.3, 0.5, 0.2)} | params
        given = {k: v[:count] if isinstance(v, tuple) else v for k, v in given.items()}
        if method == "linear" and sum(given["weight"]) == 0:
            continue
        for out in {torch.float32, dtype}:
            merged = []
            for loops in (kind, "plain"):
                with_loops(monkeypatch, loops)
                merged.append(fast_merge(method, parents, base, out_dtype=out, **given))
            rtol = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}[out]
            message = f"{count} of {size} to {out}"
            torch.testing.assert_close(*merged, rtol=rtol, atol=2e-8, msg=message)
            if out == torch.bfloat16:  # sums near the middle of two numbers may round either way
                assert (merged[0] != merged[1]).float().mean() < 0.01


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_both_kinds_of_loops_agree(case, dtype, monkeypatch):
    assert_agreement("auto", case, dtype, (1, 1023, 1024, 70_001), monkeypatch)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_an_accelerators_loops_agree_too(case, dtype, monkeypatch):
    assert_agreement("fused", case, dtype, (1, 70_001), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_an_accelerators_loops_agree_when_compiled(case, monkeypatch):
    assert_agreement("fused", case, torch.bfloat16, (1, 70_001), monkeypatch)


@pytest.mark.slow
def test_a_new_candidate_compiles_nothing(monkeypatch):
    with_loops(monkeypatch, "fused")
    parents, base = family_of_tensors(3, 70_001, torch.bfloat16)
    for density in (0.3, 0.4, 0.6):
        fast_merge("ties", parents, base, weight=(0.4, density, 0.3), density=density)
    with torch.compiler.set_stance("fail_on_recompile"):
        for density in (0.35, 0.7, 0.9):
            fast_merge("ties", parents, base, weight=(0.4, density, 0.3), density=density)


@pytest.mark.parametrize("case", ["linear", "ties", "dare_ties", "della"])
def test_parents_of_different_dtypes_meet_in_float32(case, monkeypatch):
    method, params = CASES[case]
    parents, base = family_of_tensors(3, 1000, torch.float32)
    parents = [parent.to(dtype) for parent, dtype in zip(parents, DTYPES, strict=True)]
    merged = []
    for kind in ("auto", "plain"):
        with_loops(monkeypatch, kind)
        given = {"weight": 0.5} | {k: v for k, v in params.items() if not isinstance(v, tuple)}
        merged.append(fast_merge(method, parents, base, **given))
    torch.testing.assert_close(*merged, rtol=2e-6, atol=2e-8)


@pytest.mark.parametrize("case", ["linear", "task_arithmetic", "ties", "dare_ties"])
def test_threads_give_the_same_bits(case):
    method, params = CASES[case]
    parents, base = family_of_tensors(3, 1_000_003, torch.bfloat16)
    given = {k: v[:3] if isinstance(v, tuple) else v for k, v in params.items()}
    merged, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = torch.bfloat16
            merged.append(
                fast_merge(method, parents, base, weight=(0.4, 0.7, 0.3), out_dtype=out, **given)
            )
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(merged[0], other) for other in merged[1:])


@pytest.mark.parametrize("size", [1, 31, 512, 513, 2100])
def test_an_output_that_lies_anywhere_in_memory_is_written_whole(size):
    """Stores past the cache need aligned targets; others are written plainly."""
    parents, _ = family_of_tensors(2, size, torch.bfloat16)
    step = MergeStep(
        "t", (size,), torch.bfloat16, "linear", (TensorRef("0", "t"), TensorRef("1", "t")), None,
        (("weight", (1.0, 0.0)), ("normalize", True)), None, 0,
    )  # fmt: skip
    memory = Memory({"0": parents[0], "1": parents[1]})
    for offset in (0, 1, 32, 33):
        around = torch.full((size + 100,), 7.0, dtype=torch.bfloat16)
        run_steps([(step, around[offset : offset + size])], Geometry(memory))
        assert torch.equal(around[offset : offset + size], parents[0])
        assert (around[:offset] == 7).all()
        assert (around[offset + size :] == 7).all()


def at_the_end_of_a_page(tensor):
    """A copy behind which nothing may be read or written."""
    page = mmap.PAGESIZE
    pages = -(-tensor.nbytes // page)
    memory = mmap.mmap(-1, (pages + 1) * page)
    start = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    libc = ctypes.CDLL(None, use_errno=True)
    guard = ctypes.c_void_p(start + pages * page)
    assert libc.mprotect(guard, ctypes.c_size_t(page), 0) == 0
    place = pages * page - tensor.nbytes
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=place)
    return copy.copy_(tensor)


@pytest.mark.skipif(sys.platform == "win32", reason="needs guarded pages")
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_nothing_is_read_behind_a_tensors_end(case, count, monkeypatch):
    """Loops take two elements at a time; an odd one out may be the last of a mapped file."""
    method, params = CASES[case]
    given = {"weight": (0.4, 0.7, 0.3, 0.5, 0.2)} | params
    given = {k: v[:count] if isinstance(v, tuple) else v for k, v in given.items()}
    for size in (1, 2047, 2048):
        parents, base = family_of_tensors(count, size, torch.bfloat16)
        if method == "linear" and sum(given["weight"]) == 0:
            continue
        with_loops(monkeypatch, "auto")
        loose = fast_merge(method, parents, base, out_dtype=torch.bfloat16, **given)
        ended, root = (
            [at_the_end_of_a_page(parent) for parent in parents],
            at_the_end_of_a_page(base),
        )
        merged = fast_merge(method, ended, root, out_dtype=torch.bfloat16, **given)
        assert torch.equal(merged, loose)


# Live models.


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    folder = write_family(tmp_path_factory.mktemp("family"), "llama", experts=2)
    names = ("base", "a", "b")
    return Parents(
        {name: open_checkpoint(folder / name, name) for name in names}, torch.device("cpu")
    )


def bench_for(parents, plan, geometry=None):
    slots = {
        step.out: torch.nn.Parameter(torch.zeros(step.shape, dtype=step.dtype))
        for step in plan.steps
    }
    bench = Workbench(parents, slots)
    bench.geometry = geometry or bench.geometry
    return bench


def plan_of(parents, method, **params):
    recipe = {"merge_method": method, "models": ["a", "b"], "parameters": params}
    if method != "linear":
        recipe["base_model"] = "base"
    return compile_plan(from_dict(recipe), parents.checkpoints)


FRANKEN = {
    "merge_method": "passthrough",
    "slices": [
        {"sources": [{"model": "a", "layer_range": [0, 2]}]},
        {"sources": [{"model": "b", "layer_range": [2, 3]}]},
    ],
}


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_ties"])
def test_several_candidates_in_one_pass_are_what_each_is_alone(method, parents):
    plans = [plan_of(parents, method, weight=0.2 + 0.1 * i) for i in range(4)]
    alone = [bench_for(parents, plan) for plan in plans]
    for plan, bench in zip(plans, alone, strict=True):
        apply(plan, bench)
    geometry = alone[0].geometry
    together = [bench_for(parents, plan, geometry) for plan in plans]
    apply_all(list(zip(plans, together, strict=True)))
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(one.slots[name], other.slots[name]) for name in one.slots)


def test_candidates_of_one_pass_keep_their_factors(parents):
    """Four that are the same but for what multiplies them are read for together."""
    plan = plan_of(parents, "linear", weight=0.4)
    factors = (1.0, 0.7, 0.9, 1.3)
    plans = [
        replace(plan, steps=tuple(step._replace(scale=factor) for step in plan.steps))
        for factor in factors
    ]
    geometry = bench_for(parents, plan).geometry
    benches = [bench_for(parents, plan, geometry) for plan in plans]
    apply_all(list(zip(plans, benches, strict=True)))
    for factor, bench in zip(factors, benches, strict=True):
        for name, slot in bench.slots.items():
            plain = (benches[0].slots[name].detach().float() * factor).to(slot.dtype)
            assert torch.equal(slot, plain)


@pytest.mark.parametrize("sources", [2, 3, 4, 5])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_several_weighted_sums_share_a_pass_and_keep_their_bits(method, sources):
    """Five candidates: four that are read for together, and one that is left."""
    size = 70_001
    tensors, root = family_of_tensors(sources, size, torch.bfloat16)
    memory = Memory({str(i): tensor for i, tensor in enumerate(tensors)} | {"base": root})
    refs = tuple(TensorRef(str(i), "t") for i in range(sources))
    base = TensorRef("base", "t") if method == "task_arithmetic" else None

    def step(candidate):
        weights = tuple(0.1 + 0.05 * candidate + 0.1 * i for i in range(sources))
        params = (("weight", weights), ("normalize", True))
        return MergeStep("t", (size,), torch.bfloat16, method, refs, base, params, None, 0)

    alone, together = ([torch.empty(size, dtype=torch.bfloat16) for _ in range(5)] for _ in "12")
    for candidate in range(5):
        run_steps([(step(candidate), alone[candidate])], Geometry(memory))
    run_steps([(step(i), together[i]) for i in range(5)], Geometry(memory))
    assert all(map(torch.equal, alone, together))


def test_candidates_of_other_bases_do_not_share_a_pass():
    tensors, root = family_of_tensors(2, 5000, torch.bfloat16)
    roots = {f"base {i}": root + 0.01 * i for i in range(4)}
    memory = Memory({"0": tensors[0], "1": tensors[1]} | roots)
    refs = (TensorRef("0", "t"), TensorRef("1", "t"))
    params = (("weight", (0.3, 0.6)),)
    steps = [
        MergeStep(
            "t", (5000,), torch.bfloat16, "task_arithmetic", refs, TensorRef(name, "t"), params,
            None, 0,
        )
        for name in roots
    ]  # fmt: skip
    merged = [torch.empty(5000, dtype=torch.bfloat16) for _ in roots]
    run_steps(list(zip(steps, merged, strict=True)), Geometry(memory))
    for start, got in zip(roots.values(), merged, strict=True):
        wanted = fast_merge(
            "task_arithmetic", tensors, start, out_dtype=torch.bfloat16, weight=(0.3, 0.6)
        )
        assert torch.equal(got, wanted)


def test_a_passed_through_tensor_is_lent_and_never_written_to(parents):
    franken = compile_plan(from_dict(FRANKEN), parents.checkpoints)
    bench = bench_for(parents, franken)
    own = {name: slot.data_ptr() for name, slot in bench.slots.items()}
    apply(franken, bench)
    for step in franken.steps:
        source = parents.tensor(step.inputs[0].parent, step.inputs[0].name)
        assert bench.slots[step.out].data_ptr() == source.data_ptr()
    before = {step.out: bench.slots[step.out].detach().clone() for step in franken.steps}
    apply(plan_of(parents, "linear", weight=0.5), bench)
    assert {name: slot.data_ptr() for name, slot in bench.slots.items()} == own
    apply(franken, bench)
    assert all(torch.equal(bench.slots[name], tensor) for name, tensor in before.items())


def test_a_scaled_passthrough_is_written(parents):
    scaled = compile_plan(from_dict(FRANKEN | {"parameters": {"scale": 0.5}}), parents.checkpoints)
    bench = bench_for(parents, scaled)
    apply(scaled, bench)
    step = scaled.steps[0]
    source = parents.tensor(step.inputs[0].parent, step.inputs[0].name)
    assert torch.equal(bench.slots[step.out], source * 0.5)


@pytest.mark.parametrize(
    ("method", "given", "kept"),
    [
        ("linear", {}, 1.0),
        ("task_arithmetic", {}, 1.0),
        ("ties", {"density": 0.5}, 1.0),
        ("breadcrumbs_ties", {"density": 0.5, "gamma": 0.1}, 1.0),
        ("dare_linear", {"density": 0.5, "rescaling": "density"}, 0.4),  # it drops some of them
    ],
)
def test_what_is_no_number_stays_so_whatever_its_pattern(method, given, kept):
    """The loops for bfloat16 round without looking for NaN: none of its patterns may become one."""
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    parents, base = family_of_tensors(3, 65536, torch.bfloat16)
    given = {"weight": (0.4, 0.7, 0.3), "out_dtype": torch.bfloat16} | given
    merged = fast_merge(method, [patterns, *parents[1:]], base, **given)
    assert merged[patterns.isnan()].isnan().float().mean() >= kept
    assert merged[patterns.isfinite()].isfinite().all()


@pytest.mark.parametrize("shape", [(1000, 33), (7, 1), (3, 0), (2, 4097)])
def test_row_ranks_are_those_of_a_stable_sort(shape):
    sizes = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16().float().abs()
    if sizes.numel() > 100:
        sizes[0, 5], sizes[1, 3], sizes[1, 7] = float("nan"), float("inf"), 0.0
    order = sizes.argsort(dim=1, stable=True)
    ranks = torch.empty(shape, dtype=torch.int32)
    backends.native().row_ranks(sizes.numpy(), ranks.numpy())
    places = torch.arange(shape[1]).expand_as(order)
    assert torch.equal(ranks.long(), torch.empty_like(order).scatter_(1, order, places))
