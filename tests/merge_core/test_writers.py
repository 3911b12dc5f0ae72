"""Which tensors a scale multiplies; `tests/evals/test_folding.py` proves that they are the ones."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tiny_families import write_family_model

from merge_core.checkpoint import Checkpoint, TensorSpec, assemble, open_checkpoint
from merge_core.errors import RecipeError
from merge_core.plan import compile_plan
from merge_core.recipe import Recipe, Slice, Source, from_dict, to_dict
from merge_core.writers import Writers, find_writers, folded, powers, scale_settings

EXPERTS = range(4)
# A layer's tensors as they are stored, without the layer's prefix.
WRITING = {
    "llama": {"self_attn.o_proj.weight", "mlp.down_proj.weight"},
    "qwen2": {"self_attn.o_proj.weight", "mlp.down_proj.weight"},
    "gpt_neox": {
        *("attention.dense.weight", "attention.dense.bias"),
        *("mlp.dense_4h_to_h.weight", "mlp.dense_4h_to_h.bias"),
    },
    "gpt2": {
        *("attn.c_proj.weight", "attn.c_proj.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
    },
    "phi": {
        *("self_attn.dense.weight", "self_attn.dense.bias", "mlp.fc2.weight", "mlp.fc2.bias"),
    },
    "mixtral": {
        "self_attn.o_proj.weight",
        *(f"block_sparse_moe.experts.{i}.w2.weight" for i in EXPERTS),
    },
    "qwen2_moe": {
        *("self_attn.o_proj.weight", "mlp.shared_expert.down_proj.weight"),
        *(f"mlp.experts.{i}.down_proj.weight" for i in EXPERTS),
    },
    "gpt_oss": {
        *("self_attn.o_proj.weight", "self_attn.o_proj.bias"),
        *("mlp.experts.down_proj", "mlp.experts.down_proj_bias"),
    },
    "glm4": {"post_self_attn_layernorm.weight", "post_mlp_layernorm.weight"},
    "olmo2": {"post_attention_layernorm.weight", "post_feedforward_layernorm.weight"},
}
READING = {
    "olmo2": {
        *(f"self_attn.{kind}_proj.weight" for kind in "qkv"),
        *("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    }
}


@pytest.mark.parametrize("family", WRITING)
def test_the_filters_match_exactly_the_tensors_that_write_and_read(tmp_path: Path, family: str):
    parent = open_checkpoint(write_family_model(tmp_path / "m", family), "a")
    found = find_writers(parent)
    prefix = parent.layout.stacks[0].prefix
    for filters, wanted in ((found.writing, WRITING), (found.reading, READING)):
        inner = wanted.get(family, set())
        expected = {f"{prefix}{i}.{rest}" for i in range(parent.layout.depth) for rest in inner}
        assert {name for name in parent.tensors if matches(filters, name)} == expected
    for layer, table in enumerate(powers(parent, found)):
        assert table == {
            **{f"{prefix}{layer}.{rest}": 1 for rest in WRITING[family]},
            **{f"{prefix}{layer}.{rest}": -1 for rest in READING.get(family, ())},
        }


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_experts_are_matched_by_mergekits_name_too(tmp_path: Path, family: str):
    """mergekit 0.1.5 merges them packed; without this it left them as they were."""
    found = find_writers(open_checkpoint(write_family_model(tmp_path / "m", family), "a"))
    assert matches(found.writing, "model.layers.0.mlp.experts.down_proj")
    assert not matches(found.writing, "model.layers.0.mlp.experts.gate_up_proj")


@pytest.mark.parametrize("family", ["gpt2", "olmo2"])
def test_a_recipe_with_the_settings_scales_these_tensors_only(tmp_path: Path, family: str):
    parent = open_checkpoint(write_family_model(tmp_path / "m", family), "a")
    found = find_writers(parent)
    slices = tuple(
        Slice((Source("a", (layer, layer + 1), scale_settings(found, factor)),))
        for layer, factor in enumerate((1.0, 0.8, 1.25))
    )
    recipe = Recipe("passthrough", slices)
    assert from_dict(to_dict(recipe)) == recipe
    plan = compile_plan(recipe, {"a": parent})
    scales = {step.out: dict(step.params)["scale"][0] for step in plan.steps}
    expected = dict.fromkeys(scales, 1.0)
    for names, factor in zip(powers(parent, found), (1.0, 0.8, 1.25), strict=True):
        expected |= {name: factor**power for name, power in names.items()}
    assert scales == pytest.approx(expected, rel=1e-15)


def test_a_factor_of_one_says_nothing():
    assert scale_settings(Writers((".o_proj.",)), 1.0) == ()


def test_factors_undo_the_product_of_the_scales_so_far():
    scales = (1.0, 1.25, 1.0, 0.5, 0.8)
    factors = folded(scales)
    assert factors == tuple(1 / math.prod(scales[: i + 1]) for i in range(len(scales)))
    assert folded(()) == ()


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_is_above_zero(scale: float):
    with pytest.raises(RecipeError, match="scale of layer 1: expected a number above 0"):
        folded((1.0, scale))


LAYER = {
    "input_layernorm.weight": (8,),
    "self_attn.q_proj.weight": (8, 8),
    "self_attn.o_proj.weight": (8, 8),
    "post_attention_layernorm.weight": (8,),
    "mlp.up_proj.weight": (16, 8),
    "mlp.down_proj.weight": (8, 16),
}


def test_a_block_of_which_nothing_is_known_to_write_is_refused():
    layer = {k.replace("down_proj", "downward"): shape for k, shape in LAYER.items()}
    with pytest.raises(RecipeError, match=r"scales of 'a': 'model.layers.0.mlp.*is of a block of"):
        find_writers(model(layer))


def test_a_family_whose_words_arent_known_is_refused(tmp_path: Path):
    parent = open_checkpoint(write_family_model(tmp_path / "m", "rwkv"), "a")
    with pytest.raises(RecipeError, match="no tensor is known to write to the residual stream"):
        find_writers(parent)


def test_a_mixer_of_another_name_has_to_write_too():
    with pytest.raises(RecipeError, match=r"model.layers.0.mixer.in.weight' is of a block of"):
        find_writers(model(LAYER | {"mixer.in.weight": (8, 8)}))
    assert ".out_proj." in find_writers(model(LAYER | {"mixer.out_proj.weight": (8, 8)})).writing


def test_what_has_not_the_width_of_the_stream_is_refused():
    with pytest.raises(RecipeError, match=r"down_proj.weight' has shape \(4, 16\).*width, 8"):
        find_writers(model(LAYER | {"mlp.down_proj.weight": (4, 16)}))


def test_a_name_that_others_hold_too_is_told_apart_by_the_word_before_it():
    found = find_writers(model(LAYER, {"extra.o_proj.weight": (8, 8)}))
    assert found.writing == (".down_proj.", ".self_attn.o_proj.")


def test_a_name_that_cant_be_told_apart_is_refused():
    outer = {"extra.0.self_attn.o_proj.weight.copy": (8, 8)}
    with pytest.raises(RecipeError, match=r"o_proj.weight' writes to or reads .* no part of its"):
        find_writers(model(LAYER, outer))


def test_models_of_several_stacks_are_refused(tmp_path: Path):
    parent = open_checkpoint(write_family_model(tmp_path / "m", "t5"), "a")
    with pytest.raises(RecipeError, match=r"several stacks \(encoder, decoder\)"):
        find_writers(parent)


def test_biases_of_what_reads_without_a_norm_are_left_alone():
    """W(ch) + b is (cW)h + b."""
    ends = {"post_attention_layernorm.weight": (8,), "post_feedforward_layernorm.weight": (8,)}
    blocks = {k: shape for k, shape in LAYER.items() if "norm" not in k}
    found = find_writers(model(blocks | ends | {"self_attn.q_proj.bias": (8,)}))
    assert found.reading == (".q_proj.weight", ".up_proj.")


def model(
    layer: Mapping[str, tuple[int, ...]], outer: Mapping[str, tuple[int, ...]] = {}
) -> Checkpoint:
    """Two equal layers, embeddings of width 8, and more."""
    shapes = {f"model.layers.{i}.{rest}": shape for i in range(2) for rest, shape in layer.items()}
    shapes |= {"model.embed_tokens.weight": (32, 8), "model.norm.weight": (8,), **outer}
    specs = {n: TensorSpec(n, shapes[n], torch.float32, "x") for n in sorted(shapes)}
    return assemble("a", Path("a"), {"num_hidden_layers": 2}, specs, "model 'a'")


def matches(filters: tuple[str, ...], name: str) -> bool:
    return any(text in name for text in filters)
