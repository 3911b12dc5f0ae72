"""What a family derives by a layer's number is stated layer by layer, and nothing else is."""

from typing import Any

import pytest

from evals.configuration import parse_config, with_layer_lists
from evals.errors import EvaluationError

FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    ("config", "lists"),
    [
        (
            {"model_type": "gemma2", "num_hidden_layers": 3},
            {"layer_types": [SLIDING, FULL, SLIDING]},
        ),
        (
            {"model_type": "gemma3_text", "num_hidden_layers": 4, "sliding_window_pattern": 2},
            {"layer_types": [SLIDING, FULL, SLIDING, FULL]},
        ),
        (
            {
                "model_type": "qwen2",
                "num_hidden_layers": 3,
                "use_sliding_window": True,
                "max_window_layers": 2,
            },
            {"layer_types": [FULL, FULL, SLIDING]},
        ),
        (
            {
                "model_type": "qwen2",
                "num_hidden_layers": 3,
                "use_sliding_window": True,
                "max_window_layers": 5,  # a deeper merge would have sliding layers
            },
            {"layer_types": [FULL, FULL, FULL]},
        ),
        (
            {"model_type": "smollm3", "num_hidden_layers": 5},
            {"no_rope_layers": [1, 1, 1, 0, 1]},
        ),
    ],
)
def test_a_rule_becomes_a_list(config: dict[str, Any], lists: dict[str, Any]):
    found = with_layer_lists(config)
    assert found == config | lists
    assert with_layer_lists(found) == found
    one, other = (parse_config(given, "").to_dict() for given in (config, found))
    assert one == other


def test_a_part_keeps_its_place():
    text = {"model_type": "gemma3_text", "num_hidden_layers": 2, "sliding_window_pattern": 2}
    found = with_layer_lists({"model_type": "gemma3", "text_config": text})
    stated = text | {"layer_types": [SLIDING, FULL]}
    assert found == {"model_type": "gemma3", "text_config": stated}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "num_hidden_layers": 3},
        {"model_type": "qwen2", "num_hidden_layers": 3, "max_window_layers": 2},
        {"model_type": "gpt2", "n_layer": 3},
        {"model_type": "gemma2", "num_hidden_layers": 2, "layer_types": [FULL, FULL]},
        {"model_type": "unknown", "num_hidden_layers": 3},
        {"num_hidden_layers": 3},
    ],
)
def test_where_no_rule_is_nothing_is_stated(config: dict[str, Any]):
    assert with_layer_lists(config) is config


def test_a_value_that_the_class_refuses_is_one_message():
    config = {"model_type": "gemma2", "num_hidden_layers": 2, "layer_types": [FULL]}
    with pytest.raises(EvaluationError, match=r"^here: its config.json can't be read: .*layer_t"):
        parse_config(config, "here")
