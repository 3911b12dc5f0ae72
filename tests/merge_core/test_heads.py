"""Parents with tied and untied heads side by side in one live model."""

import pytest
import torch
from headers import OUTER, checkpoint, seq2seq
from tiny_models import write_model

from merge_core.apply import Workbench, apply
from merge_core.checkpoint import open_checkpoint
from merge_core.errors import RecipeError
from merge_core.heads import with_heads
from merge_core.parents import Parents
from merge_core.plan import compile_plan
from merge_core.recipe import from_dict

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
TIED = {name: shape for name, shape in OUTER.items() if name != HEAD}


def test_models_of_one_kind_stay_as_they_are():
    for outer in (OUTER, TIED):
        models = {name: checkpoint(name, outer=outer) for name in "ab"}
        assert with_heads(models) is models or with_heads(models) == models


def test_a_tied_parent_after_an_untied_one_leaves_no_foreign_head(tmp_path):
    folders = {"a": "llama", "b": "llama_tied"}
    opened = {
        name: open_checkpoint(write_model(tmp_path / name, family, seed), name)
        for seed, (name, family) in enumerate(folders.items())
    }
    models = with_heads(opened)
    plans = {
        name: compile_plan(from_dict({"merge_method": "passthrough", "models": [name]}), models)
        for name in models
    }
    assert [step.out for step in plans["a"].steps] == [step.out for step in plans["b"].steps]
    assert not plans["b"].config["tie_word_embeddings"]
    slots = {step.out: torch.zeros(step.shape) for step in plans["a"].steps}
    bench = Workbench(Parents(models, torch.device("cpu")), slots)
    for name in ("a", "b"):
        apply(plans[name], bench)
    assert slots[HEAD].equal(slots[EMBEDDING])
    assert slots[HEAD].equal(bench.parents.tensor("b", EMBEDDING))


def test_encoder_decoders_whose_scaling_differs_are_refused():
    more = {"is_encoder_decoder": True}
    tied = seq2seq("a", **more, tie_word_embeddings=True)
    untied = seq2seq("b", **more, tie_word_embeddings=False)
    with pytest.raises(RecipeError, match="encoder-decoders scale the two differently"):
        with_heads({"a": tied, "b": untied})
