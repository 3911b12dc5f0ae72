"""One candidate: what it shares with the one before is known from how its tensors were made."""

import pytest
from tiny_study import study_dict, write_study

from evals.items import Role
from search.bench import Bench, build_bench, check_study
from search.trial import evaluate, layer_keys


def upper_layer_study() -> dict:
    """A recipe whose weights vary in the last of three layers only."""

    def sources(layers: list[int], weight: object) -> dict:
        pairs = [("a", weight), ("b", 0.4)]
        return {
            "sources": [
                {"model": m, "layer_range": layers, "parameters": {"weight": w}} for m, w in pairs
            ]
        }

    recipe = {
        "merge_method": "linear",
        "parameters": {"weight": 0.5},
        "slices": [sources([0, 2], 0.6), sources([2, 3], {"range": [0.1, 1.0]})],
    }
    objectives = [{"task": "tiny_choice", "metric": "acc"}, {"task": "tiny_text"}]
    return study_dict(recipe=recipe, objectives=objectives)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    study = write_study(tmp_path_factory.mktemp("study"), upper_layer_study(), spread=0.1)
    return build_bench(check_study(study), (Role.SEARCH, Role.SELECT))


def recipes(bench: Bench, count: int) -> list:
    space = bench.study.space
    (name,) = [dimension.name for dimension in space.dimensions]
    return [space.decode({name: 0.1 + 0.15 * i}) for i in range(count)]


def test_lower_layers_that_no_candidate_changes_are_run_once(bench: Bench):
    left_out, cards = [], []
    for recipe in recipes(bench, 5):
        cards.append(evaluate(recipe, bench, Role.SEARCH).scorecard)
        left_out.append(bench.harness.answering.left_out)
        whole = bench.harness.score(Role.SEARCH)
        assert cards[-1].items == whole.items
        evaluate(recipe, bench, Role.SEARCH)  # known again
    assert left_out[0] == 0
    assert left_out[-1] == 2
    assert len({str(card.items) for card in cards}) == 5


def test_keys_differ_where_weights_do(bench: Bench):
    one, other = recipes(bench, 2)
    keys = []
    for recipe in (one, other, one):
        evaluate(recipe, bench, Role.SEARCH)
        keys.append(layer_keys(bench.study.plan(recipe), bench))
    assert keys[0] == keys[2]
    assert [a == b for a, b in zip(keys[0], keys[1], strict=True)] == [True, True, True, False]


def test_a_tensor_of_unknown_content_is_like_no_other(bench: Bench):
    (recipe,) = recipes(bench, 1)
    evaluate(recipe, bench, Role.SEARCH)
    plan = bench.study.plan(recipe)
    before = layer_keys(plan, bench)
    del bench.workbench.done[next(s.out for s in plan.steps if ".layers.1." in s.out)]
    after = layer_keys(plan, bench)
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False, True]
    assert after != layer_keys(plan, bench)


def test_a_failing_candidate_says_why(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    (recipe,) = recipes(bench, 1)
    monkeypatch.setattr(bench.harness, "score", lambda *_: 1 / 0)
    outcome = evaluate(recipe, bench, Role.SEARCH)
    assert outcome.scorecard is None
    assert outcome.failure == "ZeroDivisionError: division by zero"
