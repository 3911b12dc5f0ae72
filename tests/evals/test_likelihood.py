"""Log-likelihoods equal those of lm-eval's HFLM, whichever way they are computed."""

import math

import pytest
import torch
from tiny_families import build_family
from windows import draw, greedy, hflm, lively, sharpen

import evals.likelihood
import evals.memory
from evals.errors import EvaluationError
from evals.likelihood import LikelihoodScorer
from evals.memory import BatchSize

KINDS = ("options", "letters", "rolling", "truncated", "duplicates")
SHARED, ALONE = "contexts shared", "one request at a time"


def theirs(lm, windows):
    return lm._loglikelihood_tokens([(None, *w) for w in windows], disable_tqdm=True)


def scorer_of(lm, windows, size: int = 8):
    return LikelihoodScorer(lm, windows, BatchSize(size, False))


def assert_equal(ours, expected, tolerance: float = 1e-4):
    assert [flag for _, flag in ours] == [flag for _, flag in expected]
    for (one, _), (other, _) in zip(ours, expected, strict=True):
        assert one == pytest.approx(other, abs=tolerance, rel=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gpt_neox"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_lm_evals(family: str, kind: str):
    model = lively(family)
    lm, windows = hflm(model), draw()[kind]
    short = [context[-100:] for context, _ in windows[:4]]
    windows = windows + greedy(model, short, 1) + greedy(model, short, 4)
    scorer = scorer_of(lm, windows)
    ours, expected = scorer.score(), theirs(lm, windows)
    assert scorer.way.startswith(SHARED), scorer.way
    assert_equal(ours, expected)
    assert {flag for _, flag in ours} == {True, False}
    assert len({round(value, 2) for value, _ in ours}) > 5


@pytest.mark.parametrize("size", [1, 3, 64])
def test_all_kinds_together_in_any_batch_size(size: int):
    windows = [window for kind in draw(1).values() for window in kind]
    lm = hflm(lively("llama_tied"))
    assert_equal(scorer_of(lm, windows, size).score(), theirs(lm, windows))


def test_eager_attention_equals_lm_evals():
    model = lively("llama")
    model.set_attn_implementation("eager")
    lm, windows = hflm(model), draw()["options"]
    scorer = scorer_of(lm, windows)
    assert_equal(scorer.score(), theirs(lm, windows))
    assert scorer.way.startswith(SHARED)


def test_a_short_max_length_cuts_the_beginning():
    windows = draw()["options"]
    lm = hflm(lively("qwen2"), max_length=20)
    assert_equal(scorer_of(lm, windows).score(), theirs(lm, windows))


def test_it_follows_weights_that_change_in_place():
    model = lively("llama")
    lm, windows = hflm(model), draw()["options"]
    scorer = scorer_of(lm, windows)
    before = scorer.score()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.7)
    after = scorer.score()
    assert before != after
    assert_equal(after, theirs(lm, windows))


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("bloom", {}, "takes no positions"),
        ("falcon", {"alibi": True}, "ALiBi"),
        ("mamba", {}, "takes no positions"),
        ("mistral", {"sliding_window": 16}, "window of 16 tokens"),
        ("lfm2", {"layer_types": ["conv", "full_attention", "conv"]}, "no plain cache"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rotary"),
    ],
)
def test_families_that_cannot_share_take_lm_evals_way(family: str, options: dict, reason: str):
    if family == "llama":
        options = {**options, "max_position_embeddings": 32}
        options["rope_parameters"] = {"rope_theta": 1e4, **options["rope_parameters"]}
    lm = hflm(sharpen(build_family(family, **options)), max_length=64)
    windows = draw()["options"][:12]
    scorer = scorer_of(lm, windows)
    ours = scorer.score()
    assert scorer.way.startswith(ALONE)
    assert reason in scorer.way
    assert_equal(ours, theirs(lm, windows))


def test_a_sliding_window_that_nothing_outgrows_is_no_obstacle():
    lm = hflm(sharpen(build_family("mistral", sliding_window=128)))
    windows = draw()["options"]
    scorer = scorer_of(lm, windows)
    assert_equal(scorer.score(), theirs(lm, windows))
    assert scorer.way.startswith(SHARED)


def test_a_family_whose_own_mask_nobody_announces_is_found_by_comparing():
    options = {"attention_types": [[["local"], 3]], "window_size": 8}
    lm = hflm(sharpen(build_family("gpt_neo", **options)))
    windows = draw()["options"]
    scorer = scorer_of(lm, windows)
    ours = scorer.score()
    assert scorer.way.startswith(ALONE)
    assert "differ by at most" in scorer.way
    assert_equal(ours, theirs(lm, windows))


def test_a_family_that_fails_on_our_mask_takes_lm_evals_way(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object):
        raise TypeError("no such mask")

    monkeypatch.setattr(evals.likelihood, "run", refuse)
    lm, windows = hflm(lively("llama")), draw()["letters"]
    scorer = scorer_of(lm, windows)
    assert_equal(scorer.score(), theirs(lm, windows))
    assert "TypeError: no such mask" in scorer.way


def test_a_broken_candidate_decides_nothing():
    model = lively("llama")
    lm, windows = hflm(model), draw()["options"]
    scorer = scorer_of(lm, windows)
    kept = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    assert all(math.isnan(value) for value, _ in scorer.score())
    with torch.no_grad():
        model.lm_head.weight.copy_(kept)
    assert_equal(scorer.score(), theirs(lm, windows))
    assert scorer.way.startswith(SHARED)


def test_bfloat16_is_shared_and_close_to_float32():
    windows = draw()["options"]
    exact = theirs(hflm(lively("llama")), windows)
    scorer = scorer_of(hflm(lively("llama").bfloat16()), windows)
    for (one, _), (other, _) in zip(scorer.score(), exact, strict=True):
        assert one == pytest.approx(other, abs=0.5, rel=0.05)
    assert scorer.way.startswith(SHARED)


def test_out_of_memory_halves_the_batches_for_good(monkeypatch: pytest.MonkeyPatch):
    lm = hflm(lively("llama"))
    windows = [window for kind in draw(1).values() for window in kind]
    size = BatchSize(64, True)
    scorer = LikelihoodScorer(lm, windows, size)
    sizes: list[int] = []

    def run(model, sections, *kept):
        largest = max(batch.size for section in sections for batch in section.batches)
        sizes.append(largest)
        if largest > 700:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, sections, *kept)

    real = evals.likelihood.run
    monkeypatch.setattr(evals.likelihood, "run", run)
    monkeypatch.setattr(evals.memory, "release", lambda: None)  # a second each in a large process
    ours = scorer.score()
    assert max(sizes) > 700
    assert size.sequences < 64
    tried = len(sizes)
    assert scorer.score() == ours
    assert len(sizes) == tried + 1  # what was learnt is kept
    assert_equal(ours, theirs(lm, windows))


@pytest.mark.parametrize(("window", "part"), [(([], [5]), "context"), (([5], []), "continuation")])
def test_a_request_without_tokens_is_refused(window, part: str):
    with pytest.raises(EvaluationError, match=f"request 1: its {part} has no tokens"):
        scorer_of(hflm(lively("llama")), [([3], [4]), window])


def test_no_requests_no_answers():
    assert scorer_of(hflm(lively("llama")), []).score() == []
