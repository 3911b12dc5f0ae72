"""Merging in place: what a trial leaves behind depends on its recipe alone."""

import itertools
from dataclasses import replace

import pytest
import torch
from reference_merges import Memory

from merge_core.apply import Workbench, apply, run_steps
from merge_core.checkpoint import open_checkpoint
from merge_core.errors import MergeError
from merge_core.geometry import Geometry, TensorRef
from merge_core.parents import Parents
from merge_core.plan import MergeStep, compile_plan
from merge_core.recipe import from_dict
from merge_core.registry import Base, find_method, merge_methods

METHODS = tuple(merge_methods())


@pytest.mark.parametrize("pair", itertools.permutations(METHODS, 2), ids="-after-".join)
def test_a_recipe_after_another_gives_what_it_gives_alone(parents, pair):
    plan, before = (compile_plan(recipe(name), parents.checkpoints) for name in pair)
    used, fresh = (bench_for(parents, plan) for _ in range(2))
    apply(before, used)
    assert_unlike(used, apply_and_return(plan, fresh))
    apply(plan, used)
    assert_same(used, fresh)


def test_the_way_back_leaves_no_drift(parents):
    plan, other = (
        compile_plan(recipe("ties", density=density), parents.checkpoints) for density in (0.3, 0.7)
    )
    used = bench_for(parents, plan)
    for step in [plan, other] * 5 + [plan]:
        apply(step, used)
    assert_same(used, apply_and_return(plan, bench_for(parents, plan)))


def test_the_parents_are_not_touched(parents):
    before = {
        (name, tensor): parents.tensor(name, tensor).clone()
        for name, opened in parents.checkpoints.items()
        for tensor in opened.tensors
    }
    for name in METHODS:
        plan = compile_plan(recipe(name), parents.checkpoints)
        apply(plan, bench_for(parents, plan))
    assert all(torch.equal(parents.tensor(*key), tensor) for key, tensor in before.items())


def test_equal_steps_are_kept_and_changed_ones_written(parents):
    filtered = [{"filter": "layers.1.mlp", "value": 0.9}, {"value": 0.5}]
    plan, changed = (
        compile_plan(recipe("slerp", t=t), parents.checkpoints) for t in (0.5, filtered)
    )
    bench = bench_for(parents, plan)
    total = len(plan.steps)
    hit = sum("layers.1.mlp" in step.out for step in plan.steps)
    assert (stats := apply(plan, bench)).seconds > 0
    assert (stats.written, stats.kept) == (total, 0)
    assert (stats := apply(changed, bench)).written == hit
    assert stats.kept == total - hit
    assert apply(changed, bench).written == 0
    assert_same(bench, apply_and_return(changed, bench_for(parents, changed)))


def test_kept_tensors_are_really_left_alone(parents):
    plan = compile_plan(recipe("linear"), parents.checkpoints)
    bench = bench_for(parents, plan)
    apply(plan, bench)
    bench.slots["model.norm.weight"].fill_(7.0)
    apply(plan, bench)
    assert (bench.slots["model.norm.weight"] == 7.0).all()


def test_another_seed_rewrites_random_merges(parents):
    bench = bench_for(parents, compile_plan(recipe("dare_ties"), parents.checkpoints))
    for seed in (0, 1):
        plan = compile_plan(recipe("dare_ties"), parents.checkpoints, seed)
        assert apply(plan, bench).written == len(plan.steps)


def test_a_tensor_without_a_slot_is_skipped(parents):
    plan = compile_plan(recipe("linear"), parents.checkpoints)
    bench = bench_for(parents, plan)
    del bench.slots["lm_head.weight"]
    stats = apply(plan, bench)
    assert stats.written == len(plan.steps) - 1
    assert stats.kept == 0


def test_slots_keep_their_dtype(parents):
    plan = compile_plan(recipe("linear"), parents.checkpoints)
    fine, coarse = bench_for(parents, plan), bench_for(parents, plan, torch.bfloat16)
    apply(plan, fine)
    apply(plan, coarse)
    for name, slot in coarse.slots.items():
        assert torch.equal(slot, fine.slots[name].bfloat16())


def test_a_merge_that_is_refused_leaves_the_slots_alone(parents):
    good = compile_plan(recipe("linear"), parents.checkpoints)
    *steps, last = compile_plan(recipe("linear", weight=0.2), parents.checkpoints).steps
    bad = replace(good, steps=(*steps, last._replace(method=None)))
    bench = bench_for(parents, good)
    apply(good, bench)
    with pytest.raises(MergeError, match="holds no floating-point numbers and differs between"):
        apply(bad, bench)
    assert_same(bench, apply_and_return(good, bench_for(parents, good)))
    apply(good, bench)
    assert_same(bench, apply_and_return(good, bench_for(parents, good)))


def test_a_slot_that_was_half_written_is_not_taken_for_done(parents, monkeypatch):
    good, other = (compile_plan(recipe("slerp", t=t), parents.checkpoints) for t in (0.3, 0.6))
    bench = bench_for(parents, good)
    apply(good, bench)

    def half(jobs):
        jobs[0].out.view(-1)[0] = 99.0
        raise MergeError("half way")

    with monkeypatch.context() as patch:
        patch.setattr("merge_core.apply.execute", half)
        with pytest.raises(MergeError, match="half way"):
            apply(other, bench)
    apply(good, bench)
    assert_same(bench, apply_and_return(good, bench_for(parents, good)))


def test_live_parameters_are_written_in_place(parents):
    plan = compile_plan(recipe("linear"), parents.checkpoints)
    live = {step.out: torch.nn.Parameter(torch.zeros(step.shape)) for step in plan.steps}
    places = {name: parameter.data_ptr() for name, parameter in live.items()}
    apply(plan, Workbench(parents, live))
    assert {name: parameter.data_ptr() for name, parameter in live.items()} == places
    assert all(parameter.detach().any() for parameter in live.values())


# Factors of what was merged.


@pytest.mark.parametrize("method", ["linear", "ties", "slerp", "passthrough"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_what_was_merged_is_rounded_multiplied_and_rounded_again(parents, method, dtype):
    """As a passthrough does that reads it back: by its own arithmetic, to the bit."""
    plan = compile_plan(recipe(method), parents.checkpoints)
    done = apply_and_return(plan, bench_for(parents, plan, dtype)).slots
    factors = {step.out: (1.0, 0.7, 1 / 3, -2.0, 0.0)[at % 5] for at, step in enumerate(plan.steps)}
    steps = [step._replace(scale=factors[step.out]) for step in plan.steps]
    found = {name: torch.full_like(slot, torch.nan) for name, slot in done.items()}
    run_steps([(step, found[step.out]) for step in steps], Geometry(parents))
    for name, tensor in found.items():
        memory, one = Memory({"m": done[name]}), (("scale", (factors[name],)),)
        again = step_of("passthrough", tensor.shape, dtype, ("m",), one)
        expected = torch.empty_like(tensor)
        run_steps([(again, expected)], Geometry(memory))
        assert torch.equal(tensor, expected), name
        if factors[name]:
            plain = (done[name].float() * factors[name]).to(dtype)
            assert torch.equal(tensor, plain), name


def test_a_factor_of_nothing_is_nothing_whatever_was_merged():
    """0 * inf would be NaN; passthrough leaves its source out too."""
    memory = Memory({"m": torch.tensor([torch.inf, -1.0])})
    out = torch.empty(2)
    step = step_of("linear", (2,), torch.float32, ("m",), (("weight", (1.0,)), ("normalize", True)))
    run_steps([(step._replace(scale=0.0), out)], Geometry(memory))
    assert out.tolist() == [0.0, 0.0]


def test_another_factor_rewrites_its_tensors_alone(parents):
    plans = [factored(parents, scale) for scale in (1.0, 0.7, 0.9, 1.0)]
    hit = sum("down_proj" in step.out for step in plans[0].steps)
    bench = bench_for(parents, plans[0], torch.bfloat16)
    assert [apply(plan, bench).written for plan in plans] == [len(plans[0].steps), hit, hit, hit]
    assert_same(bench, apply_and_return(plans[0], bench_for(parents, plans[0], torch.bfloat16)))
    assert plans[0].steps == plans[3].steps


def factored(parents, scale):
    sources = [{"model": name, "layer_range": [0, 3]} for name in ("a", "b")]
    part = {"sources": sources, "scale": {"filter": ".down_proj.", "value": scale}}
    data = {"merge_method": "linear", "slices": [part], "parameters": {"weight": 0.4}}
    return compile_plan(from_dict(data), parents.checkpoints)


def step_of(method, shape, dtype, models, params):
    refs = tuple(TensorRef(model, "t") for model in models)
    return MergeStep("t", tuple(shape), dtype, method, refs, None, params, None, 0)


# Buffers that are no weights.


def test_equal_buffers_are_copied():
    mask = torch.tensor([True, False])
    out = torch.zeros(2, dtype=torch.bool)
    run_steps([(buffer_step(), out)], Geometry(Memory({"a": mask, "b": mask.clone()})))
    assert torch.equal(out, mask)


def test_different_buffers_are_refused():
    memory = Memory({"a": torch.tensor([1, 2]), "b": torch.tensor([1, 3])})
    with pytest.raises(
        MergeError, match="tensor 'mask' holds no floating-point numbers and differs between a, b;"
    ):
        run_steps([(buffer_step(), torch.zeros(2, dtype=torch.int64))], Geometry(memory))


@pytest.fixture(scope="module")
def parents(family):
    folder = family("llama")
    opened = {name: open_checkpoint(folder / name, name) for name in ("base", "a", "b")}
    return Parents(opened, torch.device("cpu"))


def recipe(method, **parameters):
    """A plausible recipe of any method, from its own description."""
    found = find_method(method)
    given = {
        p.name: 0.6 * p.range.low + 0.4 * p.range.high for p in found.parameters if p.range
    } | parameters
    most = found.inputs[1] or 2
    models = ["a", "b"][: most - (found.base is Base.ENDPOINT)]
    base = {} if found.base is Base.INPUT else {"base_model": "base"}
    return from_dict({"merge_method": method, "models": models, "parameters": given} | base)


def bench_for(parents, plan, dtype=torch.float32):
    slots = {step.out: torch.full(step.shape, torch.nan, dtype=dtype) for step in plan.steps}
    return Workbench(parents, slots)


def apply_and_return(plan, bench):
    apply(plan, bench)
    return bench


def assert_same(one, other):
    for name, slot in one.slots.items():
        assert torch.equal(slot, other.slots[name]), name


def assert_unlike(one, other):
    assert any(not torch.equal(slot, other.slots[name]) for name, slot in one.slots.items())


def buffer_step():
    refs = (TensorRef("a", "mask"), TensorRef("b", "mask"))
    return MergeStep("mask", (2,), torch.bool, None, refs, None, (), None, 0)
