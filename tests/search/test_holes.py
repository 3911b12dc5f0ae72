"""Recipes with holes: what is searched, and what is wrong with them."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
import yaml

from merge_core import registry
from merge_core.registry import merge_methods
from search.holes import build_space
from search.space import Choice, Real, SearchSpace

Read = Callable[[dict[str, Any]], SearchSpace]


def linear(value: Any, **recipe: Any) -> dict[str, Any]:
    """A linear merge whose first model has the weight given."""
    weights = [{"model": "a", "parameters": {"weight": value}}, {"model": "b"}]
    return {"merge_method": "linear", "models": weights, "parameters": {"weight": 0.5}} | recipe


def mistakes_of(recipe: dict[str, Any]) -> list[str]:
    found: list[str] = []
    build_space(recipe, ("base", "a", "b"), found)
    return found


def names(space: SearchSpace) -> list[str]:
    return [dimension.name for dimension in space.dimensions]


def test_a_range_is_one_number(read_space: Read):
    space = read_space(linear({"range": [0, 2]}))
    assert space.dimensions == (Real("a.weight", 0.0, 2.0, False, ("linear",), "weight"),)


def test_auto_is_the_range_that_the_method_declares(read_space: Read):
    declared = merge_methods()["linear"].parameter("weight").range
    (dimension,) = read_space(linear({"range": "auto"})).dimensions
    assert (dimension.low, dimension.high) == (declared.low, declared.high)


def test_log_ranges(read_space: Read):
    (dimension,) = read_space(linear({"range": [0.001, 1], "log": True})).dimensions
    assert dimension.log


def test_the_modules_own_example_of_a_log_range_can_be_read():
    hole = yaml.safe_load("{range: [1e-3, 1], log: true}")
    assert mistakes_of(linear(hole)) == []


def test_groups_and_knots_multiply(read_space: Read):
    space = read_space(linear({"range": [0, 1], "by": ["self_attn", "*"], "knots": 2}))
    assert names(space) == [
        "a.weight[self_attn]@0",
        "a.weight[self_attn]@1",
        "a.weight[*]@0",
        "a.weight[*]@1",
    ]


def test_choices_of_values(read_space: Read):
    recipe = linear(0.5)
    recipe["parameters"]["normalize"] = {"choice": [True, False]}
    (dimension,) = read_space(recipe).dimensions
    assert dimension == Choice("normalize", (True, False), ("linear",), "normalize")


def test_a_choice_of_methods_comes_first_and_knows_whose_parameters_are_whose(read_space: Read):
    space = read_space(
        {
            "merge_method": {"choice": ["task_arithmetic", "ties"]},
            "base_model": "base",
            "models": [
                {
                    "model": "a",
                    "parameters": {"weight": {"range": [0, 1]}, "density": {"range": [0.1, 1]}},
                }
            ],
        }
    )
    methods = ("task_arithmetic", "ties")
    assert [(d.name, d.methods) for d in space.dimensions] == [
        ("merge_method", methods),
        ("a.weight", methods),
        ("a.density", ("ties",)),
    ]
    assert space.has_choices


def test_slices_have_dimensions_of_their_own(read_space: Read):
    def part(first: int, end: int) -> dict[str, Any]:
        source = {"layer_range": [first, end], "parameters": {"weight": {"range": [0, 1]}}}
        return {"sources": [{"model": "a"} | source, {"model": "b"} | source]}

    space = read_space({"merge_method": "linear", "slices": [part(0, 1), part(1, 3)]})
    assert names(space) == [
        "slice0.a.weight",
        "slice0.b.weight",
        "slice1.a.weight",
        "slice1.b.weight",
    ]


def test_required_parameters_that_are_left_out_become_holes(read_space: Read):
    space = read_space({"merge_method": "ties", "base_model": "base", "models": ["base", "a", "b"]})
    declared = merge_methods()["ties"].parameter("weight").range
    assert names(space) == ["a.weight", "b.weight"]
    assert {(d.low, d.high) for d in space.dimensions} == {(declared.low, declared.high)}


def test_what_is_given_anywhere_is_not_searched(read_space: Read):
    recipe = {
        "merge_method": "linear",
        "models": [{"model": "a", "parameters": {"weight": 0.3}}, "b"],
    }
    assert names(read_space(recipe)) == ["b.weight"]
    hole = {"normalize": {"choice": [True, False]}, "weight": 0.5}
    assert names(read_space(recipe | {"parameters": hole})) == ["normalize"]


def test_a_parameter_of_the_whole_recipe_is_planted_once(read_space: Read):
    space = read_space({"merge_method": "slerp", "base_model": "a", "models": ["a", "b"]})
    assert names(space) == ["t"]


def test_a_required_parameter_in_a_slice_is_given(read_space: Read):
    sources = [{"model": "a", "layer_range": [0, 3]}, {"model": "b", "layer_range": [0, 3]}]
    part = {"sources": sources, "parameters": {"weight": {"range": [0, 1]}}}
    space = read_space({"merge_method": "linear", "slices": [part]})
    assert names(space) == ["slice0.weight"]


@pytest.mark.parametrize(
    ("hole", "message"),
    [
        ({"range": [1, 0]}, ".range: expected [low, high] with low < high, or auto, got [1, 0]"),
        ({"range": [1, 1]}, ".range: expected [low, high] with low < high"),
        ({"range": [0]}, ".range: expected [low, high] with low < high"),
        ({"range": [0, 1, 2]}, ".range: expected [low, high] with low < high"),
        ({"range": [0, "one"]}, ".range: expected [low, high] with low < high"),
        ({"range": [False, True]}, ".range: expected [low, high] with low < high"),
        ({"range": [0, float("inf")]}, ".range: expected [low, high] with low < high"),
        ({"range": [float("nan"), 1]}, ".range: expected [low, high] with low < high"),
        ({"range": "full"}, ".range: expected [low, high] with low < high, or auto, got 'full'"),
        ({"range": [0, 1], "log": True}, ".range: a logarithmic range must start above 0"),
        ({"range": [0, 1], "log": 1}, ".log: expected true or false, got 1"),
        ({"range": [0, 1], "knots": 0}, ".knots: expected a whole number from 1 to 64, got 0"),
        ({"range": [0, 1], "knots": 65}, ".knots: expected a whole number from 1 to 64, got 65"),
        ({"range": [0, 1], "knots": 2.0}, ".knots: expected a whole number from 1 to 64, got 2.0"),
        ({"range": [0, 1], "knots": True}, ".knots: expected a whole number from 1 to 64"),
        ({"range": [0, 1], "by": "mlp"}, ".by: expected parts of tensor names, got 'mlp'"),
        ({"range": [0, 1], "by": []}, ".by: expected parts of tensor names, got []"),
        ({"range": [0, 1], "by": [1]}, ".by: expected parts of tensor names, got [1]"),
        ({"range": [0, 1], "by": ["mlp", "mlp"]}, '.by: each group once, "*" (the rest) last'),
        ({"range": [0, 1], "by": ["*", "mlp"]}, '.by: each group once, "*" (the rest) last'),
        ({"rnage": [0, 1]}, ".rnage: unknown key; did you mean 'range'?"),
        ({"knots": 3}, ": a hole needs 'range', 'choice' or 'simplex'"),
        (None, ": expected a number, a boolean or a word, got None"),
        ([], ": an empty list gives no value"),
        ([0.5, None], ": expected a number, a boolean or a word, got None"),
        ({"value": None}, ": expected a number, a boolean or a word, got None"),
        ([{"filter": "mlp"}], ": a filtered entry needs a 'value'"),
        ("heavy", ": 'weight' can't be 'heavy'"),
        ([{"value": [0.5, "heavy"], "filter": "mlp"}, {"value": 1}], ": 'weight' can't be 'heavy'"),
        ({"choice": [1]}, ".choice: expected a list of two or more values"),
        ({"choice": 1}, ".choice: expected a list of two or more values"),
        ({"choice": [1, "two"]}, ".choice: 'weight' can't be 'two'"),
        ({"choice": [0, 1], "knots": 2}, ": 'choice' takes no other key than 'start'"),
        ([{"range": [0, 1]}, 0.5], ": a hole can't stand in a list; write one hole with 'by'"),
        ([{"value": {"range": [0, 1]}, "filter": "mlp"}], ": a hole can't stand in a list"),
    ],
)
def test_a_mistake_in_a_hole(hole: Any, message: str):
    (found,) = mistakes_of(linear(hole))
    assert found.startswith(f"recipe.models[0].parameters.weight{message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"merge_method": "tise"},
            "recipe.merge_method: 'tise' is unknown; did you mean 'ties'?",
        ),
        ({"merge_method": None}, "recipe.merge_method: name one, or {choice: [...]} of several"),
        ({"merge_method": 7}, "recipe.merge_method: name one, or {choice: [...]} of several"),
        (
            {"merge_method": {"choise": ["linear"]}},
            "recipe.merge_method.choise: unknown key; did you mean 'choice'?",
        ),
        ({"mdels": []}, "recipe.mdels: unknown key; did you mean 'models'?"),
        ({"base_model": "bse"}, "recipe.base_model: 'bse' is not under 'models'; did you mean"),
        ({"models": []}, "recipe.models: expected a list"),
        ({"models": {"a": 1}}, "recipe.models: expected a list"),
        ({"models": ["A1"]}, "recipe.models[0].model: 'A1' is not under 'models'; known: base"),
        ({"models": [{"parameters": {}}]}, "recipe.models[0].model: is missing"),
        (
            {"models": [{"model": "a", "weight": 1}]},
            "recipe.models[0].weight: unknown key; known: model, layer_range, parameters",
        ),
        ({"slices": []}, "recipe: give exactly one of 'models', 'slices' and 'modules'"),
        ({"parameters": [1]}, "recipe.parameters: expected a mapping of parameter names"),
        (
            {"parameters": {"density": 1}},
            "recipe.parameters.density: linear has no parameter 'density'",
        ),
        (
            {"parameters": {"weigth": {"range": [0, 1]}}},
            "recipe.parameters.weigth: linear has no parameter 'weigth'; did you mean 'weight'?",
        ),
        (
            {"models": [{"model": "a", "parameters": {"normalize": True}}]},
            "recipe.models[0].parameters.normalize: 'normalize' of linear is one value for all",
        ),
        (
            {"parameters": {"normalize": {"range": "auto"}}},
            "recipe.parameters.normalize.range: 'normalize' declares no range; give one",
        ),
    ],
)
def test_a_mistake_around_the_holes(changes: dict[str, Any], message: str):
    found = mistakes_of(linear({"range": [0, 1]}) | changes)
    assert any(line.startswith(message) for line in found), found


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        (7, "recipe.slices: expected a list"),
        ([7], "recipe.slices[0]: expected a mapping with 'sources'"),
        ([{}], "recipe.slices[0].sources: expected a list of models"),
        ([{"source": []}], "recipe.slices[0].source: unknown key; did you mean 'sources'?"),
        ([{"sources": ["x"]}], "recipe.slices[0].sources[0].model: 'x' is not under 'models'"),
    ],
)
def test_a_mistake_in_slices(slices: Any, message: str):
    found = mistakes_of({"merge_method": "linear", "slices": slices})
    assert found[0].startswith(message)


@pytest.mark.parametrize(
    "changes",
    [{"models": [7]}, {"models": [["a"]]}, {"parameters": {1: 0.5}}, {"parameters": {True: 0.5}}],
    ids=str,
)
def test_any_yaml_gives_mistakes_and_never_a_crash(changes: dict[str, Any]):
    assert mistakes_of(linear({"range": [0, 1]}) | changes)


def test_every_value_of_a_choice_must_fit_its_parameter():
    assert mistakes_of(linear({"choice": [0.5, "half"]}))


def test_nothing_to_search_is_a_mistake():
    assert mistakes_of(linear(0.5)) == ["recipe: has no hole, so there is nothing to search"]


def test_many_mistakes_come_at_once():
    found = mistakes_of(
        {
            "merge_method": {"choice": ["linear", "tise"]},
            "base_model": "bse",
            "models": [
                {"model": "a", "parameters": {"weight": {"range": [1, 0], "knots": 0}}},
                {"model": "c", "parameters": {"wieght": 1}},
            ],
            "dtyp": "float32",
        }
    )
    assert len(found) == 7, found


@pytest.fixture
def worded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method with a parameter that is a word."""
    merge_methods()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    @registry.merge_method(title="W", reference="https://example.org", base=registry.Base.OPTIONAL)
    def worded(
        group: Any,
        *,
        weight: Annotated[registry.PerParent, registry.Range(0, 1)],
        how: Literal["sum", "mean", "median"],
    ) -> Any: ...


WORDED = {"merge_method": "worded", "models": ["a", "b"]}


@pytest.mark.usefixtures("worded")
def test_a_choice_of_words(read_space: Read):
    recipe = WORDED | {"parameters": {"how": {"choice": ["mean", "sum"]}, "weight": 0.5}}
    space = read_space(recipe)
    assert space.dimensions == (Choice("how", ("mean", "sum"), ("worded",), "how"),)
    assert space.decode({"how": "sum"}).parameters[0][1][0].value == "sum"


@pytest.mark.usefixtures("worded")
def test_a_word_that_is_left_out_is_searched(read_space: Read):
    space = read_space(WORDED | {"base_model": "b"})
    assert sorted(names(space)) == ["a.weight", "how"]
    (how,) = (d for d in space.dimensions if d.name == "how")
    assert isinstance(how, Choice)
    assert how.options == ("sum", "mean", "median")


@pytest.mark.usefixtures("worded")
@pytest.mark.parametrize(
    ("hole", "message"),
    [
        ({"range": [0, 1]}, ": 'how' is one of sum, mean, median, so it has no range; write {choi"),
        ({"range": "auto"}, ": 'how' is one of sum, mean, median, so it has no range; write {choi"),
        ({"choice": ["sum", "maen"]}, ".choice: 'how' can't be 'maen'; did you mean 'mean'?"),
        ({"choice": ["sum", 1]}, ".choice: 'how' can't be 1; known: sum, mean, median"),
    ],
)
def test_a_word_has_no_range(hole: dict[str, Any], message: str):
    (found,) = mistakes_of(WORDED | {"parameters": {"how": hole, "weight": 0.5}})
    assert found.startswith(f"recipe.parameters.how{message}")


MODULES = {
    "encoder": {
        "models": [{"model": "a", "parameters": {"weight": {"range": [0, 1]}}}, "b"],
        "parameters": {"weight": 0.5},
    },
    "decoder": {
        "slices": [
            {"sources": [{"model": m, "layer_range": [0, 1]} for m in "ab"]},
        ],
    },
}


def test_modules_have_dimensions_of_their_own(read_space: Read):
    space = read_space({"merge_method": "linear", "modules": MODULES})
    own = ["encoder.a.weight", "decoder.slice0.a.weight", "decoder.slice0.b.weight"]
    assert names(space) == own
    recipe = space.decode({"encoder.a.weight": 0.25, own[1]: 0.5, own[2]: 0.75})
    encoder, decoder = recipe.modules
    assert encoder.slices[0].sources[0].parameters[0][1][0].value == 0.25
    assert encoder.parameters[0][1][0].value == 0.5
    assert [s.parameters[0][1][0].value for s in decoder.slices[0].sources] == [0.5, 0.75]


def test_starts_count_the_parents_of_all_modules(read_space: Read):
    space = read_space({"merge_method": "linear", "modules": MODULES})
    assert [start["encoder.a.weight"] for start in space.starts()] == [0.5, 1.0]


@pytest.mark.usefixtures("worded")
def test_what_every_module_says_is_not_searched_beside_it(read_space: Read):
    parts = {"models": ["a", "b"], "parameters": {"how": "sum"}}
    space = read_space({"merge_method": "worded", "modules": {"encoder": parts, "decoder": parts}})
    assert "how" not in names(space)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (7, "recipe.modules: expected a mapping of module names"),
        ({}, "recipe.modules: expected a mapping of module names"),
        ({"x": 7}, "recipe.modules.x: expected a mapping with one of 'models' and 'slices'"),
        ({"x": {}}, "recipe.modules.x: expected a mapping with one of 'models' and 'slices'"),
        ({"x": {"models": 7}}, "recipe.modules.x.models: expected a list"),
        ({"x": {"slices": [7]}}, "recipe.modules.x.slices[0]: expected a mapping with 'sources'"),
        ({"x": {"models": ["c"]}}, "recipe.modules.x.models[0].model: 'c' is not under 'models'"),
        ({"x": {"models": ["a"], "mdl": 1}}, "recipe.modules.x.mdl: unknown key; did you mean"),
        (
            {"x": {"models": ["a"], "parameters": {"wieght": 1}}},
            "recipe.modules.x.parameters.wieght: linear has no parameter 'wieght'",
        ),
    ],
)
def test_a_mistake_in_modules(modules: Any, message: str):
    assert mistakes_of({"merge_method": "linear", "modules": modules})[0].startswith(message)
