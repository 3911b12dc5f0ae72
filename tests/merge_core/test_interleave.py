"""Layers in another order: what goes where, with which numbers, and as mergekit would write it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merge_core.apply import Workbench, apply
from merge_core.canonical import canonical
from merge_core.checkpoint import open_checkpoint
from merge_core.errors import RecipeError
from merge_core.export import write_model
from merge_core.interleave import Run, interleave
from merge_core.parents import Parents
from merge_core.plan import MergePlan, compile_plan
from merge_core.recipe import Parameters, Recipe, Setting, from_dict, to_dict
from merge_core.stages import read_stages
from merge_core.staging import documents

ALIASES = ("base", "a", "b")
DEPTHS = dict.fromkeys(ALIASES, 3)
Tensors = dict[str, torch.Tensor]
Merge = Callable[[Recipe], Tensors]


@pytest.fixture(scope="module")
def parents(family: Callable[[str], Path]) -> Parents:
    folder = family("llama")
    opened = {name: open_checkpoint(folder / name, name) for name in ALIASES}
    return Parents(opened, torch.device("cpu"))


@pytest.fixture(scope="module")
def merge(parents: Parents) -> Merge:
    def merged(recipe: Recipe) -> Tensors:
        plan = compile_plan(recipe, parents.checkpoints)
        slots = {step.out: torch.empty(step.shape, dtype=torch.float32) for step in plan.steps}
        apply(plan, Workbench(parents, slots))
        return slots

    return merged


def tiers(**more: Any) -> Recipe:
    """TIES with a gradient, a filter and a number for each layer."""
    weight = [{"filter": "mlp", "value": [0.1, 0.9]}, {"value": [0.3, 0.5, 0.7]}]
    models = [
        {"model": "a", "parameters": {"weight": weight, "density": 0.5}},
        {"model": "b", "parameters": {"weight": 0.4, "density": [0.2, 0.8]}},
    ]
    data = {"merge_method": "ties", "base_model": "base", "models": models}
    return from_dict(data | {"parameters": {"lambda": [0.8, 1.2]}} | more)


@pytest.fixture(scope="module")
def wholes(merge) -> dict[str | None, Tensors]:
    """The merge of all layers, and each parent."""
    copies = {name: {"merge_method": "passthrough", "models": [name]} for name in ALIASES}
    return {None: merge(tiers())} | {name: merge(from_dict(copy)) for name, copy in copies.items()}


def layer(tensors: Tensors, at: int) -> Tensors:
    """The tensors of one layer by what follows its number."""
    prefix = f"model.layers.{at}."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


RUNS = st.builds(
    lambda origin, start, length: Run(origin, start, min(start + length, 3)),
    st.sampled_from([None, "base", "a", "b"]),
    st.integers(0, 2),
    st.integers(1, 3),
)


@given(st.lists(RUNS, min_size=1, max_size=5))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_output_layer_is_the_one_that_its_run_names(merge, wholes, runs):
    """A merged layer is what the whole merge has there, to float32's rounding of its gradients."""
    found = merge(interleave(tiers(), runs, DEPTHS))
    wanted = [(run.origin, at) for run in runs for at in range(run.start, run.end)]
    assert f"model.layers.{len(wanted) - 1}.mlp.up_proj.weight" in found
    assert f"model.layers.{len(wanted)}.mlp.up_proj.weight" not in found
    for place, (origin, at) in enumerate(wanted):
        ours, theirs = layer(found, place), layer(wholes[origin], at)
        assert ours.keys() == theirs.keys()
        for rest, tensor in ours.items():
            if origin is None:
                torch.testing.assert_close(tensor, theirs[rest], rtol=0, atol=1e-6)
            else:
                assert torch.equal(tensor, theirs[rest]), rest


def factor(value: float, filter: str = ".down_proj.") -> Parameters:
    return (("scale", (Setting(filter, value),)),)


SCALED = st.builds(
    lambda run, value, filter: replace(run, parameters=factor(value, filter)),
    RUNS,
    st.sampled_from([1.0, 0.7, 1.3, 1 / 3]),
    st.sampled_from([".down_proj.", "attn", "o_proj"]),
)


@given(st.lists(SCALED | RUNS, min_size=1, max_size=4), st.sampled_from(["float32", "bfloat16"]))
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_scaled_runs_are_live_and_on_disk_what_is_read_back_and_multiplied(
    parents, live, tmp_path_factory, runs, dtype
):
    """To the bit, whatever the live tensors held before; copies are rounded once, merges twice."""
    plan = compile_plan(interleave(even(dtype), runs, DEPTHS), parents.checkpoints)
    slots = live(plan)
    folder = tmp_path_factory.mktemp("out") / "model"
    write_model(plan, parents, folder, files={})
    written = open_checkpoint(folder, "out")
    assert written.tensors.keys() == {step.out for step in plan.steps}
    wanted = reference(parents, runs, dtype)
    for name, tensor in merge_of({"out": written}).items():
        assert torch.equal(tensor, slots[name]), name
        assert torch.equal(tensor, wanted[name]), name


def even(dtype: str) -> Recipe:
    """TIES whose numbers depend on a tensor's kind only, so that cuts of runs round nothing."""
    weight = [{"filter": "mlp", "value": 0.6}, {"value": 0.3}]
    models = [{"model": m, "parameters": {"weight": weight, "density": 0.5}} for m in "ab"]
    return tiers(models=models, parameters={"lambda": 0.9}, dtype="float32", out_dtype=dtype)


@pytest.fixture(scope="module")
def live(parents: Parents) -> Callable[[MergePlan], Tensors]:
    """Tensors that one plan after another is applied to, for each dtype."""
    deepest = interleave(tiers(dtype="float32"), [Run(None, 0, 3)] * 4, DEPTHS)
    steps = compile_plan(deepest, parents.checkpoints).steps
    benches = {
        dtype: Workbench(parents, {step.out: hollow(step.shape, dtype) for step in steps})
        for dtype in (torch.float32, torch.bfloat16)
    }

    def applied(plan: MergePlan) -> Tensors:
        bench = benches[plan.steps[0].dtype]
        apply(plan, bench)
        return {step.out: bench.slots[step.out].detach() for step in plan.steps}

    return applied


def hollow(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.nn.Parameter(torch.full(shape, torch.nan, dtype=dtype), requires_grad=False)


def reference(parents: Parents, runs: list[Run], dtype: str) -> Tensors:
    """The same order of layers without scales, multiplied tensor by tensor."""
    bare = [replace(run, parameters=()) for run in runs]
    plan = compile_plan(interleave(even(dtype), bare, DEPTHS), parents.checkpoints)
    fine, made = (
        {step.out: torch.empty(step.shape, dtype=kind) for step in plan.steps}
        for kind in (torch.float32, getattr(torch, dtype))
    )
    for slots in (fine, made):
        apply(plan, Workbench(parents, slots))
    each = [run for run in runs for _ in range(run.length)]
    for at, run in enumerate(each):
        for setting in dict(run.parameters).get("scale", ()):
            for name, tensor in made.items():
                if f"layers.{at}." in name and str(setting.filter) in name:
                    stored = fine[name] if run.origin else tensor.float()
                    made[name] = (stored * setting.value).to(tensor.dtype)
    return made


@given(st.lists(RUNS, min_size=1, max_size=4))
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_scale_of_one_is_none(parents, runs):
    """The same steps, and the same recipe to the search."""
    ones = [replace(run, parameters=factor(1.0)) for run in runs]
    pair = [interleave(tiers(), some, DEPTHS) for some in (runs, ones)]
    plans = [compile_plan(recipe, parents.checkpoints) for recipe in pair]
    assert plans[0].steps == plans[1].steps
    assert canonical(pair[0], 3).fingerprint == canonical(pair[1], 3).fingerprint


def test_a_copied_slice_says_its_scale_as_a_parameter(parents):
    part = {"sources": [{"model": "a", "layer_range": [0, 3]}], "scale": 0.5}
    for recipe in (
        {"merge_method": "passthrough", "slices": [part]},
        {"merge_method": "linear", "slices": [part | {"merge_method": "passthrough"}]},
    ):
        with pytest.raises(RecipeError, match=r"slices\[0\].scale: .*'parameters: {scale: ...}'"):
            compile_plan(from_dict(recipe), parents.checkpoints)


def test_the_whole_merge_and_a_whole_parent_are_written_plainly():
    recipe = tiers()
    assert interleave(recipe, [Run(None, 0, 2), Run(None, 2, 3)], DEPTHS) == recipe
    alone = interleave(recipe, [Run("a", 0, 1), Run("a", 1, 3)], DEPTHS)
    assert to_dict(alone) == {"merge_method": "passthrough", "models": [{"model": "a"}]}


def test_tensors_outside_the_layers_follow_the_first_and_last_run(merge):
    """Runs of no layers say it for them alone."""
    runs = [Run("b", 0, 0), Run("a", 0, 3), Run(None, 3, 3)]
    found = merge(interleave(tiers(), runs, DEPTHS))
    of_b = merge(from_dict({"merge_method": "passthrough", "models": ["b"]}))
    whole = merge(tiers())
    assert torch.equal(found["model.embed_tokens.weight"], of_b["model.embed_tokens.weight"])
    torch.testing.assert_close(found["lm_head.weight"], whole["lm_head.weight"])
    assert not torch.equal(found["lm_head.weight"], of_b["lm_head.weight"])


def test_a_slice_may_have_a_method_of_its_own():
    recipe = interleave(tiers(), [Run("a", 0, 1), Run(None, 1, 3)], DEPTHS)
    assert recipe.methods == ("passthrough", "ties")
    assert from_dict(to_dict(recipe)) == recipe


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"merge_method": "tiesx"}, "'tiesx'"),
        ({"parameters": {"density": 0.5}}, "'passthrough' has no parameter 'density'"),
        ({"merge_method": "ties"}, "ties"),
    ],
)
def test_what_a_slice_says_must_fit_its_own_method(parents, change, told):
    part = {"sources": [{"model": "a", "layer_range": [0, 3]}], "merge_method": "passthrough"}
    data = {"merge_method": "linear", "slices": [part | change], "dtype": "float32"}
    with pytest.raises(RecipeError, match=told):
        compile_plan(from_dict(data), parents.checkpoints)


def test_a_parameter_for_all_slices_must_be_of_one_of_their_methods(parents):
    recipe = interleave(tiers(), [Run("a", 0, 1), Run(None, 1, 3)], DEPTHS)
    compile_plan(recipe, parents.checkpoints)
    data = to_dict(recipe)
    data["parameters"]["weigth"] = 1.0
    with pytest.raises(RecipeError, match="'passthrough or ties' has no parameter 'weigth'"):
        compile_plan(from_dict(data), parents.checkpoints)


def test_the_same_layers_have_one_fingerprint(merge):
    """However runs are cut, and whether a parent is copied or gets all of the weight."""
    linear = from_dict(
        {
            "merge_method": "linear",
            "models": [
                {"model": "a", "parameters": {"weight": 1.0}},
                {"model": "b", "parameters": {"weight": 0.0}},
            ],
        }
    )
    ways = [
        interleave(linear, [Run("a", 0, 2), Run("b", 1, 3)], DEPTHS),
        interleave(
            linear, [Run("a", 0, 1), Run(None, 1, 2), Run("b", 1, 2), Run("b", 2, 3)], DEPTHS
        ),
        interleave(linear, [Run(None, 0, 2), Run("b", 1, 3)], DEPTHS),
    ]
    assert len({canonical(way, 3).fingerprint for way in ways}) == 1
    first, *others = map(merge, ways)
    for other in others:
        assert all(torch.equal(tensor, other[name]) for name, tensor in first.items())
    unlike = interleave(linear, [Run("a", 0, 2), Run("b", 0, 2)], DEPTHS)
    assert canonical(unlike, 3).fingerprint != canonical(ways[0], 3).fingerprint


@pytest.mark.parametrize(
    "runs",
    [
        [Run("a", 0, 2), Run(None, 0, 2), Run("b", 2, 3), Run(None, 2, 3)],
        [Run(None, 0, 0), Run("a", 0, 3), Run("b", 0, 3), Run(None, 3, 3)],
        [Run(None, 1, 3)],
        [Run(None, 0, 3, factor(0.7))],
        [Run("a", 0, 2, factor(0.9)), Run(None, 0, 2), Run(None, 1, 3, factor(1 / 3, "proj"))],
        [Run(None, 0, 0, factor(0.5, "embed")), Run("a", 0, 3), Run(None, 3, 3, factor(0.7, ""))],
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stages_make_the_same_model(runs, dtype, parents, tmp_path):
    """What mergekit can read merges to the same tensors as the recipe itself."""
    recipe = interleave(tiers(dtype="float32", out_dtype=dtype), runs, DEPTHS)
    write_model(compile_plan(recipe, parents.checkpoints), parents, tmp_path / "direct", files={})
    direct = merge_of({"out": open_checkpoint(tmp_path / "direct", "out")})
    texts = documents(recipe, DEPTHS)
    parts = [part for text in texts for part in text.get("slices", ())]
    assert not any({"merge_method", "scale"} & part.keys() for part in parts)
    scaled = any(run.parameters for run in runs)
    assert len(texts) == 2 if scaled or any(run.origin for run in runs) else 1
    opened = dict(parents.checkpoints)
    for stage in read_stages(texts):
        plan = compile_plan(stage.recipe, opened)
        folder = tmp_path / (stage.name or "out")
        write_model(plan, Parents(opened, torch.device("cpu")), folder)
        opened[stage.name or "out"] = open_checkpoint(folder, stage.name or "out")
    result = merge_of(opened)
    assert result.keys() == direct.keys()
    assert all(torch.equal(tensor, direct[name]) for name, tensor in result.items())


def merge_of(opened: dict[str, Any]) -> Tensors:
    parents = Parents({"out": opened["out"]}, torch.device("cpu"))
    return {name: parents.tensor("out", name) for name in opened["out"].tensors}
