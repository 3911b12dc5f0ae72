"""Methods whose base may be absent and whose parameters may be words."""

from typing import Literal

import pytest
from headers import checkpoint, linear, ranged

from merge_core import registry
from merge_core.errors import RecipeError
from merge_core.plan import compile_plan
from merge_core.recipe import from_dict
from merge_core.registry import Base, Parameter, find_method, merge_method


@pytest.fixture(autouse=True)
def _methods(monkeypatch):
    registry.merge_methods()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    @merge_method(title="W", reference="https://example.org", base=Base.OPTIONAL, inputs=(2, 2))
    def worded(group, *, norm: Literal["mean", "median"] = "mean", how: Literal["one", "two"]): ...


def plan_of(**changes):
    recipe = linear() | {"merge_method": "worded", "parameters": {"how": "one"}} | changes
    parents = {name: checkpoint(name) for name in ("base", "a", "b")}
    return compile_plan(from_dict(recipe), parents)


def test_words_are_read_from_the_signature():
    norm, how = find_method("worded").parameters
    assert norm == Parameter("norm", str, False, "mean", None, ("mean", "median"))
    assert (how.choices, how.required) == (("one", "two"), True)


@pytest.mark.parametrize(
    ("base", "models"), [({}, "ab"), ({"base_model": "base"}, "ab"), ({"base_model": "a"}, "abase")]
)
def test_a_base_is_taken_where_it_is_given(base, models):
    models = ["a", "b"] if models == "ab" else ["base", "a", "b"]
    for step in plan_of(models=models, **base).steps:
        assert (step.base.parent if step.base else None) == base.get("base_model")
        assert [ref.parent for ref in step.inputs] == [m for m in models if m != step_base(step)]


def step_base(step):
    return step.base.parent if step.base else None


def test_slices_list_the_base_that_the_recipe_names():
    cut = {"sources": ranged(a=[0, 4], b=[0, 4])}
    recipe = {"merge_method": "worded", "parameters": {"how": "one"}, "slices": [cut]}
    parents = {name: checkpoint(name) for name in ("base", "a", "b")}
    assert compile_plan(from_dict(recipe), parents).steps[0].base is None
    with pytest.raises(RecipeError, match=r"needs a base model in slices\[0\]; list base_model"):
        compile_plan(from_dict(recipe | {"base_model": "base"}), parents)
    cut["sources"] += ranged(base=[0, 4])
    plan = compile_plan(from_dict(recipe | {"base_model": "base"}), parents)
    assert {step_base(step) for step in plan.steps} == {"base"}


def test_too_many_models_with_a_base():
    with pytest.raises(RecipeError, match="takes exactly 2 models; "):
        plan_of(models=["a", "b", "base"])


def test_words_reach_the_steps():
    (params,) = {step.params for step in plan_of(parameters={"how": "two"}).steps}
    assert params == (("norm", "mean"), ("how", "two"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("tow", "'how' must be one of its words, got 'tow'; did you mean 'two'"),
        ("xyz", "'how' must be one of its words, got 'xyz'; known: one, two"),
        (1, "'how' must be one of its words, got 1.0; known: one, two"),
        (True, "'how' must be one of its words, got True; known: one, two"),
    ],
)
def test_other_words(value, message):
    with pytest.raises(RecipeError, match=message):
        plan_of(parameters={"how": value})


def test_a_word_that_is_missing():
    with pytest.raises(RecipeError, match="merge_method 'worded' needs 'how'"):
        plan_of(parameters={})


def test_words_over_depth_are_picked():
    plan = plan_of(parameters={"how": ["one", "two"]})
    words = [dict(s.params)["how"] for s in plan.steps if "attn" in s.out]
    assert words == ["one", "one", "one", "two"]


@pytest.mark.parametrize("compat", [True, False])
def test_steps_know_whether_to_compute_as_mergekit(compat):
    plan = plan_of(**({"compat": "mergekit"} if compat else {}))
    assert {step.compat for step in plan.steps} == {compat}
