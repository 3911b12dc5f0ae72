"""Parents that fit, that fit with a warning, and that are refused."""

from dataclasses import replace

import pytest
import torch
from headers import checkpoint, linear, seq2seq

from merge_core.errors import RecipeError
from merge_core.plan import compile_plan
from merge_core.recipe import from_dict


@pytest.mark.parametrize(
    ("key", "one", "other"),
    [
        ("num_attention_heads", 4, 8),
        ("n_head", 4, 8),
        ("head_dim", 8, 16),
        ("num_key_value_heads", 2, 4),
        ("hidden_act", "silu", "gelu"),
        ("activation_function", "gelu", "relu"),
        ("multi_query", True, False),
    ],
)
def test_equal_shapes_that_mean_different_things_are_refused(key, one, other):
    parents = {"a": checkpoint("a", config={key: one}), "b": checkpoint("b", config={key: other})}
    message = rf"config.json: '{key}' of model 'b' is {other!r} but 'a' has {one!r}, so equal tens"
    with pytest.raises(RecipeError, match=message):
        compile_plan(from_dict(linear()), parents)


@pytest.mark.parametrize(
    ("one", "other", "warnings"),
    [
        ({"rope_theta": 1e4}, {"rope_theta": 1e4}, []),
        ({"rope_theta": 1e4}, {}, []),
        (
            {"rope_theta": 1e4},
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
            ["'rope_theta' of model 'b' is 500000.0; the merge takes 10000.0 of 'a'"],
        ),
        ({"rms_norm_eps": 1e-5}, {"rms_norm_eps": 1e-6}, ["'rms_norm_eps' of model 'b' is 1e-06"]),
        ({"sliding_window": 64}, {"sliding_window": 32}, ["'sliding_window' of model 'b' is 32"]),
        ({"vocab_size": 3, "eos_token_id": 2, "_x": 1}, {"vocab_size": 4, "eos_token_id": 3}, []),
        ({"transformers_version": "4", "use_cache": True}, {"transformers_version": "5"}, []),
        ({"id2label": {"0": "x"}}, {"id2label": {"0": "y"}}, []),
    ],
)
def test_what_shifts_the_function_is_a_warning(one, other, warnings):
    parents = {"a": checkpoint("a", config=one), "b": checkpoint("b", config=other)}
    found = compile_plan(from_dict(linear()), parents).warnings
    assert len(found) == len(warnings)
    assert all(text in line for text, line in zip(warnings, found, strict=True))


def test_stacks_and_prefixes_that_do_not_fit():
    parts = {"a": checkpoint("a", config={"model_type": "x"}), "b": seq2seq("b", model_type="x")}
    with pytest.raises(
        RecipeError, match="'b' has the parts encoder, decoder but 'a' has default;"
    ):
        compile_plan(from_dict(linear()), parts)
    prefixes = {"a": checkpoint("a"), "b": checkpoint("b", prefix="blocks.")}
    with pytest.raises(
        RecipeError, match=r"calls its layers 'blocks.…' but 'a' calls them 'layers"
    ):
        compile_plan(from_dict(linear()), prefixes)


def quantised(name, config, dtype=torch.uint8):
    parent = checkpoint(name, config=config)
    spec = parent.tensors["layers.0.attn.weight"]
    parent.tensors[spec.name] = replace(spec, dtype=dtype)
    return parent


@pytest.mark.parametrize(
    ("config", "dtype", "method"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "uint8", r" \(bitsandbytes\)"),
        ({"quantization_config": {"bits": 4}}, "int32", ""),
        ({"text_config": {"quantization_config": {"quant_method": "q"}}}, "int8", r" \(q\)"),
    ],
)
def test_quantised_parents_are_refused(config, dtype, method):
    parents = {name: quantised(name, config, getattr(torch, dtype)) for name in "ab"}
    message = (
        f"model 'a' is quantised{method}: tensor 'layers.0.attn.weight' holds {dtype} and its conf"
        "ig.json has a quantization_config; packed weights can't be merged: dequantise it first"
    )
    with pytest.raises(RecipeError, match=message):
        compile_plan(from_dict(linear()), parents)


def test_a_configuration_left_over_from_training_is_no_quantisation():
    stated = {"quantization_config": {"quant_method": "bitsandbytes"}}
    parents = {name: checkpoint(name, config=stated) for name in "ab"}
    assert compile_plan(from_dict(linear()), parents).depth == 4
    masks = {name: quantised(name, {}, torch.uint8) for name in "ab"}
    assert compile_plan(from_dict(linear()), masks).depth == 4
