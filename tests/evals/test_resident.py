"""The live model: filled with a parent's tensors it is that parent."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, write_family
from transformers import AutoModelForCausalLM

from evals.errors import EvaluationError
from evals.resident import Resident, build_resident, load_tokenizer
from merge_core.checkpoint import open_checkpoint

TOKENS = torch.tensor([[1, 20, 33, 7, 50], [1, 9, 9, 14, 88]])
Pour = Callable[[Path, Path], Resident]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder with `base` and `a` of a family, each written once."""
    root = tmp_path_factory.mktemp("families")

    def folder(family: str) -> Path:
        if not (root / family).exists():
            write_family(root / family, family, experts=1, layers=2, spread=0.2)
        return root / family

    return folder


def build(folder: Path, **config: object) -> Resident:
    """A resident of a model folder, its configuration changed."""
    stored = json.loads((folder / "config.json").read_text())
    names = load_file(folder / "model.safetensors")
    return build_resident(stored | config, folder, names, torch.float32, torch.device("cpu"))


@torch.inference_mode()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(TOKENS).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resident_filled_with_a_parent_is_that_parent(
    families: Callable[[str], Path], pour: Pour, family: str
):
    folder = families(family)
    resident = pour(folder / "base", folder / "a")
    loaded = AutoModelForCausalLM.from_pretrained(folder / "a", dtype=torch.float32).eval()
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32).eval()
    assert torch.equal(logits(resident.model), logits(loaded))
    assert not torch.allclose(logits(loaded), logits(base), atol=1e-3)
    assert not resident.model.training


@pytest.mark.parametrize("family", FAMILIES)
def test_it_generates_what_the_parent_generates(
    families: Callable[[str], Path], pour: Pour, family: str
):
    folder = families(family)
    resident = pour(folder / "base", folder / "a")
    loaded = AutoModelForCausalLM.from_pretrained(folder / "a", dtype=torch.float32).eval()
    mask = torch.ones_like(TOKENS)
    ask = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    assert torch.equal(resident.model.generate(TOKENS, **ask), loaded.generate(TOKENS, **ask))


@pytest.mark.parametrize("family", FAMILIES)
def test_slots_hold_each_storage_once(families: Callable[[str], Path], family: str):
    resident = build(families(family) / "base")
    pointers = [tensor.data_ptr() for tensor in resident.slots.values()]
    assert len(set(pointers)) == len(pointers)
    assert set(pointers) == {tensor.data_ptr() for tensor in resident.model.state_dict().values()}


def test_a_tied_head_in_the_checkpoint_needs_no_slot_of_its_own(
    families: Callable[[str], Path], tmp_path: Path
):
    folder = Path(shutil.copytree(families("llama_tied") / "base", tmp_path / "m"))
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    slots = build(folder).slots
    assert ("lm_head.weight" in slots) != ("model.embed_tokens.weight" in slots)


def test_a_checkpoint_saved_without_the_base_prefix_works(
    families: Callable[[str], Path], pour: Pour, tmp_path: Path
):
    source = families("gpt2") / "a"
    folder = Path(shutil.copytree(source, tmp_path / "bare"))
    tensors = load_file(source / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    assert "wte.weight" in bare
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    assert torch.equal(logits(pour(folder, folder).model), logits(loaded))


@pytest.mark.parametrize(
    ("family", "name"),
    [("gpt2", "transformer.h.0.attn.bias"), ("gpt_neox", "gpt_neox.layers.0.attention.bias")],
)
def test_buffers_of_old_checkpoints_are_left_out(
    families: Callable[[str], Path], tmp_path: Path, family: str, name: str
):
    """As transformers does; openai-community/gpt2 and the Pythias have them."""
    folder = Path(shutil.copytree(families(family) / "base", tmp_path / "old"))
    tensors = load_file(folder / "model.safetensors") | {name: torch.ones(1, 1, 4, 4)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert name not in build(folder).slots


def test_the_requested_dtype_is_that_of_the_weights(families: Callable[[str], Path]):
    folder = families("llama") / "base"
    checkpoint = open_checkpoint(folder, "base")
    live = build_resident(
        checkpoint.config, folder, checkpoint.tensors, torch.bfloat16, torch.device("cpu")
    )
    assert {slot.dtype for slot in live.slots.values()} == {torch.bfloat16}


def test_an_unknown_family_is_refused(families: Callable[[str], Path]):
    with pytest.raises(EvaluationError, match=r"transformers knows no model_type 'llamo'$"):
        build(families("llama") / "base", model_type="llamo")


def test_code_of_a_models_own_is_never_run(families: Callable[[str], Path]):
    own = {"AutoModelForCausalLM": "modeling_evil.Evil"}
    with pytest.raises(EvaluationError, match="it brings code of its own, which is never run"):
        build(families("llama") / "base", model_type="evil", auto_map=own)


def test_a_family_without_a_causal_model_is_refused(families: Callable[[str], Path]):
    with pytest.raises(EvaluationError, match="no causal language model in it"):
        build(families("llama") / "base", model_type="t5")


def test_a_tensor_without_a_place_is_named(families: Callable[[str], Path]):
    folder = families("llama") / "base"
    checkpoint = open_checkpoint(folder, "base")
    names = [*checkpoint.tensors, "model.layers.0.experts.weight"]
    with pytest.raises(EvaluationError) as error:
        build_resident(checkpoint.config, folder, names, torch.float32, torch.device("cpu"))
    assert "tensor 'model.layers.0.experts.weight' of the checkpoint has no place" in str(
        error.value
    )


def test_a_tensor_that_no_merge_writes_is_named(families: Callable[[str], Path]):
    with pytest.raises(EvaluationError) as error:
        build(families("llama") / "base", num_hidden_layers=3)
    assert "LlamaForCausalLM needs tensor 'model.layers.2." in str(error.value)
    assert "(and 8 more), which the checkpoint does not have" in str(error.value)


def test_a_missing_tokenizer_is_one_message(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(EvaluationError, match="its tokenizer can't be loaded"):
        load_tokenizer(tmp_path)
