"""A broken model must not get a score."""

import pytest
import torch

from evals.guards import Range, disagreement, disproportion, health, norm, ranges
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


def test_norms_are_held_against_the_parents(resident: Resident):
    name = "model.layers.1.mlp.up_proj.weight"
    own = {at: norm(slot) for at, slot in resident.slots.items()}
    known = ranges([own, {at: 2 * value for at, value in own.items()}])
    assert known[name] == Range(own[name], 2 * own[name])
    assert health(resident.model, resident.slots, [1, 5], known) is None
    resident.slots[name].mul_(19)
    assert health(resident.model, resident.slots, [1, 5], known) is None
    resident.slots[name].mul_(2)
    found = health(resident.model, resident.slots, [1, 5], known) or ""
    assert found.startswith(f"tensor '{name}' exploded: its norm is")
    resident.slots[name].mul_(0.0)
    found = health(resident.model, resident.slots, [1, 5], known) or ""
    assert found.startswith(f"tensor '{name}' vanished: its norm is 0")


def test_a_tensor_that_is_nothing_in_a_parent_may_be_so(resident: Resident):
    known = {"bias": Range(0.0, 1.0)}
    assert health(resident.model, {"bias": torch.zeros(3)}, [1], known) is None
    zeros = {"bias": Range(0.0, 0.0)}
    assert health(resident.model, {"bias": torch.ones(3)}, [1], zeros) is None


def test_a_model_that_says_the_same_of_every_token_is_found(resident: Resident):
    resident.slots["lm_head.weight"].zero_()
    found = health(resident.model, resident.slots, [1, 5, 6])
    assert found == "its logits are all the same, whatever the token"


def test_tokens_without_embeddings_are_found(resident: Resident):
    assert disagreement(resident.model, resident.tokenizer) is None
    resident.tokenizer.add_tokens([f"<new{n}>" for n in range(20)])
    found = disagreement(resident.model, resident.tokenizer) or ""
    assert "but the embeddings have 104 rows" in found


def test_a_configuration_that_states_another_vocabulary_is_found(resident: Resident):
    resident.model.config.vocab_size = 200
    found = disagreement(resident.model, resident.tokenizer) or ""
    assert "states a vocabulary of 200, the embeddings have 104 rows and the head 104" in found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_norm_is_right_whatever_the_dtype(dtype: torch.dtype):
    """Added up in 16 bits, many small squares would be lost."""
    tensor = torch.full((1_000_000,), 100.0, dtype=dtype)
    assert norm(tensor) == pytest.approx(100_000.0, rel=0.01)
    tensor[-1] = torch.nan
    assert norm(tensor) != norm(tensor)


def test_measured_norms_are_judged_where_something_is_known():
    known = {"x": Range(1.0, 2.0)}
    assert disproportion({"x": 20.0, "y": 1e9}, known) is None
    assert "of no parent above 2" in (disproportion({"x": 20.1}, known) or "")
    assert "vanished" in (disproportion({"x": 0.9e-3}, known, "reference") or "")
