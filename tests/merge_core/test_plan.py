"""Recipe + parents → plan: which value each tensor gets, which inputs, and every refusal."""

import json
from dataclasses import replace

import pytest
import torch
from headers import LAYER, OUTER, checkpoint, linear, ranged, values

from merge_core.checkpoint import TensorSpec
from merge_core.errors import NumbersError, RecipeError
from merge_core.geometry import TensorRef
from merge_core.plan import compile_plan, describe
from merge_core.recipe import Setting, from_dict
from merge_core.registry import find_method
from merge_core.values import resolve

ATTENTION = "layers.{}.attn.weight"


# Values: precedence, filters, gradients.


@pytest.mark.parametrize(
    ("source", "part", "recipe", "expected"),
    [
        ({"density": 0.1}, {"density": 0.2}, {"density": 0.3}, 0.1),
        ({}, {"density": 0.2}, {"density": 0.3}, 0.2),
        ({}, {}, {"density": 0.3}, 0.3),
        ({}, {}, {}, 1.0),
        ({"density": {"value": 0.1, "filter": "nowhere"}}, {"density": 0.2}, {}, 0.2),
        ({"density": {"value": 0.1, "filter": "attn"}}, {"density": 0.2}, {}, 0.1),
        ({}, {"density": {"value": 0.2, "filter": "mlp"}}, {"density": 0.3}, 0.3),
        ({"density": [0, 1]}, {"density": 0.2}, {}, 0.0),
    ],
)
def test_source_before_slice_before_recipe_before_default(source, part, recipe, expected):
    plan = compiled(
        {
            "merge_method": "ties",
            "base_model": "base",
            "slices": [
                {
                    "sources": [
                        {"model": "base", "layer_range": [0, 4]},
                        {"model": "a", "layer_range": [0, 4], "parameters": source},
                    ],
                    "parameters": part,
                }
            ],
            "parameters": {"weight": 1.0} | recipe,
        }
    )
    assert values(plan, "density")[ATTENTION.format(0)] == (expected,)


@pytest.mark.parametrize(
    ("part", "recipe", "expected"),
    [({"t": 0.2}, {"t": 0.3}, 0.2), ({}, {"t": 0.3}, 0.3), ({"t": [0, 1]}, {}, 2 / 3)],
)
def test_shared_parameters_skip_the_sources(part, recipe, expected):
    plan = compiled(
        {
            "merge_method": "slerp",
            "base_model": "base",
            "slices": [{"sources": ranged(base=[0, 4], a=[0, 4]), "parameters": part}],
            "parameters": recipe,
        }
    )
    assert values(plan, "t")[ATTENTION.format(2)] == pytest.approx(expected)


def test_the_first_filter_that_is_part_of_the_name_wins():
    plan = slerp(
        [
            {"filter": "layers.1", "value": 0.1},
            {"filter": "attn", "value": 0.2},
            {"filter": "ATTN", "value": 0.9},
            {"filter": "layers.2.mlp", "value": 0.3},
            {"value": 0.4},
            {"filter": "norm", "value": 0.9},
        ]
    )
    assert values(plan, "t") == {
        "embed_tokens.weight": 0.4,
        "norm.weight": 0.4,
        "lm_head.weight": 0.4,
        **{f"layers.{i}.attn.weight": 0.1 if i == 1 else 0.2 for i in range(4)},
        **{
            f"layers.{i}.mlp.{part}.weight": {1: 0.1, 2: 0.3}.get(i, 0.4)
            for i in range(4)
            for part in ("up", "down")
        },
    }


def test_a_filter_is_a_substring_so_layer_1_hits_layer_10():
    plan = slerp([{"filter": "layers.1", "value": 1.0}, {"value": 0.0}], layers=12)
    hit = {name.split(".")[1] for name, t in values(plan, "t").items() if t == 1}
    assert hit == {"1", "10", "11"}


@pytest.mark.parametrize(
    ("gradient", "expected"),
    [
        ([0, 1], [0, 1 / 3, 2 / 3, 1]),
        ([1, 0, 1], [1, 1 / 3, 1 / 3, 1]),
        ([0.2, 0.4, 0.6, 0.8], [0.2, 0.4, 0.6, 0.8]),
        ([0, 0.3, 0.6, 0.9, 1.2], [0, 0.4, 0.8, 1.2]),
        ([0.7], [0.7] * 4),
        (0.7, [0.7] * 4),
    ],
)
def test_a_gradient_is_interpolated_over_depth(gradient, expected):
    found = values(slerp(gradient), "t")
    assert [found[ATTENTION.format(i)] for i in range(4)] == pytest.approx(expected)
    for outer in OUTER:  # embeddings, norm and head alike take the first value
        assert found[outer] == pytest.approx(expected[0])


def test_a_gradient_of_booleans_is_picked():
    plan = compiled(linear() | {"parameters": {"weight": 1, "normalize": [True, False, True]}})
    found = values(plan, "normalize")
    assert [found[ATTENTION.format(i)] for i in range(4)] == [True, True, False, True]


def test_a_gradient_runs_within_its_slice_and_a_single_layer_ends_it():
    plan = compiled(
        {
            "merge_method": "passthrough",
            "slices": [
                {"sources": ranged(a=[0, 3])},
                {"sources": ranged(b=[3, 4])},
                {"sources": ranged(a=[2, 4])},
            ],
            "parameters": {"scale": [0.0, 1.0]},
        }
    )
    found = values(plan, "scale")
    depths = [found[ATTENTION.format(i)] for i in range(6)]
    assert depths == [(0.0,), (0.5,), (1.0,), (1.0,), (0.0,), (1.0,)]


def test_per_parent_filters_read_input_names_and_shared_ones_output_names():
    plan = compiled(
        {
            "merge_method": "linear",
            "slices": [{"sources": ranged(a=[0, 1])}, {"sources": ranged(a=[0, 1], b=[2, 3])}],
            "parameters": {
                "weight": [{"filter": "layers.2.", "value": 2}, {"value": 1}],
                "normalize": [{"filter": "layers.1.", "value": False}, {"value": True}],
            },
        }
    )
    name = ATTENTION.format(1)
    assert values(plan, "weight")[name] == (1.0, 2.0)
    assert values(plan, "normalize")[name] is False


def test_parameters_come_in_signature_order_with_their_types():
    plan = compiled(
        {
            "merge_method": "ties",
            "base_model": "base",
            "models": [{"model": "a", "parameters": {"weight": 1}}, "b"],
            "parameters": {"weight": "5e-1", "normalize": 0, "lambda": 2},
        }
    )
    assert repr(plan.steps[0].params) == (
        "(('weight', (1.0, 0.5)), ('density', (1.0, 1.0)), ('normalize', False), "
        "('rescale', False), ('lambda', 2.0), ('int8_mask', False))"
    )


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_ties", "slerp"])
def test_what_mergekit_evolve_writes_for_every_method_changes_nothing(method):
    said = {"t": 0.4} if method == "slerp" else {"weight": 0.5, "normalize": False}
    recipe = {"merge_method": method, "base_model": "base", "models": ["base", "a"]}

    def params(**more):
        steps = compiled(recipe | {"parameters": said | more}).steps
        return [{k: v for k, v in step.params if k != "int8_mask"} for step in steps]

    assert params(normalize=False, int8_mask=True) == params()


def noted(method, said, *models, **of_each):
    """The same plan with and without what is said of all and of each; what it tells."""
    recipe = {"merge_method": method, "base_model": "base"}
    needed = {"slerp": {"t": 0.4}, "linear": {"weight": 1}, "task_arithmetic": {"weight": 1}}
    plain = recipe | {"models": list(models), "parameters": needed.get(method, {})}
    more = [{"model": model, "parameters": of_each} for model in models]
    plan = compiled(plain | {"models": more, "parameters": needed.get(method, {}) | said})
    assert plan.steps == compiled(plain).steps
    return plan.warnings


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("slerp", "normalize"),
        ("model_stock", "normalize"),
        ("karcher", "normalize"),
        ("linear", "rescale"),
        ("task_arithmetic", "rescale"),
        ("slerp", "embed_slerp"),
    ],
)
@pytest.mark.parametrize("value", [True, False])
def test_what_mergekit_reads_past_is_read_past_with_a_note(method, name, value):
    models = ("base", "a") if method == "slerp" else ("a", "b")
    note = f"parameter '{name}' does nothing with merge_method '{method}' and is passed over"
    assert noted(method, {name: value}, *models) == (note,)


def test_a_density_of_task_arithmetic_is_told_once():
    (note,) = noted("task_arithmetic", {}, "a", "b", density=0.3)
    assert note.startswith("parameter 'density' does nothing with merge_method 'task_arithmetic', ")
    assert noted("task_arithmetic", {"density": 0.3}, "a") == (note,)


def test_a_mask_of_8_bits_needs_no_note():
    assert noted("slerp", {"int8_mask": False}, "base", "a") == ()


@pytest.mark.parametrize(
    ("method", "more"), [("slerp", {"weight": 1}), ("linear", {"density": 0.3})]
)
def test_what_would_have_meant_something_is_still_a_mistake(method, more):
    with pytest.raises(RecipeError, match=f"'{method}' has no parameter '{min(more)}'"):
        noted(method, more, "base", "a")


def test_resolve_falls_through_to_none():
    settings = (Setting("a", 1.0), Setting("b", (0.0, 1.0)))
    assert [resolve(settings, name, 0.25) for name in "abc"] == [1.0, 0.25, None]


# Inputs: bases, slices, names.


def test_a_base_of_task_vectors_is_no_parent():
    for models in (["a", "b"], ["base", "a", "b"], ["a", "base", "b"]):
        step = compiled(task_arithmetic(models)).steps[0]
        assert [ref.parent for ref in step.inputs] == ["a", "b"]
        assert step.base.parent == "base"


def test_slerp_starts_from_the_base_in_any_order():
    for models in (["a", "base"], ["base", "a"], ["a"]):
        plan = compiled(
            {"merge_method": "slerp", "base_model": "base", "models": models}
            | {"parameters": {"t": 0.5}}
        )
        assert [ref.parent for ref in plan.steps[0].inputs] == ["base", "a"]
        assert plan.steps[0].base is None


def test_an_unlisted_base_joins_an_average_as_the_last():
    recipe = linear() | {"base_model": "base"}
    assert parents_of(compiled(recipe)) == ["a", "b", "base"]
    assert parents_of(compiled(recipe | {"models": ["base", "a"]})) == ["base", "a"]


def test_the_base_of_a_slice_precedes_the_recipes():
    plan = compiled(
        {
            "merge_method": "slerp",
            "base_model": "base",
            "slices": [
                {"sources": ranged(base=[0, 2], a=[0, 2])},
                {"sources": ranged(base=[2, 4], a=[2, 4]), "base_model": "a"},
            ],
            "parameters": {"t": 0.5},
        }
    )
    found = {step.out: [ref.parent for ref in step.inputs] for step in plan.steps}
    assert found[ATTENTION.format(1)] == ["base", "a"]
    assert found[ATTENTION.format(2)] == ["a", "base"]
    assert plan.donor == "base"


def test_a_frankenmerge_stacks_layers_of_several_parents():
    plan = compiled(
        {
            "merge_method": "passthrough",
            "slices": [
                {"sources": ranged(a=[0, 3])},
                {"sources": ranged(b=[1, 2])},
                {"sources": ranged(b=[2, 4])},
            ],
        }
    )
    sources = {step.out: step.inputs for step in plan.steps}
    origins = [("a", 0), ("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3)]
    for layer, (parent, origin) in enumerate(origins):
        for part in LAYER:
            ref = TensorRef(parent, f"layers.{origin}.{part}")
            assert sources[f"layers.{layer}.{part}"] == (ref,)
    assert sources["embed_tokens.weight"][0].parent == "a"
    assert sources["norm.weight"][0].parent == "b"
    assert sources["lm_head.weight"][0].parent == "b"
    assert len(plan.steps) == 6 * len(LAYER) + len(OUTER)
    assert (plan.depth, plan.config["num_hidden_layers"], plan.donor) == (6, 6, "a")


def test_sources_of_one_slice_may_come_from_different_depths():
    plan = compiled(
        {
            "merge_method": "linear",
            "slices": [{"sources": ranged(a=[0, 2], b=[2, 4])}],
            "parameters": {"weight": 1},
        }
    )
    inputs = {step.out: step.inputs for step in plan.steps}
    assert [ref.name for ref in inputs[ATTENTION.format(1)]] == [
        ATTENTION.format(1),
        ATTENTION.format(3),
    ]


def test_lists_per_layer_follow_their_layers():
    kinds = {"layer_types": ["w", "x", "y", "z"]}
    parents = {"a": checkpoint("a", config=kinds), "b": checkpoint("b")}
    recipe = {"merge_method": "passthrough", "slices": [{"sources": ranged(a=[1, 3])}]}
    plan = compile_plan(from_dict(recipe), parents)
    assert plan.config["layer_types"] == ["x", "y"]
    assert plan.config["num_hidden_layers"] == 2


def test_lists_per_layer_come_from_the_parent_that_gives_the_layer():
    parents = {
        "a": checkpoint("a", 3, config={"layer_types": ["u", "v", "w"]}),
        "b": checkpoint("b", 5, config={"layer_types": ["p", "q", "r", "s", "t"]}),
    }
    slices = [{"sources": ranged(a=[0, 2])}, {"sources": ranged(b=[2, 5])}]
    recipe = {"merge_method": "passthrough", "slices": slices}
    plan = compile_plan(from_dict(recipe), parents)
    assert plan.config["layer_types"] == ["u", "v", "r", "s", "t"]


def test_parents_are_checked_by_position_not_by_prefix():
    """A folder of the bare model counts its layers under another prefix."""
    bare = checkpoint("b", prefix="model.layers.", outer={})
    with pytest.raises(RecipeError, match="model 'b' does not have it"):
        compile_plan(from_dict(linear()), {"a": checkpoint("a"), "b": bare})


def test_the_whole_recipe_compiles_into_one_step_per_tensor():
    plan = compiled(linear(), seed=7)
    assert [step.out for step in plan.steps] == [
        *sorted(OUTER),
        *(f"layers.{i}.{part}" for i in range(4) for part in sorted(LAYER)),
    ]
    assert {step.seed for step in plan.steps} == {7}
    assert plan.bytes_out == 4 * (10 * 4 + 4 + 10 * 4 + 4 * (16 + 32 + 32))
    assert all(step.shape == (OUTER | LAYER)[step.out.split(".", 2)[-1]] for step in layers(plan))


def test_the_same_recipe_compiles_to_the_same_plan():
    assert compiled(linear()) == compiled(linear())
    assert compiled(linear(), seed=1) != compiled(linear(), seed=2)


# Dtypes.


@pytest.mark.parametrize(
    ("dtypes", "given", "stored", "rounding"),
    [
        (("float32", "float32"), {}, "float32", None),
        (("bfloat16", "bfloat16"), {}, "bfloat16", None),
        (("bfloat16", "float16"), {}, "float32", None),
        (("bfloat16", "float32"), {}, "float32", None),
        (("float32", "float32"), {"dtype": "bfloat16"}, "bfloat16", "bfloat16"),
        (("float32", "float32"), {"out_dtype": "bfloat16"}, "bfloat16", None),
        (("bfloat16", "float32"), {"dtype": "float32"}, "float32", None),
        (("bfloat16", "float16"), {"dtype": "bfloat16"}, "bfloat16", "bfloat16"),
        (("float32",) * 2, {"dtype": "bfloat16", "out_dtype": "float32"}, "float32", "bfloat16"),
        (("float64", "float64"), {"dtype": "torch.float32"}, "float32", "float32"),
        (("float64", "bfloat16"), {"out_dtype": "float32"}, "float32", None),
        (("float32",) * 2, {"dtype": "float64", "out_dtype": "float16"}, "float16", None),
    ],
)
def test_dtypes(dtypes, given, stored, rounding):
    parents = {
        name: checkpoint(name, dtype=getattr(torch, dtype))
        for name, dtype in zip("ab", dtypes, strict=True)
    }
    plan = compile_plan(from_dict(linear() | given), parents)
    assert {step.dtype for step in plan.steps} == {getattr(torch, stored)}
    assert {step.rounding for step in plan.steps} == {rounding and getattr(torch, rounding)}
    assert plan.config["dtype"] == stored


@pytest.mark.parametrize(
    ("stored", "more"),
    [("float64", {}), ("float32", {"dtype": "float64"}), ("float32", {"out_dtype": "float64"})],
)
def test_float64_is_kept_only_where_nothing_is_computed(stored, more):
    parents = {name: checkpoint(name, dtype=getattr(torch, stored)) for name in "ab"}
    one = {"merge_method": "passthrough", "models": ["a"]}
    plan = compile_plan(from_dict(one | more), parents)
    assert {step.dtype for step in plan.steps} == {torch.float64}
    assert plan.config["dtype"] == "float64"
    for recipe in (linear(), one | {"parameters": {"scale": 0.5}}):
        with pytest.raises(RecipeError, match=r"stored in float64, .*'out_dtype: float32'"):
            compile_plan(from_dict(recipe | more), parents)


def test_rounding_to_what_all_inputs_are_is_no_rounding():
    plan = compiled(linear() | {"dtype": "float32"})
    assert {step.rounding for step in plan.steps} == {None}


def test_the_older_name_of_the_dtype_is_written_where_only_it_is_known():
    old = {"dtype": None, "torch_dtype": "float32"}
    parents = {name: checkpoint(name, config=old) for name in "ab"}
    config = compile_plan(from_dict(linear() | {"out_dtype": "float16"}), parents).config
    assert (config["torch_dtype"], config.get("dtype")) == ("float16", None)


def test_a_factor_is_of_its_slice_and_of_the_first_filter_that_fits():
    """Tensors outside the layers go with the first and the last slice, as their numbers do."""
    scales = [[{"filter": "attn", "value": 2.0}, {"value": 3.0}], {"filter": "mlp", "value": 0.5}]
    cuts = [[{"model": m, "layer_range": [at, at + 2]} for m in "ab"] for at in (0, 2)]
    parts = [{"sources": cut, "scale": s} for cut, s in zip(cuts, scales, strict=True)]
    plan = compiled({"merge_method": "linear", "slices": parts, "parameters": {"weight": 1.0}})
    wanted = {
        step.out: (2.0 if "attn" in step.out else 3.0)
        if step.out.startswith(("layers.0", "layers.1", "embed"))
        else (0.5 if "mlp" in step.out else 1.0)
        for step in plan.steps
    }
    assert {step.out: step.scale for step in plan.steps} == wanted
    assert set(wanted.values()) == {0.5, 1.0, 2.0, 3.0}
    told = [json.loads(line).get("scale", 1.0) for line in describe(plan).splitlines()]
    assert told == list(wanted.values())


def test_buffers_are_copied_and_not_merged():
    parents = {name: checkpoint(name, layer={"mask": (1, 4)}) for name in "ab"}
    for parent in parents.values():
        for layer in range(4):
            spec = parent.tensors[f"layers.{layer}.mask"]
            parent.tensors[spec.name] = TensorSpec(spec.name, spec.shape, torch.bool, spec.file)
    cut = [{"model": m, "layer_range": [0, 4], "parameters": {"weight": 1.0}} for m in "ab"]
    scaled = {"merge_method": "linear", "slices": [{"sources": cut, "scale": 0.5}]}
    for recipe in (linear(), scaled):
        recipe = recipe | {"out_dtype": "bfloat16"}
        step = compile_plan(from_dict(recipe), parents).steps[-1]
        assert (step.method, step.dtype, step.params, step.scale) == (None, torch.bool, (), 1.0)


def test_describe_is_one_json_line_per_tensor():
    lines = [json.loads(line) for line in describe(compiled(linear())).splitlines()]
    assert lines[0] == {
        "out": "embed_tokens.weight",
        "shape": [10, 4],
        "dtype": "float32",
        "method": "linear",
        "inputs": ["a:embed_tokens.weight", "b:embed_tokens.weight"],
        "params": {"weight": [1.0, 1.0], "normalize": True},
    }
    assert len(lines) == len(OUTER) + 4 * len(LAYER)


# Refusals.

TIES = {"merge_method": "ties", "models": ["a"], "parameters": {"weight": 1}}
PASSTHROUGH = {"merge_method": "passthrough", "models": ["a"]}
SLERP = {"merge_method": "slerp", "parameters": {"t": 0.5}}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (PASSTHROUGH | {"merge_method": "passthru"}, "'passthru' is unknown; did you mean 'passth"),
        (PASSTHROUGH | {"models": ["bse"]}, "model 'bse' is not open; did you mean 'base'"),
        (PASSTHROUGH | {"base_model": "q"}, "model 'q' is not open; known: base, a, b"),
        (
            TIES | {"parameters": {"wieght": 1}},
            "parameters: merge_method 'ties' has no parameter 'wieght'; did you mean 'weight'",
        ),
        (
            PASSTHROUGH | {"models": [{"model": "a", "parameters": {"t": 1}}]},
            "parameters of model 'a': merge_method 'passthrough' has no parameter 't'; known: sc",
        ),
        (
            {"merge_method": "passthrough"}
            | {
                "slices": [
                    {"sources": [{"model": "a", "layer_range": [0, 1]}], "parameters": {"x": 1}}
                ]
            },
            r"slices\[0\].parameters: merge_method 'passthrough' has no parameter 'x'",
        ),
        (
            TIES | {"models": [{"model": "a", "parameters": {"lambda": 1}}]},
            "parameters of model 'a': 'lambda' of 'ties' is one value for all models; put it under",
        ),
        (TIES, r"merge_method 'ties' needs a base model in models; set base_model"),
        (SLERP | {"models": ["a", "b"]}, "merge_method 'slerp' needs a base model .* set base_mo"),
        (
            SLERP
            | {"base_model": "base"}
            | {
                "slices": [
                    {"sources": [{"model": m, "layer_range": [0, 2]} for m in ("base", "a")]},
                    {"sources": [{"model": m, "layer_range": [0, 2]} for m in ("a", "b")]},
                ]
            },
            r"needs a base model in slices\[1\]; list base_model 'base' among its sources",
        ),
        (
            SLERP | {"base_model": "base", "models": ["a", "b"]},
            r"'slerp' takes exactly 2 models, base_model included; models has 3: base, a, b",
        ),
        (
            SLERP | {"base_model": "base", "models": ["base"]},
            r"'slerp' takes exactly 2 models, base_model included; models has 1: base",
        ),
        (
            TIES | {"base_model": "base", "models": ["base"]},
            r"'ties' takes at least 1 model; models has 0: ",
        ),
        (
            PASSTHROUGH | {"base_model": "base"},
            r"'passthrough' takes exactly 1 model, base_model included; models has 2: a, b",
        ),
        (
            TIES | {"base_model": "base", "models": ["a", "b", "a"]},
            r"models: a model appears twice \(a, b, a\); list it once",
        ),
        (
            {"merge_method": "passthrough"}
            | {"slices": [{"sources": [{"model": "a", "layer_range": [2, 5]}]}]},
            r"slices\[0\]: layer_range \[2, 5\) of 'a' reaches past its 4 layers; end is "
            "exclusive, so at most 4",
        ),
        (
            {"merge_method": "linear"}
            | {
                "slices": [
                    {"sources": [{"model": "a", "layer_range": [0, 1]}]},
                    {
                        "sources": [
                            {"model": "a", "layer_range": [0, 3]},
                            {"model": "b", "layer_range": [2, 4]},
                        ]
                    },
                ]
            },
            r"slices\[1\]: 'b' gives 2 layers but 'a' gives 3; sources of one slice need equally",
        ),
        (
            {"merge_method": "linear", "models": ["a"]},
            "tensor 'embed_tokens.weight': merge_method 'linear' needs 'weight' for model 'a'",
        ),
        (
            {"merge_method": "slerp", "base_model": "base", "models": ["a"]}
            | {"parameters": {"t": [{"filter": "embed", "value": 1}, {"filter": "l", "value": 1}]}},
            "tensor 'norm.weight': merge_method 'slerp' needs 't': there are values for 'embed', "
            "'l' alone; give one for all other tensors too",
        ),
        (
            PASSTHROUGH | {"parameters": {"scale": "big"}},
            "tensor 'embed_tokens.weight': 'scale' must be a number, got 'big'",
        ),
        (
            PASSTHROUGH | {"parameters": {"scale": True}},
            "tensor 'embed_tokens.weight': 'scale' must be a number, got True",
        ),
        (
            TIES | {"base_model": "base", "parameters": {"weight": 1, "normalize": 0.5}},
            "'normalize' must be true or false, got 0.5",
        ),
        (
            TIES | {"base_model": "base", "parameters": {"weight": True}},
            "'weight' must be a number, got True; write 1, which is what mergekit takes it for",
        ),
    ],
)
def test_recipes_that_do_not_fit(recipe, message):
    with pytest.raises(RecipeError, match=message):
        compiled(recipe)


# Numbers: what depends on no tensor's content is refused here, not when the tensor's turn comes.


def weighted(method, a, b, **more):
    models = [{"model": "a", "parameters": a}, {"model": "b", "parameters": b}]
    return {"merge_method": method, "models": models} | more


IN_LAYER_3 = [{"filter": "layers.3", "value": -0.5}, {"value": 0.5}]
HALF = {"weight": 0.5}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            weighted("linear", {"weight": IN_LAYER_3}, HALF),
            r"tensor 'layers.3.attn.weight': the weights \[-0.5, 0.5\] of a, b sum to 0 and can't "
            "be normalised; change one or set normalize: false",
        ),
        (
            weighted("linear", {"weight": [0.5, -0.5]}, HALF),
            r"tensor 'layers.3.attn.weight': the weights \[-0.5, 0.5\]",
        ),
        (
            weighted("multislerp", {"weight": -0.5}, HALF),
            r"tensor 'embed_tokens.weight': the weights \[-0.5, 0.5\] of a, b sum to 0 .* set "
            "normalize_weights: false",
        ),
        *(
            (
                weighted(
                    method, HALF, HALF | {"density": 0.1, "epsilon": [0.01, 0.5]}, base_model="base"
                ),
                r"tensor 'layers.1.attn.weight': density 0.1 and epsilon 0.17\d+ of model 'b' keep "
                r"elements with probabilities from -0.07\d+ to 0.27\d+, which must lie between 0",
            )
            for method in ("della", "della_linear")
        ),
        *(
            (
                weighted("della", HALF, HALF | {"density": density}, base_model="base"),
                f"density {density} and epsilon 0.15 of model 'b' keep .* set density: 1 to keep",
            )
            for density in (0.1, 0.15, 0.85, 0.99)
        ),
        (
            weighted("della", HALF, HALF | {"density": 0.9, "epsilon": -0.2}, base_model="base"),
            "density 0.9 and epsilon -0.2 of model 'b' keep .* from 0.7 to 1.1, which must",
        ),
    ],
)
def test_numbers_that_a_method_cannot_merge_with(recipe, message):
    with pytest.raises(NumbersError, match=message):
        compiled(recipe)
    parents = {name: checkpoint(name) for name in ("base", "a", "b")}
    assert compile_plan(from_dict(recipe), parents, judge=False).depth == 4


@pytest.mark.parametrize(
    "recipe",
    [
        weighted("linear", {"weight": -0.5}, HALF, parameters={"normalize": False}),
        weighted("linear", {"weight": -0.5}, {"weight": 3.0}),
        weighted("multislerp", {"weight": -1}, HALF, parameters={"normalize_weights": False}),
        {"merge_method": "multislerp", "models": ["a"], "parameters": {"weight": 0}},
        weighted("della", HALF | {"density": 0}, HALF | {"density": 1}, base_model="base"),
        weighted("ties", {"weight": -1}, {"weight": 7}, base_model="base"),
        SLERP | {"base_model": "base", "models": ["a"], "parameters": {"t": [-0.5, 1.5]}},
        TIES | {"base_model": "base", "parameters": {"weight": 1, "density": [0, 1]}},
    ],
)
def test_numbers_that_look_odd_and_can_be_merged(recipe):
    assert compiled(recipe).depth == 4


OUT_OF_BOUNDS = [
    *(
        (method, "density", value, "from 0 to 1")
        for method in ("ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs")
        for value in (1.07, -0.1)
    ),
    ("breadcrumbs_ties", "gamma", 1.5, "from 0 to 1"),
    ("sce", "select_topk", -1, "from 0 to 1"),
    ("nearswap", "t", -0.001, "0 or more"),
    ("ram", "epsilon", -1, "0 or more"),
    ("ramplus_tl", "epsilon", -1, "0 or more"),
    ("karcher", "max_iter", -1, "0 or more"),
    ("multislerp", "eps", -1, "0 or more"),
    ("iso_cts", "common_space_fraction", 1.5, "from 0 to 1"),
    ("magnitude_average", "weight", -0.5, "0 or more"),
    ("magnitude_average", "exponent", -1, "0 or more"),
]


@pytest.mark.parametrize(("method", "name", "value", "words"), OUT_OF_BOUNDS)
def test_numbers_that_mean_nothing(method, name, value, words):
    found = find_method(method)
    needed = {"weight": 1} if (p := found.parameter("weight")) and p.required else {}
    recipe = {"merge_method": method, "models": ["a"], "parameters": needed | {name: value}}
    if found.base.needed:
        recipe["base_model"] = "base"
    whose = " of model 'a'" if found.parameter(name).per_parent else ""
    message = f"tensor 'embed_tokens.weight': '{name}'{whose} must be {words}, got {value:g}$"
    with pytest.raises(RecipeError, match=message):
        compiled(recipe)


def test_a_percentage_gets_its_share():
    recipe = TIES | {"base_model": "base", "parameters": {"weight": 1, "density": 53}}
    with pytest.raises(RecipeError, match=r"from 0 to 1, got 53; for 53 % write 0\.53$"):
        compiled(recipe)


def test_whole_numbers_and_others_are_not_mixed():
    parents = {name: checkpoint(name) for name in "ab"}
    spec = parents["b"].tensors["layers.2.attn.weight"]
    parents["b"].tensors[spec.name] = replace(spec, dtype=torch.int8)
    message = (
        "tensor 'layers.2.attn.weight': parent 'b' holds int8 but 'a' holds float32; whole numbers,"
        " such as quantised weights, can't be merged with others: dequantise 'b' first, or leave"
    )
    with pytest.raises(RecipeError, match=message):
        compile_plan(from_dict(linear()), parents)
    turned = linear() | {"models": ["b", "a"]}
    with pytest.raises(RecipeError, match="dequantise 'b' first"):
        compile_plan(from_dict(turned), parents)


HEADLESS = {name: shape for name, shape in OUTER.items() if name != "lm_head.weight"}


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (
            {},
            {"config": {"model_type": "other"}},
            "model 'b' is a other but 'a' is a toy; models of one recipe must be of one family: "
            "leave it out, or, if both compute the same, give it the other's model_type",
        ),
        (
            {"layer": LAYER | {"mlp.up.weight": (9, 4)}},
            {},
            r"tensor 'layers.0.mlp.up.weight': parent 'b' has shape \(8, 4\) but 'a' has \(9, 4\); "
            "parents of one recipe need equal shapes$",
        ),
        (
            {},
            {"outer": OUTER | {"embed_tokens.weight": (11, 4)}},
            r"parent 'b' has shape \(11, 4\) but 'a' has \(10, 4\); .*\(their vocabularies differ; "
            r"add 'tokenizer: \{source: union\}' to the recipe\)$",
        ),
        (
            {},
            {"layer": LAYER | {"attn.bias": (4,)}},
            "tensor 'layers.0.attn.bias': model 'b' has it but 'a' does not; models of one slice",
        ),
        (
            {"layer": LAYER | {"attn.bias": (4,)}},
            {},
            r"model 'a' has it but 'b' does not; .*leave one out, or save 'b' with it \(a missing",
        ),
        (
            {},
            {"outer": OUTER | {"score.weight": (2, 4)}},
            "tensor 'score.weight': model 'b' has it but 'a' does not; save both from the same",
        ),
        (
            {},
            {"layers": 5},
            "models: 'b' gives 5 layers but 'a' gives 4; sources of one slice need equally",
        ),
    ],
)
def test_parents_that_do_not_fit(a, b, message):
    with pytest.raises(RecipeError, match=message):
        compile_plan(from_dict(linear()), {"a": checkpoint("a", **a), "b": checkpoint("b", **b)})


def test_a_tensor_of_the_base_alone_is_not_lost():
    parents = {"base": checkpoint("base", layer=LAYER | {"bias": (4,)}), "a": checkpoint("a")}
    with pytest.raises(RecipeError, match=r"tensor 'layers.0.bias'.*'base'"):
        compile_plan(from_dict(task_arithmetic(["a"])), parents)


def test_a_base_that_is_listed_twice_is_refused():
    with pytest.raises(RecipeError, match="a model appears twice"):
        compiled(task_arithmetic(["base", "a", "base"]))


def compiled(recipe, layers=4, seed=0):
    parents = {name: checkpoint(name, layers) for name in ("base", "a", "b")}
    return compile_plan(from_dict(recipe), parents, seed)


def slerp(t, layers=4):
    recipe = {"merge_method": "slerp", "base_model": "base", "models": ["base", "a"]}
    return compiled(recipe | {"parameters": {"t": t}}, layers)


def task_arithmetic(models):
    recipe = {"merge_method": "task_arithmetic", "base_model": "base", "models": models}
    return recipe | {"parameters": {"weight": 1}}


def parents_of(plan):
    return [ref.parent for ref in plan.steps[0].inputs]


def layers(plan):
    return [step for step in plan.steps if step.out.startswith("layers.")]
