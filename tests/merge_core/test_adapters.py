"""LoRA adapters as parents: the explicit formula, and every adapter that can't be merged."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_adapters import PREFIX, low_rank, write_adapter
from tiny_models import write_model as write_tiny

from merge_core.adapters import with_adapter
from merge_core.checkpoint import digest, open_checkpoint
from merge_core.errors import CheckpointError
from merge_core.parents import Parents
from merge_core.plan import compile_plan
from merge_core.recipe import from_dict

Q = "model.layers.0.self_attn.q_proj"
V = "model.layers.2.self_attn.v_proj"
DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture
def base(family) -> Path:
    return family("llama") / "base"


def adapted(base: Path, adapter: Path):
    """Every tensor of the model with its adapter, and of the model alone."""
    checkpoint = with_adapter(open_checkpoint(base, "x"), adapter)
    parents = Parents({"x": checkpoint}, torch.device("cpu"))
    return {name: parents.tensor("x", name) for name in checkpoint.tensors}, load_file(
        base / "model.safetensors"
    )


def changed(mine, theirs) -> set[str]:
    assert mine.keys() == theirs.keys()
    return {name for name in mine if not torch.equal(mine[name], theirs[name])}


def test_a_low_rank_change_is_the_formula(base, tmp_path):
    parts = low_rank(base, [Q, V, DOWN])
    write_adapter(tmp_path, parts)
    mine, theirs = adapted(base, tmp_path)
    assert changed(mine, theirs) == {f"{module}.weight" for module in (Q, V, DOWN)}
    for module in (Q, V, DOWN):
        a, b = (parts[f"{module}.lora_{part}.weight"].double() for part in "AB")
        expected = theirs[f"{module}.weight"].double() + 8 / 4 * b @ a
        torch.testing.assert_close(mine[f"{module}.weight"].double(), expected, atol=1e-6, rtol=0)


def test_a_float64_model_is_changed_in_float64(base, tmp_path):
    wide = write_tiny(tmp_path / "wide", near=base, dtype=torch.float64)
    parts = low_rank(base, [Q])
    write_adapter(tmp_path / "lora", parts)
    mine, theirs = adapted(wide, tmp_path / "lora")
    a, b = (parts[f"{Q}.lora_{part}.weight"].double() for part in "AB")
    expected = theirs[f"{Q}.weight"] + 8 / 4 * b @ a
    torch.testing.assert_close(mine[f"{Q}.weight"], expected, atol=1e-14, rtol=0)


def test_rank_stabilised_and_patterns(base, tmp_path):
    parts = low_rank(base, [Q], rank=2) | low_rank(base, [V, DOWN], rank=4)
    config = {"use_rslora": True, "rank_pattern": {"layers.0.self_attn.q_proj": 2}}
    write_adapter(tmp_path, parts, alpha_pattern={"v_proj": 3, "proj": 100}, **config)
    mine, theirs = adapted(base, tmp_path)
    for module, scale in ((Q, 8 / math.sqrt(2)), (V, 3 / 2), (DOWN, 8 / 2)):
        a, b = (parts[f"{module}.lora_{part}.weight"] for part in "AB")
        change = mine[f"{module}.weight"] - theirs[f"{module}.weight"]
        torch.testing.assert_close(change, scale * b @ a, atol=1e-6, rtol=0)


def test_a_bf16_model_is_rounded_once(tmp_path):
    base = write_tiny(tmp_path / "base", dtype=torch.bfloat16)
    parts = low_rank(base, [Q])
    write_adapter(tmp_path / "lora", parts)
    mine, theirs = adapted(base, tmp_path / "lora")
    a, b = (parts[f"{Q}.lora_{part}.weight"] for part in "AB")
    expected = (theirs[f"{Q}.weight"].float() + 2 * b @ a).bfloat16()
    assert torch.equal(mine[f"{Q}.weight"], expected)


@pytest.mark.parametrize("stated", [True, False])
def test_gpt2_stores_its_weights_transposed(family, tmp_path, stated):
    """The shape tells, whatever the flag says; where both fit, the flag."""
    base = family("gpt2") / "base"
    module = "transformer.h.0.attn.c_attn"
    parts = low_rank(base, [module], transposed=True)
    write_adapter(tmp_path, parts, fan_in_fan_out=stated)
    mine, theirs = adapted(base, tmp_path)
    a, b = (parts[f"{module}.lora_{part}.weight"] for part in "AB")
    change = mine[f"{module}.weight"] - theirs[f"{module}.weight"]
    torch.testing.assert_close(change, (2 * b @ a).T, atol=1e-6, rtol=0)


def test_a_square_weight_follows_the_flag(family, tmp_path):
    base, module = family("gpt2") / "base", "transformer.h.0.attn.c_proj"
    parts = low_rank(base, [module])
    a, b = (parts[f"{module}.lora_{part}.weight"] for part in "AB")
    for stated, change in ((True, (2 * b @ a).T), (False, 2 * b @ a)):
        write_adapter(tmp_path, parts, fan_in_fan_out=stated)
        mine, theirs = adapted(base, tmp_path)
        found = mine[f"{module}.weight"] - theirs[f"{module}.weight"]
        torch.testing.assert_close(found, change, atol=1e-6, rtol=0)


def test_embeddings_and_whole_tensors(base, tmp_path):
    theirs = load_file(base / "model.safetensors")
    embedding, head = "model.embed_tokens", "lm_head.weight"
    rows, width = theirs[f"{embedding}.weight"].shape
    down, up = torch.randn(4, rows), torch.randn(width, 4)
    parts = {
        f"{embedding}.lora_embedding_A": down,
        f"{embedding}.lora_embedding_B": up,
        f"{embedding}.base_layer.weight": theirs[f"{embedding}.weight"] + 1,
        head: theirs[head] * 2,
    }
    write_adapter(tmp_path, parts)
    mine, _ = adapted(base, tmp_path)
    expected = theirs[f"{embedding}.weight"] + 1 + 2 * (up @ down).T
    torch.testing.assert_close(mine[f"{embedding}.weight"], expected)
    assert torch.equal(mine[head], theirs[head] * 2)


@pytest.mark.parametrize("infix", ["modules_to_save.", "modules_to_save.default."])
def test_older_names_of_whole_tensors(base, tmp_path, infix):
    theirs = load_file(base / "model.safetensors")
    write_adapter(tmp_path, {f"lm_head.{infix}weight": theirs["lm_head.weight"] * 2})
    mine, _ = adapted(base, tmp_path)
    assert changed(mine, theirs) == {"lm_head.weight"}


def test_dora_gives_each_row_its_trained_length(base, tmp_path):
    parts = low_rank(base, [Q])
    rows = parts[f"{Q}.lora_B.weight"].shape[0]
    length = torch.rand(rows) + 0.5
    write_adapter(tmp_path, parts | {f"{Q}.lora_magnitude_vector": length}, use_dora=True)
    mine, theirs = adapted(base, tmp_path)
    a, b = (parts[f"{Q}.lora_{part}.weight"] for part in "AB")
    straight = theirs[f"{Q}.weight"] + 2 * b @ a
    expected = length[:, None] * straight / straight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(mine[f"{Q}.weight"], expected, atol=1e-6, rtol=1e-5)


def test_a_model_that_is_saved_without_its_heads_prefix(base, tmp_path):
    """Names are proved against the model's, with or without `model.` before them."""
    parts = {name.removeprefix("model."): t for name, t in low_rank(base, [Q]).items()}
    write_adapter(tmp_path / "shorter", parts)
    mine, theirs = adapted(base, tmp_path / "shorter")
    assert changed(mine, theirs) == {f"{Q}.weight"}
    longer = {f"language.{name}": t for name, t in low_rank(base, [Q]).items()}
    write_adapter(tmp_path / "longer", longer)
    assert changed(*adapted(base, tmp_path / "longer")) == {f"{Q}.weight"}


def test_the_plan_reads_no_tensor(base, tmp_path):
    write_adapter(tmp_path, low_rank(base, [Q]))
    checkpoint = with_adapter(open_checkpoint(base, "x"), tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    plan = compile_plan(
        from_dict({"merge_method": "passthrough", "models": ["x"]}), {"x": checkpoint}
    )
    assert len(plan.steps) == len(checkpoint.tensors)


def test_the_digest_covers_the_adapter(base, tmp_path):
    alone = open_checkpoint(base, "x")
    write_adapter(tmp_path / "one", low_rank(base, [Q]))
    write_adapter(tmp_path / "two", low_rank(base, [Q], seed=1))
    write_adapter(tmp_path / "three", low_rank(base, [Q]), lora_alpha=9)
    found = [digest(with_adapter(alone, tmp_path / name)) for name in ("one", "two", "three")]
    assert len({digest(alone), *found}) == 4
    assert digest(with_adapter(open_checkpoint(base, "y"), tmp_path / "one")) == found[0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "it is a IA3 adapter, and only LoRA is a change of weights"),
        ({"peft_type": "PROMPT_TUNING"}, "merge it into its model with peft and name the result"),
        ({"lora_bias": True}, "lora_bias is set: it adds biases"),
        ({"layer_replication": [[0, 2]]}, "write them as slices of the recipe"),
        ({"alora_invocation_tokens": [1]}, "it acts after certain tokens only"),
        ({"trainable_token_indices": [1]}, "merge it with peft's merge_and_unload"),
        ({"use_qalora": True}, "it is made for a quantised base"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changes the base model"),
        ({"lora_alpha": "8"}, "lora_alpha must be a number, got '8'"),
        ({"lora_alpha": None}, "lora_alpha must be a number, got None"),
    ],
)
def test_adapters_that_are_refused(base, tmp_path, config, message):
    write_adapter(tmp_path, low_rank(base, [Q]), **config)
    refused(base, tmp_path, message)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model.layers.9.x.lora_A.weight": (4, 4), "model.layers.9.x.lora_B.weight": (4, 4)},
         f"tensor '{PREFIX}model.layers.9.x.lora_A.weight' belongs to 'model.layers.9.x.weight'"),
        ({f"{Q}.lora_A.weight": (4, 32)}, f"module '{Q}' lacks lora_A or lora_B"),
        ({f"{Q}.lora_A.weight": (4, 8), f"{Q}.lora_B.weight": (8, 4)}, "does not give the shape"),
        ({f"{Q}.lora_A.weight": (4, 32), f"{Q}.lora_B.weight": (32, 5)}, "does not give the shape"),
        ({"lm_head.weight": (105, 32)}, "an adapter that resizes its model"),
        ({"model.embed_tokens.lora_embedding_A": (4, 104),
          "model.embed_tokens.lora_embedding_B": (32, 4),
          "model.embed_tokens.lora_magnitude_vector": (104,)}, "DoRA on the embedding"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(base, tmp_path, tensors, message):
    write_adapter(tmp_path, {name: torch.zeros(shape) for name, shape in tensors.items()})
    refused(base, tmp_path, message)


def test_an_adapter_of_a_head_that_is_tied(family, tmp_path):
    parts = {
        "lm_head.lora_A.weight": torch.zeros(4, 32),
        "lm_head.lora_B.weight": torch.zeros(9, 4),
    }
    write_adapter(tmp_path, parts)
    refused(family("llama_tied") / "base", tmp_path, "ties its head to its embeddings, so merge")


def test_files_that_are_missing_or_damaged(base, tmp_path):
    refused(base, tmp_path, "there is no adapter_config.json; give a folder that peft has saved")
    (tmp_path / "adapter_config.json").write_text("{")
    refused(base, tmp_path, "adapter_config.json is not valid JSON")
    (tmp_path / "adapter_config.json").write_text("[]")
    refused(base, tmp_path, "holds no JSON object")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8}))
    refused(base, tmp_path, "there is no adapter_model.safetensors; copy the adapter again")
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    refused(base, tmp_path, "adapter_model.bin is pickled and is never loaded")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    refused(base, tmp_path, "is not readable")


def refused(base: Path, adapter: Path, message: str) -> None:
    with pytest.raises(CheckpointError) as error:
        with_adapter(open_checkpoint(base, "x"), adapter)
    assert message in str(error.value)
    assert str(error.value).startswith(f"adapter {adapter} of model 'x': ")
