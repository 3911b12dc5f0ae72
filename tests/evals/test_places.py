"""Whether layers may be moved is found by running them."""

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import family_logits, write_family_model
from tiny_models import tokenizer

from evals.errors import EvaluationError
from evals.places import rooted, rooted_form
from evals.resident import Resident, build_resident
from merge_core.checkpoint import open_checkpoint


def live(folder: Path, family: str, **more: Any) -> Resident:
    """A live model filled with numbers."""
    write_family_model(folder, family, layers=5, **more)
    tokenizer().save_pretrained(folder)
    opened = open_checkpoint(folder, "x")
    cpu = torch.device("cpu")
    found = build_resident(opened.config, folder, opened.tensors, torch.float32, cpu)
    for slot in found.slots.values():
        torch.nn.init.normal_(slot, std=0.1)
    return found


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("gpt_neox", {}),
        ("gemma2", {"sliding_window": 3}),
        ("smollm3", {"no_rope_layers": [1, 1, 0, 1, 0]}),
        ("mixtral", {}),
        ("deepseek_v3", {}),
    ],
)
def test_most_layers_may_be_moved_and_nothing_is_changed(
    tmp_path: Path, family: str, more: dict[str, Any]
):
    resident = live(tmp_path, family, **more)
    assert resident.wiring is not None
    before, kinds = family_logits(resident.model), resident.wiring.kinds
    assert rooted(resident.model, resident.wiring) is None
    assert rooted_form(open_checkpoint(tmp_path, "x").config, "x") is None
    assert torch.equal(family_logits(resident.model), before)
    assert resident.wiring.kinds == kinds


def test_layers_that_scale_by_their_number_must_not(tmp_path: Path):
    resident = live(tmp_path, "gpt2", scale_attn_by_inverse_layer_idx=True)
    assert resident.wiring is not None
    told = (
        "layers of GPT2Model must keep their places: with the same weights and inputs, layer 1 "
        "doesn't give what layer 0 does"
    )
    assert rooted(resident.model, resident.wiring) == told
    assert rooted_form(open_checkpoint(tmp_path, "x").config, "x") == told


def test_the_form_of_a_large_model_needs_the_weights_of_one_layer(tmp_path: Path):
    """Its embeddings would be 20 GB, its 64 layers 2."""
    write_family_model(tmp_path, "llama", layers=2)
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 64}
    config = {**open_checkpoint(tmp_path, "x").config, **sizes, "vocab_size": 10**7}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert rooted_form(config, "x") is None
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 10**9


def test_a_form_that_is_too_large_or_unknown_is_told(tmp_path: Path):
    write_family_model(tmp_path, "llama", layers=2)
    config = open_checkpoint(tmp_path, "x").config
    with pytest.raises(EvaluationError, match=r"x: a layer of [0-9,]+ numbers is too large"):
        rooted_form({**config, "intermediate_size": 10**8}, "x")
    with pytest.raises(EvaluationError, match="transformers knows no model_type 'none'"):
        rooted_form({**config, "model_type": "none"}, "x")
    with pytest.raises(EvaluationError, match="x: its form can't be built: "):
        rooted_form({**config, "hidden_act": "none"}, "x")


def test_a_rule_within_the_layer_is_found_in_kinds_that_stand_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Full attention only, and only in layer 3: as built, layer 2 is the only one of it."""
    kinds = ["sliding_attention"] * 2 + ["full_attention"] + ["sliding_attention"] * 2
    resident = live(tmp_path, "gemma3_text", sliding_window=3, layer_types=kinds)
    layer: Any = type(resident.wiring.layers[0])  # pyright: ignore
    real = layer.forward

    def ruled(self: Any, *args: Any, **keywords: Any) -> Any:
        found = real(self, *args, **keywords)
        special = self.self_attn.sliding_window is None and self.self_attn.layer_idx == 3
        return 2 * found if special else found

    monkeypatch.setattr(layer, "forward", ruled)
    assert "layer 3 doesn't give what layer 2 does" in (
        rooted(resident.model, resident.wiring) or ""  # pyright: ignore
    )
