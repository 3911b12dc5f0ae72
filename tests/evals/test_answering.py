"""Responses of every kind are lm-eval's own, and plans are made once."""

from collections.abc import Callable

import pytest
from lm_eval.api.instance import Instance
from windows import hflm, lively

import evals.answering
from evals.answering import Answering, Practice
from evals.harness import Harness
from evals.items import Role


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("batch_size", [3, "auto"])
def test_generations_are_the_same_strings(family: str, batch_size: int | str):
    model = lively(family)
    prompts = ["a river is", "the", "b" * 40, "one two three four five", "x\ny", "zz"]
    arguments = [
        (prompt, {"until": until, "max_gen_toks": 12, "do_sample": False})
        for prompt in prompts
        for until in (["\n"], ["e", "qq"])
    ]
    expected = hflm(model, batch_size=3).generate_until(_instances(arguments), disable_tqdm=True)
    answering = Answering(hflm(model), batch_size)
    asked = [(request, ()) for request in _instances(arguments)]
    assert list(answering.respond("generate_until", asked)) == expected
    assert len(set(expected)) > 3


def _instances(arguments: list[tuple[str, dict]]) -> list[Instance]:
    return [Instance("generate_until", {}, args, i) for i, args in enumerate(arguments)]


def test_a_plan_is_made_once_for_each_role(
    open_local: Callable, harness_of: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
):
    made: list[int] = []
    real = evals.answering.LikelihoodScorer

    def counted(lm, windows, *more):
        made.append(len(windows))
        return real(lm, windows, *more)

    monkeypatch.setattr(evals.answering, "LikelihoodScorer", counted)
    harness = harness_of(open_local("tiny_choice"), (Role.SEARCH, Role.SELECT))
    for role in (Role.SEARCH, Role.SELECT, Role.SEARCH, Role.SELECT):
        harness.score(role)
    assert made == [12 * 4, 4 * 4]
    assert harness.answering.ways
    assert all(way.startswith("contexts shared") for way in harness.answering.ways)


def test_a_practice_is_adopted_whole(open_local: Callable, harness_of: Callable[..., Harness]):
    harness = harness_of(open_local("tiny_choice"), (Role.SEARCH,))
    assert harness.answering.practice.gates == {}
    harness.score(Role.SEARCH)
    (shares, way), *others = harness.answering.practice.gates.values()
    assert (shares, way.startswith("contexts shared"), others) == (True, True, [])
    plain = Practice(4, {"loglikelihood": (False, "one by one"), "another": (True, "shared")})
    harness.answering.adopt(plain)  # a plan that is made already follows it too
    assert harness.answering.ways == ("one by one",)
    assert harness.answering.practice.gates == plain.gates
    assert harness.answering.practice.sequences != 4  # the study states a size


def test_practices_join_in_the_order_in_which_they_were_found():
    one = Practice(16, {"a": (True, "first")})
    other = Practice(8, {"a": (False, "second"), "b": (True, "new")})
    assert one.joined(other) == Practice(8, {"a": (True, "first"), "b": (True, "new")})
