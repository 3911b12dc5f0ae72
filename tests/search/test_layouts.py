"""Orders of layers as holes: whatever is drawn is a legal model within its budget."""

from typing import Any

import optuna
import pytest
from headers import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from merge_core.interleave import Run, interleave
from merge_core.plan import MergePlan, compile_plan
from merge_core.recipe import Recipe, from_dict, to_dict
from search.asking import Proposer, ask_batch
from search.baselines import parent_recipe
from search.dimensions import Choice, Dimension, Values, Whole
from search.holes import build_space
from search.known import fingerprint
from search.space import SearchSpace

LAYER = {
    "self_attn.o_proj.weight": (4, 4),
    "mlp.up_proj.weight": (8, 4),
    "mlp.down_proj.weight": (4, 8),
    "input_layernorm.weight": (4,),
}
PARENTS = {name: checkpoint(name, 10, layer=LAYER) for name in ("base", "a", "b")}
PARENTS["short"] = checkpoint("short", 6, layer=LAYER)
MERGED = {
    "merge_method": "task_arithmetic",
    "base_model": "base",
    "models": [
        {"model": "a", "parameters": {"weight": {"range": [0.0, 1.5], "knots": 3}}},
        {"model": "b", "parameters": {"weight": {"range": [0.0, 1.5]}}},
    ],
}
FORMS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "origin": (MERGED | {"slices": {"origin": ["a", "b", "merge"]}}, (10, 10)),
    "blocks": ({"slices": {"origin": ["a", "b"], "per": 4}}, (10, 10)),
    "four": ({"slices": {"origin": ["a", "b", "base", "merge"], "per": 5}} | MERGED, (10, 10)),
    "fewer": (MERGED | {"slices": {"origin": "merge", "depth": [7, 10]}}, (7, 10)),
    "fewest": ({"slices": {"origin": "a", "depth": 7}}, (7, 7)),
    "more": ({"slices": {"origin": ["a", "b"], "depth": [12, 14], "scale": True}}, (12, 14)),
    "both": ({"slices": {"origin": ["a", "b"], "depth": [8, 12], "ends": ["a", "b"]}}, (8, 12)),
    "tripled": ({"slices": {"origin": "a", "depth": [24, 26], "scale": True}}, (24, 26)),
    "any": ({"slices": {"origin": ["a", "b"], "depth": [6, 40]}}, (6, 40)),
    "exactly": ({"slices": {"origin": "a", "depth": 33}}, (33, 33)),
    "cuts": ({"slices": {"cuts": 3, "of": ["a", "b"]}}, (8, 12)),
    "depths": ({"slices": {"cuts": 2, "of": ["a", "short"], "overlap": [-2, 3]}}, (5, 12)),
    "merged cuts": (MERGED | {"slices": {"cuts": 2, "depth": [9, 11]}}, (9, 11)),
    "walk": ({"slices": {"walk": 1, "of": ["a", "b"], "scale": True}}, (8, 12)),
    "layers": ({"slices": {"walk": 1, "of": ["a", "b"], "scale": "layers"}}, (8, 12)),
    "merged walk": (MERGED | {"slices": {"walk": 1, "of": ["merge", "a"], "scale": True}}, (8, 12)),
}
BOTH = ("choices", "numbers")


def read(recipe: dict[str, Any], encoding: str = "auto") -> SearchSpace:
    mistakes: list[str] = []
    slices = recipe["slices"] | {"encoding": encoding}
    space = build_space(recipe | {"slices": slices}, PARENTS, mistakes, PARENTS)
    assert not mistakes
    return space


def planned(recipe: Recipe) -> MergePlan:
    return compile_plan(recipe, PARENTS)


def drawn(dimension: Dimension) -> st.SearchStrategy[Any]:
    if isinstance(dimension, Choice):
        return st.sampled_from(dimension.options)
    if isinstance(dimension, Whole):
        return st.integers(dimension.low, dimension.high)
    return st.floats(dimension.low, dimension.high)


def order(recipe: Recipe) -> list[tuple[Any, ...]]:
    """Each output layer as the layers that it is made of."""
    plan = planned(recipe)
    made: dict[int, list[str]] = {}
    for step in plan.steps:
        if step.out.startswith("layers.") and step.out.endswith("up_proj.weight"):
            made[int(step.out.split(".")[1])] = [f"{r.parent}:{r.name}" for r in step.inputs]
    return [tuple(made[at]) for at in range(plan.depth)]


@pytest.mark.parametrize("encoding", BOTH)
@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_whatever_is_drawn_is_a_plan_within_the_budget(form, encoding, data):
    recipe, (low, high) = FORMS[form]
    space = read(recipe, encoding)
    values = space.draw(lambda d: data.draw(drawn(d), label=d.name))
    assert low <= planned(space.decode(values)).depth <= high
    assert space.decode(values) == space.decode(dict(values))


@pytest.mark.parametrize("encoding", BOTH)
@pytest.mark.parametrize("form", FORMS)
def test_numbers_have_no_choices(form, encoding):
    space = read(FORMS[form][0], encoding)
    numeric = not any(isinstance(d, Choice) for d in space.dimensions)
    assert numeric or encoding == "choices"


@pytest.mark.parametrize("encoding", BOTH)
@pytest.mark.parametrize("form", FORMS)
def test_the_parents_own_layers_are_tried_first(form, encoding):
    """As far as the budget allows them."""
    recipe, (low, high) = FORMS[form]
    space = read(recipe, encoding)
    tried = {fingerprint(space.decode(point), space.depths) for point in space.starts()}
    assert len(tried) == len(space.starts())
    of = space.template["slices"].origins
    for name in of:
        if name in PARENTS and low <= space.depths[name] <= high:
            assert fingerprint(parent_recipe(name), space.depths) in tried


@pytest.mark.parametrize("encoding", BOTH)
@pytest.mark.parametrize("form", FORMS)
def test_the_extremes_of_the_budget_are_probed(form, encoding):
    """The live model is built for the deepest of the probes."""
    recipe, (low, high) = FORMS[form]
    space = read(recipe, encoding)
    found = {planned(space.decode(values)).depth for values in space.probes()}
    assert max(found) == high
    assert min(found) == low or low < 10


@pytest.mark.parametrize("encoding", BOTH)
@pytest.mark.parametrize("form", ["origin", "fewer", "both", "cuts", "walk"])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_a_small_step_changes_few_layers(form, encoding, data):
    """Neighbours in the space are neighbours as models; another jump is another piece."""
    space = read(FORMS[form][0], encoding)
    values = space.draw(lambda d: data.draw(drawn(d), label=d.name))
    moving = [
        d
        for d in space.dimensions
        if d.name in values and "piece" not in d.name and d.name != "jumps"
    ]
    moved = data.draw(st.sampled_from(moving))
    near: Values = dict(values) | {moved.name: _near(moved, values[moved.name])}
    near = space.draw(lambda d: near.get(d.name, values.get(d.name, _first(d))))
    one, other = (order(space.decode(point)) for point in (values, near))
    most = 6 if form == "both" else 2  # a layer that comes three times is all of one model
    if _borders(values) != _borders(near):  # they change places, and so do their overlaps
        most = 2 * max(d.high - d.low for d in space.dimensions if d.parameter == "overlap")  # pyright: ignore
    assert _distance(one, other) <= most


def _borders(values: Values) -> list[str]:
    """From bottom to top."""
    return sorted((n for n in values if n.startswith("cut")), key=lambda name: (values[name], name))


def _near(dimension: Dimension, value: Any) -> Any:
    if isinstance(dimension, Choice):
        return dimension.options[-1]
    if isinstance(dimension, Whole):
        return min(value + 1, dimension.high)
    return min(value + 0.02, dimension.high)


def _first(dimension: Dimension) -> Any:
    return dimension.options[0] if isinstance(dimension, Choice) else dimension.low


def _distance(one: list[Any], other: list[Any]) -> int:
    """Insertions and deletions from one order to another."""
    shared = [0] * (len(other) + 1)  # of the longest common subsequence, by what is left of `other`
    for a in one:
        above = shared[:]
        for at, b in enumerate(other, 1):
            shared[at] = above[at - 1] + 1 if a == b else max(above[at], shared[at - 1])
    return len(one) + len(other) - 2 * shared[-1]


def test_equal_orders_are_one_recipe():
    """A layer that is left out twice, in any order of naming."""
    space = read({"slices": {"origin": "a", "depth": [7, 10]}})

    def key(*gone: int) -> str:
        named = {f"drop{at + 1}": layer for at, layer in enumerate(gone)}
        values: Values = {"drops": len(gone)} | named
        return fingerprint(space.decode(values), space.depths)

    assert key(3, 5) == key(5, 3) == key(5, 5, 3)
    assert key() == fingerprint(parent_recipe("a"), space.depths)
    assert key(9) != key()  # its first nine layers are no whole model


def test_drops_and_repeats_are_placed():
    space = read({"slices": {"origin": "a", "depth": [8, 12]}})
    values: Values = {"drops": 1, "drop1": 7, "repeats": 2, "repeat1": 2, "repeat2": 4}
    found = [int(name[0].split(".")[1]) for name in order(space.decode(values))]
    assert found == [0, 1, 2, 2, 3, 4, 4, 5, 6, 8, 9]


def test_indicators_far_from_the_middle_win_where_the_budget_is_short():
    space = read({"slices": {"origin": "a", "depth": [8, 11]}}, "numbers")
    values = {f"layer{at:02d}": 0.5 for at in range(10)}
    far = {"layer01": 0.2, "layer02": 0.1, "layer03": 0.0, "layer05": 0.9, "layer06": 0.8}
    found = [int(name[0].split(".")[1]) for name in order(space.decode(values | far))]
    assert found == [0, 1, 4, 5, 5, 6, 7, 8, 9]


def test_an_indicator_for_every_further_time():
    """In numbers too a layer may come as often as the budget allows."""
    space = read({"slices": {"origin": "a", "depth": [5, 32]}}, "numbers")
    assert len(space.dimensions) == 3 * 10
    values: Values = {d.name: 0.5 for d in space.dimensions}
    often = {"layer03": 0.8, "again1.layer03": 0.9, "again2.layer03": 0.8, "again2.layer05": 0.9}
    found = [int(name[0].split(".")[1]) for name in order(space.decode(values | often))]
    assert found == [0, 1, 2, 3, 3, 3, 3, 4, 5, 5, 6, 7, 8, 9]


def test_a_scale_exists_where_a_layer_is_repeated():
    """Of no repeated layer it would be a dimension that changes nothing."""
    for depth, under in ([8, 12], (("repeats", (1, 2)),)), ([12, 14], ()):
        space = read({"slices": {"origin": "a", "depth": depth, "scale": True}})
        assert next(d.under for d in space.dimensions if d.name == "scale") == under


def test_a_choice_between_forms():
    """Each option's dimensions exist where it is chosen, and it has starts of its own."""
    forms = {"one": {"origin": ["a", "merge"]}, "other": {"cuts": 2, "of": ["a", "short"]}}
    mistakes: list[str] = []
    space = build_space(MERGED | {"slices": {"choice": forms}}, PARENTS, mistakes, PARENTS)
    assert not mistakes
    tried = {fingerprint(space.decode(point), space.depths) for point in space.starts()}
    assert {fingerprint(parent_recipe(name), space.depths) for name in ("a", "short")} <= tried
    for values in (*space.starts(), *space.probes()):
        assert 5 <= planned(space.decode(values)).depth <= 12
        others = {name.split(".")[1] for name in values if name.startswith("slices.")}
        assert others == {values["slices"]}


def test_a_choice_between_forms_needs_no_models():
    mistakes: list[str] = []
    forms = [{"origin": ["a", "b"]}, {"walk": 1, "of": ["a", "short"]}]
    space = build_space({"slices": {"choice": forms}}, PARENTS, mistakes, PARENTS)
    assert not mistakes
    assert {planned(space.decode(values)).depth for values in space.probes()} >= {5, 10, 12}


def test_pieces_overlap_and_give_way_to_the_budget():
    space = read({"slices": {"cuts": 1, "of": ["a", "b"], "overlap": 6, "depth": [10, 14]}})
    values = {"piece0": "a", "piece1": "b", "cut1": 0.5, "overlap1": 6}
    recipe = space.decode(values)
    wanted = interleave(parent_recipe("a"), [Run("a", 0, 5), Run("b", 1, 10)], dict(space.depths))
    assert recipe == wanted


def test_scales_multiply_what_layers_write():
    """After a switch with an input scale of 1.25 every layer writes 0.8 times as much."""
    space = read({"slices": {"walk": 1, "of": ["a", "b"], "jumps": 1, "scale": True}})
    switch = next(d for d in space.dimensions if d.name == "scale.switch")
    values = {"jumps": 1, "piece0": "a", "piece1": "b", "cut1": 0.5, "overlap1": 0}
    values |= {"scale.back": 0.5, "scale.skip": 0.5, "scale.switch": switch.coordinate(1.25)}
    plan = planned(space.decode(values))
    scales = {step.out: dict(step.params)["scale"][0] for step in plan.steps}
    assert scales["layers.4.mlp.down_proj.weight"] == 1.0
    assert scales["layers.5.mlp.down_proj.weight"] == pytest.approx(0.8)
    assert scales["layers.9.self_attn.o_proj.weight"] == pytest.approx(0.8)
    assert scales["layers.9.mlp.up_proj.weight"] == 1.0
    assert scales["lm_head.weight"] == 1.0


def test_a_repeated_layer_may_add_less_the_second_time():
    space = read({"slices": {"origin": "a", "depth": [10, 11], "scale": True}})
    scale = next(d for d in space.dimensions if d.name == "scale")
    values: Values = {"repeats": 1, "repeat1": 3, "scale": scale.coordinate(0.75)}
    plan = planned(space.decode(values))
    scales = {step.out: dict(step.params)["scale"][0] for step in plan.steps}
    assert scales["layers.3.mlp.down_proj.weight"] == 1.0
    assert scales["layers.4.mlp.down_proj.weight"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("slices", "told"),
    [
        ({"orign": ["a"]}, "recipe.slices: expected a list of slices, or one of origin, cuts"),
        ({"origin": ["a", "b"], "pre": 2}, "recipe.slices.pre: unknown key beside 'origin'"),
        ({"origin": ["a", "x"]}, "'x' is no model"),
        ({"origin": ["a", "merge"]}, "give 'models' beside 'slices'"),
        ({"origin": ["a", "short"]}, "write 'cuts'"),
        ({"origin": "a"}, "nothing to search"),
        ({"origin": "a", "depth": 10}, "nothing to search"),
        ({"origin": "a", "depth": [8, 10], "scale": True}, "no layer is repeated"),
        ({"origin": ["a", "b"], "per": 11}, "slices.per: expected 'layer' or a whole number"),
        ({"origin": "a", "depth": [0, 10]}, "slices.depth: expected"),
        ({"origin": "a", "depth": "few"}, "slices.depth: expected"),
        ({"cuts": 0, "of": ["a", "b"]}, "slices.cuts: expected a whole number from 1"),
        ({"cuts": 1, "of": ["a", "b"], "overlap": "x"}, "slices.overlap: expected"),
        ({"cuts": 1}, "slices.of: is missing; name the models to take layers from"),
        (
            {"cuts": 1, "of": []},
            "slices.of: expected models to take layers from, each once, got []",
        ),
        ({"walk": 2, "of": ["a", "b"]}, "encoding: numbers"),
        ({"walk": 1, "of": ["a", "b"], "scale": "all"}, "slices.scale: expected true"),
        ({"cuts": 1, "of": ["a", "b"], "scale": 0}, "or false, got 0; the scales themselves are"),
        ({"cuts": 1, "of": ["a", "b"], "scale": 1.0}, "or false, got 1.0; the scales themselves"),
        (
            {"origin": ["a", "b"], "depth": [8, 12], "scale": 1},
            "slices.scale: expected true or false beside 'origin', got 1; the scales themselves",
        ),
        ({"walk": 1, "of": ["a", "b"], "encoding": "x"}, "slices.encoding: expected auto"),
        ({"walk": 1, "of": ["a", "b"], "ends": ["x"]}, "slices.ends: expected some of"),
        (
            {"walk": 1, "of": ["a", "b"], "ends": "merge"},
            "slices.ends: 'merge' is no model; there is nothing to merge: give 'models' beside",
        ),
    ],
)
def test_mistakes_are_named(slices, told):
    mistakes: list[str] = []
    build_space({"slices": slices}, PARENTS, mistakes, PARENTS)
    assert told in "\n".join(mistakes)


@pytest.mark.parametrize(
    ("slices", "told"),
    [
        (
            [{"origin": "a"}],
            "slices[0]: 'origin' is no slice, it says all of them: write it without the dash",
        ),
        (
            {"choice": [{"origin": "a"}, [{"sources": [{"model": "a", "layer_range": [0, 3]}]}]]},
            "slices.choice[0]: expected a list of slices, as the other options are; between them",
        ),
    ],
)
@pytest.mark.parametrize("merged", [{}, MERGED])
def test_a_form_where_none_may_stand_is_one_mistake(slices, told, merged):
    mistakes: list[str] = []
    build_space(merged | {"slices": slices}, PARENTS, mistakes, PARENTS)
    (mistake,) = mistakes
    assert told in mistake


def test_merged_layers_are_scaled_as_copied_ones_are():
    """By what the models that are merged write with, also where none of them is an origin."""
    space = read(MERGED | {"slices": {"walk": 1, "of": ["merge", "short"], "scale": True}})
    values: Values = {d.name: d.low for d in space.dimensions if not isinstance(d, Choice)}
    scale = next(d for d in space.dimensions if d.name == "scale.switch")
    values |= {"jumps": 1, "piece0": "short", "piece1": "merge", "cut1": 0.5, "overlap1": 0}
    recipe = space.decode(values | {"scale.switch": scale.coordinate(1.25)})
    found = {step.out: step.scale for step in planned(recipe).steps}
    assert found["layers.2.mlp.down_proj.weight"] == 1.0
    assert found["layers.3.mlp.down_proj.weight"] == pytest.approx(0.8)
    assert found["layers.7.self_attn.o_proj.weight"] == pytest.approx(0.8)
    assert found["layers.7.mlp.up_proj.weight"] == found["lm_head.weight"] == 1.0
    assert from_dict(to_dict(recipe)) == recipe
    writers = space.template["slices"].writers
    assert set(writers) == {"short", "a", "merge"}  # a stands for the merge in the proof


def test_models_that_write_otherwise_have_no_common_scale():
    renamed = {name.replace("o_proj", "out_proj"): shape for name, shape in LAYER.items()}
    odd = PARENTS | {"b": checkpoint("b", 10, layer=renamed)}
    mistakes: list[str] = []
    slices = {"cuts": 1, "of": ["a", "merge"], "scale": True}
    build_space(MERGED | {"slices": slices}, odd, mistakes, odd)
    assert "what layers write with is named otherwise in 'b' than in 'a'" in "\n".join(mistakes)


def test_a_merge_that_is_a_copy_is_not_scaled():
    mistakes: list[str] = []
    slices = {"cuts": 1, "of": ["a", "merge"], "scale": True}
    recipe = {"merge_method": "passthrough", "models": ["b"], "slices": slices}
    build_space(recipe, PARENTS, mistakes, PARENTS)
    assert "is one model as it is; write that model instead of 'merge'" in "\n".join(mistakes)


def test_forms_need_the_models():
    mistakes: list[str] = []
    build_space({"slices": {"cuts": 1, "of": ["a", "b"]}}, PARENTS, mistakes)
    assert "needs the models" in "\n".join(mistakes)


@pytest.mark.parametrize("form", ["cuts", "walk"])
def test_composite_asks_for_new_models(form):
    """Borders between the same two layers mean one model, as drops in any order do."""
    space = read(FORMS[form][0])
    study = optuna.create_study(direction="maximize")
    keys: list[str] = []
    for _ in range(7):
        asked = ask_batch(study, space, Proposer("composite", 0, 4), 28)
        keys += [one.key for one in asked]
        for one in asked:
            one.tell([len(one.recipe.slices) + sum(map(len, one.recipe.models)) / 10])
    assert len(keys) == len(set(keys)) == 28


def test_ends_of_the_merge_have_its_depth():
    """Another parent of the study may be deeper than those that are merged."""
    deep = PARENTS | {"deep": checkpoint("deep", 14, layer=LAYER)}
    slices = {"origin": ["a", "merge"], "ends": "merge"}
    mistakes: list[str] = []
    space = build_space(MERGED | {"slices": slices}, deep, mistakes, deep)
    assert not mistakes
    for values in space.starts():
        assert compile_plan(space.decode(values), deep).depth == 10
