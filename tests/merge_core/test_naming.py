"""Layer numbers and roles, read from tensor names."""

import pytest

from merge_core.errors import CheckpointError
from merge_core.naming import Layout, Stack, find_layout, role, with_depth

LLAMA = Layout((Stack("default", "model.layers.", 12),))


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.0.mlp.up_proj.weight", 0),
        ("model.layers.11.mlp.experts.3.w1.weight", 11),
        ("model.norm.weight", None),
        ("lm_head.weight", None),
        ("vision.layers.3.weight", None),
        ("model.layers.3", None),
    ],
)
def test_layer_of_a_name(name, layer):
    assert LLAMA.layer(name) == layer


def test_a_layer_moves_and_the_rest_stays():
    assert LLAMA.moved("model.layers.3.mlp.experts.3.w.weight", 10) == (
        "model.layers.10.mlp.experts.3.w.weight"
    )
    assert LLAMA.moved("model.norm.weight", 10) == "model.norm.weight"
    assert LLAMA.moved("other.layers.3.weight", 10) == "other.layers.3.weight"


@pytest.mark.parametrize(
    ("prefix", "key"),
    [
        ("model.layers.", "num_hidden_layers"),
        ("transformer.h.", "n_layer"),
        ("h.", "n_layers"),
        ("gpt_neox.layers.", "num_layers"),
    ],
)
def test_layout_is_found_from_names_and_depth(prefix, key):
    names = [f"{prefix}{i}.mlp.experts.{j}.w" for i in range(3) for j in range(5)]
    found = find_layout([*names, "norm.weight"], {key: 3}, "model 'a'")
    assert found == Layout((Stack("default", prefix, 3, (key,)),))
    assert found.depth == 3


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["model.layers.0.w", "model.layers.1.w"], "'model.layers.': 2"),
        (["model.layers.0.w", "model.layers.1.w", "model.layers.3.w"], "'model.layers.': 3"),
        (["norm.weight"], "no numbered layers"),
        ([f"{part}.{i}.w" for part in ("encoder", "decoder") for i in range(3)], "'decoder.': 3"),
    ],
)
def test_layers_that_contradict_the_configuration_are_refused(names, shown):
    with pytest.raises(
        CheckpointError, match=rf"model 'a': config.json states 3 layers, .*{shown}.*one prefix"
    ):
        find_layout(names, {"num_hidden_layers": 3}, "model 'a'")


T5 = {"num_layers": 2, "num_decoder_layers": 3}
GEMMA3 = {"text_config": {"num_hidden_layers": 2}, "vision_config": {"num_hidden_layers": 2}}


def numbered(**depths):
    return [f"{prefix.replace('_', '.')}.{i}.w" for prefix, n in depths.items() for i in range(n)]


@pytest.mark.parametrize(
    ("names", "config", "stacks"),
    [
        (
            numbered(encoder_block=2, decoder_block=3),
            T5,
            [("encoder", "encoder.block.", 2), ("decoder", "decoder.block.", 3)],
        ),
        (
            numbered(model_decoder_layers=2, model_encoder_layers=2),
            {"encoder_layers": 2, "decoder_layers": 2, "num_hidden_layers": 2},
            [("encoder", "model.encoder.layers.", 2), ("decoder", "model.decoder.layers.", 2)],
        ),
        (
            numbered(language_model_layers=2) + [f"vision.encoder.layers.{i}.w" for i in range(2)],
            GEMMA3,
            [
                ("vision_tower", "vision.encoder.layers.", 2),
                ("text_decoder", "language.model.layers.", 2),
            ],
        ),
        (
            [*numbered(model_layers=4, visual_blocks=3), "visual.merger.mlp.0.w", "x.mlp.2.w"],
            {"num_hidden_layers": 4, "vision_config": {"depth": 3}},
            [("vision_tower", "visual.blocks.", 3), ("text_decoder", "model.layers.", 4)],
        ),
        (
            numbered(bert_encoder_layer=2),
            {"num_hidden_layers": 2},
            [("default", "bert.encoder.layer.", 2)],
        ),
        (numbered(decoder_block=3), T5, [("default", "decoder.block.", 3)]),
    ],
)
def test_stacks_are_told_apart_by_the_words_of_their_keys(names, config, stacks):
    found = find_layout(names, config, "m").stacks
    assert [(stack.name, stack.prefix, stack.depth) for stack in found] == stacks


def test_each_stack_is_proved():
    names = numbered(encoder_block=2, decoder_block=2)
    with pytest.raises(
        CheckpointError, match=r"states 3 layers, .*'decoder.block.': 2.*'num_decoder_layers': sta"
    ):
        find_layout(names, T5, "m")


def test_a_tensor_belongs_to_one_stack_or_to_none():
    layout = find_layout(numbered(encoder_block=2, decoder_block=3), T5, "m")
    assert layout.depth == 5
    assert layout.stack("decoder.block.2.w") is layout.stacks[1]
    assert layout.stack("shared.weight") is None
    assert layout.layer("decoder.block.2.w") == 2
    assert layout.moved("encoder.block.1.w", 7) == "encoder.block.7.w"


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("shared.weight", "encoder"),
        ("encoder.final_layer_norm.weight", "encoder"),
        ("decoder.embed_tokens.weight", "decoder"),
        ("lm_head.weight", "decoder"),
    ],
)
def test_a_tensor_outside_the_layers_goes_with_a_stack(name, owner):
    layout = find_layout(numbered(encoder_block=2, decoder_block=3), T5, "m")
    assert layout.owner(name).name == owner


def test_a_nested_depth_is_changed_where_it_stands():
    inner = {"num_hidden_layers": 2, "layer_types": ["a", "b"]}
    config = {"text_config": inner, "num_hidden_layers": 2}
    changed = with_depth(config, ("text_config", "num_hidden_layers"), from_itself(config, 1))
    assert changed == {
        "text_config": {"num_hidden_layers": 1, "layer_types": ["b"]},
        "num_hidden_layers": 2,
    }


def test_a_depth_that_is_stated_twice_is_changed_twice():
    config = {"encoder_layers": 2, "num_hidden_layers": 2, "decoder_layers": 2}
    assert with_depth(config, ("encoder_layers",), from_itself(config, 1)) == {
        "encoder_layers": 1,
        "num_hidden_layers": 1,
        "decoder_layers": 2,
    }


def test_a_configuration_without_depth_is_refused():
    with pytest.raises(CheckpointError, match=r"none of num_hidden_layers, n_layer, .* unknown"):
        find_layout(["layers.0.w"], {"hidden_size": 3, "num_layers": "three"}, "model 'a'")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("transformer.wte.weight", "embedding"),
        ("wpe.weight", "embedding"),
        ("gpt_neox.embed_in.weight", "embedding"),
        ("embed_out.weight", "head"),
        ("lm_head.weight", "head"),
        ("lm_head.bias", "head"),
        ("output.weight", "head"),
        ("model.norm.weight", "rest"),
        ("transformer.ln_f.bias", "rest"),
        ("gpt_neox.final_layer_norm.weight", "rest"),
    ],
)
def test_role_outside_the_layers(name, expected):
    assert role(name) == expected


def test_the_same_stack_keeps_its_configuration():
    config = {"n_layer": 3, "layer_types": ["a", "b", "c"]}
    same = with_depth(config, ("n_layer",), from_itself(config, 0, 1, 2))
    assert same == config
    assert same is not config


def test_another_stack_states_its_depth_and_carries_lists_per_layer():
    config = {
        "num_hidden_layers": 3,
        "layer_types": ["a", "b", "c"],
        "architectures": ["x", "y", "z"],
        "sizes": [1, 2],
    }
    assert with_depth(config, ("num_hidden_layers",), from_itself(config, 0, 2, 1, 2)) == {
        "num_hidden_layers": 4,
        "layer_types": ["a", "c", "b", "c"],
        "architectures": ["x", "y", "z"],
        "sizes": [1, 2],
    }
    assert config["num_hidden_layers"] == 3


def test_a_reordered_stack_of_the_same_depth_carries_lists_too():
    config = {"n_layer": 2, "kinds": ["a", "b"]}
    assert with_depth(config, ("n_layer",), from_itself(config, 1, 0))["kinds"] == ["b", "a"]


def from_itself(config, *layers):
    return [(config, layer) for layer in layers]
