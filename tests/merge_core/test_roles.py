"""Roles read from names, and filters that mean the same tensors."""

import pytest
import torch
from tiny_families import DENSE, ENCODER_DECODERS, ENCODERS, MIXTURES, auto_class, family_config

from merge_core.errors import RecipeError
from merge_core.naming import Layout, find_layout
from merge_core.recipe import read_parameters
from merge_core.roles import ROLES, role_filters, tensor_role
from merge_core.values import resolve

FAMILIES = (*DENSE, *MIXTURES, *ENCODERS, *ENCODER_DECODERS)
SHOWN = ("llama", "qwen3", "gemma2", "gpt2", "opt", "bloom", "mixtral", "bert", "t5", "bart")


def tensors_of(family: str) -> dict[str, Layout]:
    with torch.device("meta"):
        model = auto_class(family).from_config(family_config(family))
    layout = find_layout(model.state_dict(), model.config.to_dict(), family)
    return dict.fromkeys(model.state_dict(), layout)


def check_filters(groups: list[str], tensors: dict[str, Layout]) -> None:
    """mergekit's own reading of the filters must give each tensor its role's group."""
    filters, missing = role_filters(groups, tensors)
    written = [{"value": groups[at], "filter": text} for text, at in filters]
    ((_, settings),) = read_parameters({"weight": written}, "")
    for name, layout in tensors.items():
        role = tensor_role(name, layout)
        assert resolve(settings, name, 0.0) == (role if role in groups else "*"), name
    assert set(groups) - {"*"} - set(missing) == set(groups) & {
        tensor_role(name, layout) for name, layout in tensors.items()
    }


@pytest.mark.parametrize("family", SHOWN)
def test_filters_mean_the_tensors_of_a_role(family: str):
    tensors = tensors_of(family)
    for groups in ([*ROLES, "*"], ["attention", "*"], ["norm", "mlp", "*"], ["head", "*"]):
        check_filters(groups, tensors)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_filters_mean_the_tensors_of_a_role_in_every_family(family: str):
    check_filters([*ROLES, "*"], tensors_of(family))


LLAMA = {
    "model.embed_tokens.weight": "embedding",
    "model.layers.1.input_layernorm.weight": "norm",
    "model.layers.1.self_attn.q_proj.weight": "attention",
    "model.layers.1.self_attn.q_norm.weight": "norm",
    "model.layers.1.post_attention_layernorm.weight": "norm",
    "model.layers.1.mlp.gate_proj.weight": "mlp",
    "model.layers.1.mixer.A_log": None,
    "model.norm.weight": "norm",
    "lm_head.weight": "head",
}
LAYOUT = find_layout(["model.layers.0.mlp.x.weight", *LLAMA], {"num_hidden_layers": 2}, "a model")


@pytest.mark.parametrize(("name", "role"), LLAMA.items())
def test_a_role_is_read_from_the_name(name: str, role: str | None):
    assert tensor_role(name, LAYOUT) == role


def test_what_protects_nothing_is_left_out():
    tensors = dict.fromkeys(LLAMA, LAYOUT)
    filters, _ = role_filters(["mlp", "*"], tensors)
    assert filters == ((".mlp.", 0), (None, 1))
    inner, _ = role_filters(["attention", "*"], tensors)
    assert inner == ((".q_norm.", 1), (".self_attn.", 0), (None, 1))


def test_without_the_rest_a_norm_inside_of_attention_cant_be_told_apart():
    with pytest.raises(RecipeError, match=r'q_norm.*add "\*"'):
        role_filters(["attention"], dict.fromkeys(LLAMA, LAYOUT))


def test_roles_that_no_tensor_has_are_told():
    tensors = {name: LAYOUT for name in LLAMA if "lm_head" not in name}
    assert role_filters(["head", "*"], tensors)[1] == ("head",)
