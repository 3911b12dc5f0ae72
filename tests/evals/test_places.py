"""Whether layers may be moved is found by running them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import family_logits, write_family_model
from tiny_models import tokenizer

from evals.places import rooted
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
    assert torch.equal(family_logits(resident.model), before)
    assert resident.wiring.kinds == kinds


def test_layers_that_scale_by_their_number_must_not(tmp_path: Path):
    resident = live(tmp_path, "gpt2", scale_attn_by_inverse_layer_idx=True)
    assert resident.wiring is not None
    assert rooted(resident.model, resident.wiring) == (
        "layers of GPT2LMHeadModel must keep their places: with the same weights and inputs, "
        "layer 1 doesn't give what layer 0 does"
    )


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
