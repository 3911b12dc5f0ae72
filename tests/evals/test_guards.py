"""A broken model must not get a score."""

import pytest
import torch

from evals.guards import health
from evals.resident import Resident


def test_a_sound_model_passes(resident: Resident):
    assert health(resident.model, resident.slots, [1, 5, 6]) is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_number_in_the_weights_is_found(resident: Resident, bad: float):
    name = "model.layers.1.mlp.up_proj.weight"
    resident.slots[name][-1, -1] = bad
    found = health(resident.model, resident.slots, [1, 5, 6])
    assert found == f"tensor '{name}' holds NaN or infinity"


def test_infinities_of_both_signs_do_not_cancel(resident: Resident):
    name = "model.layers.0.mlp.up_proj.weight"
    resident.slots[name][0, 0], resident.slots[name][0, 1] = float("inf"), -float("inf")
    assert name in (health(resident.model, resident.slots, [1, 5, 6]) or "")


def test_logits_that_overflow_are_found_though_the_weights_are_finite(resident: Resident):
    resident.slots["model.norm.weight"].fill_(1e30)
    resident.slots["lm_head.weight"].fill_(1e30)
    assert health(resident.model, {}, [1, 5, 6]) == "its logits are NaN or infinite"
    found = health(resident.model, resident.slots, [1, 5, 6])
    assert found == "tensor 'lm_head.weight' has no finite norm"


def test_integer_buffers_are_left_alone(resident: Resident):
    slots = resident.slots | {"steps": torch.tensor([2**62, 2**62])}
    assert health(resident.model, slots, [1]) is None


def test_half_precision_weights_are_summed_without_overflow(resident: Resident):
    """A sum in float16 would be infinite from 65504 on."""
    slots = resident.slots | {"wide": torch.full((4096,), 100.0, dtype=torch.float16)}
    assert health(resident.model, slots, [1]) is None
