"""Every causal family alive; experts that are stored apart and live packed, as views."""

from pathlib import Path

import pytest
import torch
from tiny_families import (
    DENSE,
    MIXTURES,
    NOT_LIVE,
    REFUSED,
    STATEFUL,
    UNBUILT,
    build_family,
    family_logits,
    load_family,
    write_family_model,
)
from tiny_models import tokenizer
from transformers.core_model_loading import Concatenate, MergeModulelist, Transpose, WeightConverter
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from evals.errors import EvaluationError
from evals.packing import unpack
from evals.resident import Resident, build_resident, match_slots
from merge_core.apply import Workbench, apply
from merge_core.checkpoint import open_checkpoint
from merge_core.parents import Parents
from merge_core.plan import compile_plan
from merge_core.recipe import from_dict

CPU = torch.device("cpu")
EVERY = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
FAST = (*DENSE, *MIXTURES, *STATEFUL)
W1, W2, W3 = ("experts.*.w1.weight", "experts.*.w2.weight", "experts.*.w3.weight")


@pytest.mark.parametrize("family", FAST)
def test_a_resident_filled_with_a_parent_is_that_parent(tmp_path: Path, family: str):
    folder = write_family_model(tmp_path / "a", family)
    resident = fill(folder)
    assert all(slot.is_contiguous() for slot in resident.slots.values())
    # Torch multiplies in another order where a weight wants a gradient: the last bit of some.
    found = family_logits(resident.model.requires_grad_(False))
    expected = family_logits(load_family(folder, family).requires_grad_(False))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", sorted({*EVERY} - {*FAST, *REFUSED, *UNBUILT, *NOT_LIVE, "bart"})
)
def test_every_other_causal_family_alive(tmp_path: Path, family: str):
    test_a_resident_filled_with_a_parent_is_that_parent(tmp_path, family)


@pytest.mark.parametrize("family", ["inkling2_text", "olmo_hybrid"])
def test_a_family_that_lives_in_another_form_is_refused(tmp_path: Path, family: str):
    with pytest.raises(EvaluationError, match="is packed with others in the live model: a packing"):
        fill(write_family_model(tmp_path / "a", family))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe"])
def test_every_expert_has_a_slot_of_its_own(tmp_path: Path, family: str):
    folder = write_family_model(tmp_path / "a", family)
    checkpoint, model = open_checkpoint(folder, "a"), build_family(family, seed=1)
    slots = match_slots(model, checkpoint.tensors)
    experts = [name for name in slots if ".experts." in name]
    assert len(experts) == 3 * 4 * 3  # layers, experts, matrices
    for name, slot in slots.items():
        assert slot.shape == checkpoint.tensors[name].shape
    slots[experts[-1]].view(-1)[3:5].copy_(torch.tensor([7.0, 8.0]))
    live = model.state_dict()
    assert sum(int((tensor == 8.0).sum()) for tensor in live.values()) == 1


def test_experts_are_ordered_by_number():
    rule = WeightConverter(W2, "experts.down_proj", [MergeModulelist(dim=0)])
    packed = torch.arange(12.0).view(12, 1, 1)
    names = [f"experts.{number}.w2.weight" for number in (10, 9, 1, 0, 11, 2, 3, 4, 5, 6, 7, 8)]
    for name, view in unpack(packed, rule, {W2: names}).items():
        assert view.item() == float(name.split(".")[1])


def test_pieces_are_those_that_transformers_joins():
    rule = WeightConverter(
        [W1, W3], "experts.gate_up_proj", [MergeModulelist(dim=0), Concatenate(dim=1)]
    )
    packed = torch.arange(24.0).view(2, 4, 3)
    names = {p: [p.replace("*", str(expert)) for expert in range(2)] for p in (W1, W3)}
    views = unpack(packed, rule, names)
    stored = {pattern: [views[name] for name in names[pattern]] for pattern in (W1, W3)}
    for operation in rule.operations:
        stored = operation.convert(
            stored, source_patterns=[W1, W3], target_patterns=["experts.gate_up_proj"]
        )
    assert torch.equal(stored["experts.gate_up_proj"], packed)


@pytest.mark.parametrize(
    ("operations", "shape", "names", "message"),
    [
        ([Transpose(0, 1)], (4, 4), 1, r"'experts.0.w2.weight' .*\(Transpose\) whose parts can't"),
        ([Concatenate(dim=0)], (4, 4), 2, r"\(Concatenate\) .*; merge such models with 'outcross"),
        ([MergeModulelist(dim=0)], (4, 2, 2), 3, "4 parts, but the checkpoint has 3"),
        ([MergeModulelist(dim=1)], (4, 2, 2), 2, "a packing that interleaves them"),
    ],
)
def test_packings_that_can_not_be_written_in_place(operations, shape, names, message):
    rule = WeightConverter(W2, "experts.down_proj", operations)
    stored = {W2: [W2.replace("*", str(expert)) for expert in range(names)]}
    with pytest.raises(EvaluationError, match=message):
        unpack(torch.zeros(shape), rule, stored)


def fill(folder: Path) -> Resident:
    """A live model with the weights of a folder."""
    tokenizer().save_pretrained(folder)
    parent = open_checkpoint(folder, "a")
    plan = compile_plan(from_dict({"merge_method": "passthrough", "models": ["a"]}), {"a": parent})
    names = [step.out for step in plan.steps]
    resident = build_resident(parent.config, folder, names, torch.float32, CPU)
    for tensor in resident.slots.values():
        tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
    apply(plan, Workbench(Parents({"a": parent}, CPU), resident.slots))
    return resident
