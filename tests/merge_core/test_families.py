"""Every family: opened by names alone, merged with itself it is itself, its layers can be moved."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_families import (
    DENSE,
    ENCODER_DECODERS,
    ENCODERS,
    MIXTURES,
    REFUSED,
    STATEFUL,
    UNBUILT,
    family_logits,
    load_family,
    write_family_model,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from merge_core.checkpoint import Checkpoint, open_checkpoint
from merge_core.errors import CheckpointError, RecipeError
from merge_core.export import write_model
from merge_core.parents import Parents
from merge_core.plan import compile_plan
from merge_core.recipe import from_dict

EVERY = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
ALL = (*DENSE, *MIXTURES, *STATEFUL, *ENCODERS, *ENCODER_DECODERS)
LINEAR = {"merge_method": "linear", "models": ["a", "b"], "parameters": {"weight": 0.5}}
SLERP = {"merge_method": "slerp", "base_model": "a", "models": ["a", "b"], "parameters": {"t": 0.5}}
# Experts that are multiplied in one go: the result's last bit follows their addresses.
LOOSE = dict.fromkeys(("granitemoe", "granitemoe_swa", "granitemoeshared", "inkling2_text"), 1e-6)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Callable[[str], Path]:
    """Folder of a family's model, written once."""
    root = tmp_path_factory.mktemp("families")

    def folder(family: str) -> Path:
        if not (root / family).exists():
            write_family_model(root / family, family)
        return root / family

    return folder


@pytest.mark.parametrize("family", ALL)
def test_a_model_merged_with_itself_is_itself(model, tmp_path, family):
    folder = model(family)
    same = {alias: open_checkpoint(folder, alias) for alias in "ab"}
    original = load_family(folder, family)
    for recipe in (LINEAR, SLERP):
        merged = load_family(merge(recipe, same, tmp_path / recipe["merge_method"]), family)
        for name, tensor in original.state_dict().items():
            assert torch.equal(merged.state_dict()[name], tensor), name
        torch.testing.assert_close(
            family_logits(merged), family_logits(original), rtol=0, atol=LOOSE.get(family, 0)
        )


@pytest.mark.parametrize("family", ALL)
def test_a_model_merged_with_another_is_neither(model, tmp_path, family):
    other = write_family_model(tmp_path / "b", family, seed=1)
    parents = {"a": open_checkpoint(model(family), "a"), "b": open_checkpoint(other, "b")}
    merged = load_family(merge(LINEAR, parents, tmp_path / "out"), family).state_dict()
    one, two = (load_family(folder, family).state_dict() for folder in (model(family), other))
    for name in one:
        expected = (one[name] + two[name]) / 2 if one[name].is_floating_point() else one[name]
        torch.testing.assert_close(merged[name], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("family", [f for f in ALL if f not in ENCODER_DECODERS])
def test_a_repeated_layer_is_the_layer_that_it_repeats(model, tmp_path, family):
    parent = open_checkpoint(model(family), "a")
    parts = [{"sources": [{"model": "a", "layer_range": cut}]} for cut in ([0, 3], [2, 3])]
    recipe = {"merge_method": "passthrough", "slices": parts}
    out = merge(recipe, {"a": parent}, tmp_path / "out")
    deeper = open_checkpoint(out, "out")
    assert (deeper.layout.depth, parent.layout.depth) == (4, 3)
    read = Parents({"out": deeper, "a": parent}, torch.device("cpu"))
    for name in deeper.layers[3]:
        original = read.tensor("a", parent.layout.moved(name, 2))
        assert torch.equal(read.tensor("out", name), original), name
    family_logits(load_family(out, family))


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_each_stack_has_slices_of_its_own(model, tmp_path, family):
    parent = open_checkpoint(model(family), "a")
    cuts = [{"sources": [{"model": "a", "layer_range": cut}]} for cut in ([0, 3], [2, 3])]
    recipe = {
        "merge_method": "passthrough",
        "modules": {"encoder": {"slices": cuts}, "decoder": {"models": ["a"]}},
    }
    out = merge(recipe, {"a": parent}, tmp_path / "out")
    stacks = {stack.name: stack.depth for stack in open_checkpoint(out, "out").layout.stacks}
    assert stacks == {"encoder": 4, "decoder": 3}
    family_logits(load_family(out, family))


def test_layers_of_two_kinds_in_one_slice_are_called_so(model, tmp_path):
    """T5's first layers alone hold the table of relative positions."""
    parents = {name: open_checkpoint(model("t5"), name) for name in "ac"}
    pair = [{"model": "a", "layer_range": [0, 1]}, {"model": "c", "layer_range": [1, 2]}]
    cuts = {"slices": [{"sources": pair}]}
    recipe = {"merge_method": "linear", "modules": {"encoder": cuts, "decoder": {"models": ["a"]}}}
    message = r"bias.*': the layer of 'a' in modules.encoder.slices\[0\] has it and that of 'c' "
    with pytest.raises(RecipeError, match=rf"{message}beside it does not, .* of several kinds;"):
        merge(recipe | {"parameters": {"weight": 0.5}}, parents, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("family", [f for f in EVERY if f not in {*ALL, *REFUSED, *UNBUILT}])
def test_every_other_causal_family(model, tmp_path, family):
    """The whole mapping of transformers: whoever adds a family learns here whether it fits."""
    test_a_model_merged_with_itself_is_itself(model, tmp_path, family)


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_families_that_number_their_layers_otherwise_are_refused(model, family):
    with pytest.raises(CheckpointError, match=r"config.json (states|has none of)"):
        open_checkpoint(model(family), family)


def test_vision_and_text_are_two_stacks(tmp_path):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    text = sizes | {"vocab_size": 104, "num_hidden_layers": 2, "num_key_value_heads": 2}
    vision = sizes | {"num_hidden_layers": 3, "image_size": 28, "patch_size": 14}
    tokens = {"image_token_index": 100, "boi_token_index": 101, "eoi_token_index": 102}
    config = Gemma3Config(
        text_config=text | {"head_dim": 8}, vision_config=vision, mm_tokens_per_image=4, **tokens
    )
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "a")
    parent = open_checkpoint(tmp_path / "a", "a")
    assert [(s.name, s.depth) for s in parent.layout.stacks] == [
        ("vision_tower", 3),
        ("text_decoder", 2),
    ]
    cut = [{"sources": [{"model": "a", "layer_range": [0, 1]}]}]
    modules = {"text_decoder": {"slices": cut}, "vision_tower": {"models": ["a"]}}
    out = merge({"merge_method": "passthrough", "modules": modules}, {"a": parent}, tmp_path / "b")
    written = json.loads((out / "config.json").read_text())
    assert written["text_config"]["num_hidden_layers"] == 1
    assert len(written["text_config"]["layer_types"]) == 1
    assert written["vision_config"]["num_hidden_layers"] == 3
    _, report = Gemma3ForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_a_bare_model_merges_with_one_that_has_a_prefix(model, tmp_path):
    """As openai-community/gpt2 and its fine-tunes: `h.0.…` beside `transformer.h.0.…`."""
    from safetensors.torch import load_file, save_file

    folder, bare = model("gpt2"), tmp_path / "bare"
    bare.mkdir()
    stored = load_file(folder / "model.safetensors")
    stripped = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    save_file(stripped, bare / "model.safetensors", metadata={"format": "pt"})
    (bare / "config.json").write_text((folder / "config.json").read_text())
    opened = {"a": open_checkpoint(folder, "a"), "b": open_checkpoint(bare, "b")}
    original = family_logits(load_family(folder, "gpt2"))
    for first, second in (("a", "b"), ("b", "a")):
        recipe = LINEAR | {"models": [first, second]}
        out = merge(recipe, opened, tmp_path / f"{first}{second}")
        assert torch.equal(family_logits(load_family(out, "gpt2")), original)


def test_tied_and_untied_heads_merge_into_an_untied_one(tmp_path):
    tied = write_family_model(tmp_path / "a", "llama", tie_word_embeddings=True)
    untied = write_family_model(tmp_path / "b", "llama", seed=1, tie_word_embeddings=False)
    parents = {"a": open_checkpoint(tied, "a"), "b": open_checkpoint(untied, "b")}
    one, two = (load_family(folder, "llama").state_dict() for folder in (tied, untied))
    head = (one["model.embed_tokens.weight"] + two["lm_head.weight"]) / 2
    for models in (["a", "b"], ["b", "a"]):
        out = merge(LINEAR | {"models": models}, parents, tmp_path / "".join(models))
        assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
        torch.testing.assert_close(load_family(out, "llama").state_dict()["lm_head.weight"], head)


def merge(recipe: dict, parents: dict[str, Checkpoint], folder: Path) -> Path:
    plan = compile_plan(from_dict(recipe), parents)
    assert not plan.warnings
    write_model(plan, Parents(parents, torch.device("cpu")), folder)
    return folder
