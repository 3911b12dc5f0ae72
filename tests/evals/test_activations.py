"""Layers that two candidates share are run once, and the scores are the very same numbers."""

import pytest
import torch
from tiny_families import build_family
from windows import draw, hflm, sharpen

import evals.activations
from evals.activations import find_layers, used_after
from evals.likelihood import LikelihoodScorer
from evals.memory import BatchSize

LAYERS = 6
FAMILIES = ["llama", "gpt2", "qwen2", "gptj", "gemma2"]


class Search:
    """Candidates of one model, scored with and without knowing what they share."""

    def __init__(self, family: str) -> None:
        self.model = sharpen(build_family(family, layers=LAYERS))
        lm = hflm(self.model, max_length=100)
        windows = [w for kind in ("options", "letters", "rolling") for w in draw(1)[kind]]
        self.knowing = LikelihoodScorer(lm, windows, BatchSize(4, False))
        self.unknowing = LikelihoodScorer(lm, windows, BatchSize(4, False))
        self.keys = [0] * (LAYERS + 1)

    @torch.no_grad()
    def change(self, *layers: int) -> None:
        for layer in layers:
            self.keys[layer + 1] += 1
            for parameter in find_layers(self.model)[layer].parameters():
                parameter.mul_(1.1)

    def left_out(self, *changed: int) -> int:
        """Change some layers, score both ways, and see how many layers were not run."""
        self.change(*changed)
        ours = self.knowing.score(tuple(self.keys))
        assert ours == self.unknowing.score()
        return self.knowing.left_out


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lower_layers_are_run_once(family: str):
    search = Search(family)
    assert [search.left_out(4, 5) for _ in range(4)] == [0, 0, 4, 4]


def test_a_change_further_down_runs_everything_above_it():
    search = Search("llama")
    assert [search.left_out(4) for _ in range(3)] == [0, 0, 4]
    assert search.left_out(2) == 0  # nothing is kept at so low a depth yet
    assert search.left_out(3) == 3
    assert search.left_out(4) == 4
    assert search.left_out(0, 5) == 0
    assert search.left_out(5) == 0
    assert search.left_out(5) == 5


def test_a_candidate_may_begin_like_one_before_the_last():
    """As orders of layers do: two of them take turns, and each goes on from its own kind."""
    search = Search("llama")
    assert [search.left_out(5) for _ in range(3)] == [0, 0, 5]
    before = search.keys.copy(), [p.clone() for p in search.model.parameters()]
    assert search.left_out(1, 3) == 0
    assert search.left_out(3) == 3
    with torch.no_grad():
        for parameter, value in zip(search.model.parameters(), before[1], strict=True):
            parameter.copy_(value)
    search.keys = before[0]
    assert search.left_out(5) == 5


def test_other_embeddings_share_nothing():
    search = Search("llama")
    assert [search.left_out(5) for _ in range(3)] == [0, 0, 5]
    search.keys[0] += 1
    with torch.no_grad():
        search.model.get_input_embeddings().weight.mul_(0.9)
    assert search.left_out(5) == 0


def test_the_same_candidate_again():
    search = Search("llama")
    assert [search.left_out() for _ in range(3)] == [0, 0, LAYERS - 1]


def test_a_candidate_of_which_nothing_is_known_runs_everything():
    search = Search("llama")
    assert [search.left_out(5) for _ in range(3)] == [0, 0, 5]
    search.change(0)
    assert search.knowing.score() == search.unknowing.score()
    assert search.knowing.left_out == 0


def test_candidates_of_several_depths():
    """What is left out is what some had in common, whatever their depths: never all of one."""
    search = Search("llama")
    stack, config = search.model.model.layers, search.model.config
    layers = list(stack)

    def left_out(depth: int) -> int:
        stack._modules = {str(at): layer for at, layer in enumerate(layers[:depth])}
        config.num_hidden_layers = depth
        keys = tuple(search.keys[: depth + 1])
        ours = search.knowing.score(keys)
        assert ours == search.unknowing.score()
        return search.knowing.left_out

    assert [left_out(depth) for depth in (6, 6, 6, 4, 4, 4)] == [0, 0, 5, 0, 3, 3]
    depths = (6, 5, 3, 5, 6)
    found = [left_out(depth) for depth in depths]
    assert all(count < depth for count, depth in zip(found, depths, strict=True))
    assert found[-1] >= 2


@pytest.mark.parametrize("limit", [0, 20_000, 60_000])
def test_it_holds_no_more_than_it_may(limit: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evals.activations.Activations.__init__, "__defaults__", (limit,))
    search = Search("llama")
    for layers in ((4,), (4,), (4,), (2,), (2,), (3,), (4,)):
        search.left_out(*layers)
        assert search.knowing.held <= limit
    assert limit == 0 or search.knowing.held > 0


def test_a_family_that_passes_on_more_than_a_state_runs_everything(monkeypatch: pytest.MonkeyPatch):
    search = Search("llama")
    first = find_layers(search.model)[0]
    embed, real = search.model.get_input_embeddings(), type(first).forward

    def peeking(self, hidden_states: torch.Tensor, **keywords: object) -> torch.Tensor:
        """Every layer also looks at what the first one made."""
        made = real(self, hidden_states, **keywords)
        if self is first:
            embed.made = made
        return made + 0.1 * embed.made

    monkeypatch.setattr(type(first), "forward", peeking)
    monkeypatch.setattr(embed, "made", None, raising=False)
    assert [search.left_out(5) for _ in range(5)] == [0] * 5


@pytest.mark.parametrize(
    ("family", "late"),
    [
        ("llama", {"model.norm.weight", "lm_head.weight"}),
        ("qwen2", {"model.norm.weight"}),
        ("gpt2", {"transformer.ln_f.weight", "transformer.ln_f.bias"}),
        ("bloom", {"transformer.ln_f.weight", "transformer.ln_f.bias"}),
    ],
)
def test_what_works_on_the_last_layer_only(family: str, late: set[str]):
    model = build_family(family, tie_word_embeddings=family != "llama")
    found = {id(parameter) for parameter in used_after(model)}
    assert {name for name, parameter in model.named_parameters() if id(parameter) in found} == late
