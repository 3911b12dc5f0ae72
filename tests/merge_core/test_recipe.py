"""Recipes in mergekit's dictionary form: read, written, compared, refused."""

import dataclasses

import pytest

from merge_core.errors import RecipeError
from merge_core.recipe import Recipe, Setting, Slice, Source, from_dict, nearest, to_dict

MODELS = {
    "merge_method": "ties",
    "base_model": "base",
    "models": [
        {"model": "a", "parameters": {"weight": 0.5, "density": [0.2, 0.8]}},
        {
            "model": "b",
            "parameters": {
                "weight": [{"value": [0.0, 1.0], "filter": "mlp"}, {"value": 0.3}],
                "density": [{"value": 1.0, "filter": "norm"}],
            },
        },
    ],
    "parameters": {"lambda": 0.9, "normalize": True},
    "dtype": "float32",
    "out_dtype": "bfloat16",
}
SLICES = {
    "merge_method": "slerp",
    "slices": [
        {
            "sources": [
                {"model": "a", "layer_range": [0, 2]},
                {"model": "b", "layer_range": [1, 3], "parameters": {"weight": 1.0}},
            ],
            "base_model": "a",
            "parameters": {"t": 0.4},
        },
        {"sources": [{"model": "b", "layer_range": [2, 3]}]},
    ],
}
FACTORS = {
    "merge_method": "linear",
    "slices": [
        {
            "sources": [{"model": "a", "layer_range": [0, 2]}],
            "parameters": {"weight": 0.5},
            "scale": [{"filter": ".o_proj.", "value": 1.25}, {"value": 0.5}],
        },
        {"sources": [{"model": "a", "layer_range": [2, 3]}], "scale": 0.8},
    ],
}
LINEAR = {"merge_method": "linear", "models": [{"model": "a"}]}
TOKENS = {
    "<x>": {"source": "a"},
    "<y>": {"source": {"kind": "zero"}, "force": True},
    "<z>": {"source": {"kind": "model_token", "model": "b", "token": "<x>"}},
    "[z]": {"source": {"kind": "model_token", "model": "c", "token_id": 7}},
}
EXTRAS = LINEAR | {
    "tokenizer": {"source": "d", "tokens": TOKENS, "pad_to_multiple_of": 64},
    "chat_template": "chatml",
    "compat": "mergekit",
}


@pytest.mark.parametrize("data", [MODELS, SLICES, FACTORS, LINEAR, EXTRAS])
def test_round_trip(data):
    recipe = from_dict(data)
    assert to_dict(recipe) == data
    assert from_dict(to_dict(recipe)) == recipe


def test_a_recipe_reads_into_plain_types():
    recipe = from_dict(MODELS)
    assert recipe.method == "ties"
    assert recipe.base == "base"
    assert recipe.dtype == "float32"
    assert recipe.out_dtype == "bfloat16"
    (part,) = recipe.slices
    assert [source.model for source in part.sources] == ["a", "b"]
    assert part.sources[0] == Source(
        "a", None, (("density", (Setting(None, (0.2, 0.8)),)), ("weight", (Setting(None, 0.5),)))
    )
    assert dict(part.sources[1].parameters)["weight"] == (
        Setting("mlp", (0.0, 1.0)),
        Setting(None, 0.3),
    )


def test_slices_read_their_ranges():
    first, last = from_dict(SLICES).slices
    assert first == Slice(
        (Source("a", (0, 2)), Source("b", (1, 3), (("weight", (Setting(None, 1.0),)),))),
        "a",
        (("t", (Setting(None, 0.4),)),),
    )
    assert last.base is None


def test_a_merged_slice_may_be_multiplied():
    first, last = from_dict(FACTORS).slices
    assert first.scale == (Setting(".o_proj.", 1.25), Setting(None, 0.5))
    assert last == Slice((Source("a", (2, 3)),), scale=(Setting(None, 0.8),))
    assert from_dict(FACTORS).renamed({"a": "x"}).slices[1].scale == last.scale
    bare = [{k: v for k, v in part.items() if k != "scale"} for part in FACTORS["slices"]]
    plain = from_dict(FACTORS | {"slices": bare})
    assert plain.slices[1] == Slice((Source("a", (2, 3)),))
    assert plain.fingerprint != from_dict(FACTORS).fingerprint


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (None, "expected a number, a boolean or a word, got None"),
        (True, "expected a number, got True"),
        ("half", "expected a number, got 'half'"),
        ([0.5, 1.0], "a factor has no gradient; write a slice for each factor"),
        ({"filter": "mlp", "value": [0.5, 1.0]}, "a factor has no gradient"),
        ([], "an empty list gives no value"),
        (float("nan"), "expected a number, a boolean or a word, got nan"),
        ({"filter": "mlp"}, "a filtered entry needs a 'value'"),
        ({"filtre": "mlp", "value": 1}, "unknown key 'filtre'; did you mean 'filter'"),
        (
            {"filter": "layers.1.mlp", "value": 0.5},
            "filter 'layers.1.mlp' names a layer by its number",
        ),
        ({"filter": "h.11", "value": 0.5}, "filter 'h.11' names a layer by its number"),
    ],
)
def test_factors_that_are_none(scale, message):
    part = FACTORS["slices"][1] | {"scale": scale}
    with pytest.raises(RecipeError, match=r"^slices\[0\].scale: " + message):
        from_dict({"merge_method": "linear", "slices": [part]})


def test_an_expert_has_a_number_too():
    part = FACTORS["slices"][1] | {"scale": {"filter": "experts.1.w2", "value": 0.5}}
    assert from_dict({"merge_method": "linear", "slices": [part]}).slices[0].scale


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (0.5, (Setting(None, 0.5),)),
        ("1e-5", (Setting(None, 1e-5),)),
        ("word", (Setting(None, "word"),)),
        (False, (Setting(None, False),)),
        ([0, "0.5", 1], (Setting(None, (0, 0.5, 1)),)),
        ({"value": 1.0}, (Setting(None, 1.0),)),
        ({"value": 1.0, "filter": "*"}, (Setting(None, 1.0),)),
        ({"value": 1.0, "filter": None}, (Setting(None, 1.0),)),
        ({"value": [0, 1], "filter": "mlp"}, (Setting("mlp", (0, 1)),)),
        ([{"value": 1, "filter": 3}, {"value": 2}], (Setting("3", 1), Setting(None, 2))),
    ],
)
def test_forms_of_a_value(written, read):
    recipe = from_dict(LINEAR | {"parameters": {"weight": written}})
    assert recipe.parameters == (("weight", read),)
    assert from_dict(to_dict(recipe)) == recipe


def test_a_model_can_be_a_bare_name():
    assert from_dict(LINEAR | {"models": ["a"]}) == from_dict(LINEAR)


MODULES = {
    "merge_method": "slerp",
    "base_model": "a",
    "modules": {
        "encoder": {"models": [{"model": "a"}, {"model": "b"}], "parameters": {"t": 0.5}},
        "decoder": {
            "slices": [{"sources": [{"model": m, "layer_range": [0, 2]} for m in "ac"]}],
        },
    },
    "parameters": {"t": [0.0, 1.0]},
}


def test_modules_round_trip():
    recipe = from_dict(MODULES)
    assert to_dict(recipe) == MODULES
    assert [module.name for module in recipe.modules] == ["encoder", "decoder"]
    assert recipe.slices == ()
    assert recipe.models == ("a", "b", "c")
    assert recipe.renamed({"c": "x", "a": "y"}).models == ("y", "b", "x")


def test_modules_with_a_tokenizer_round_trip():
    block = {"source": "union", "tokens": {"<x>": {"source": "d"}}}
    written = {key: value for key, value in MODULES.items() if key != "base_model"}
    recipe = from_dict(written | {"tokenizer": block, "compat": "mergekit"})
    assert from_dict(to_dict(recipe)) == recipe
    assert recipe.references == ("a", "b", "c", "d")
    assert recipe.donor == "a"
    assert recipe.renamed({"d": "x", "a": "y"}).references == ("y", "b", "c", "x")
    assert recipe.renamed({"a": "y"}).donor == "y"
    other = dataclasses.replace(recipe, modules=recipe.modules[:1])
    assert len({recipe.fingerprint, from_dict(written).fingerprint, other.fingerprint}) == 3


def test_models_are_listed_once_the_base_last():
    assert from_dict(MODELS).models == ("a", "b", "base")
    assert from_dict(SLICES).models == ("a", "b")
    assert from_dict(MODELS | {"base_model": "a"}).models == ("a", "b")


def test_parents_can_be_renamed():
    renamed = from_dict(SLICES).renamed({"a": "org/model-a", "x": "y"})
    assert renamed.models == ("org/model-a", "b")
    assert renamed.slices[0].base == "org/model-a"
    assert renamed.renamed({"org/model-a": "a"}) == from_dict(SLICES)
    assert from_dict(MODELS).renamed({"base": "c"}) == from_dict(MODELS | {"base_model": "c"})


# Fingerprints.


def test_the_fingerprint_is_pinned():
    # it names recorded merges: a change forgets every score that a study reuses
    assert from_dict(LINEAR).fingerprint == FINGERPRINT


@pytest.mark.parametrize(
    "same",
    [
        dict(reversed(MODELS.items())),
        MODELS | {"parameters": {"normalize": True, "lambda": 0.9}},
        MODELS | {"parameters": {"normalize": True, "lambda": "0.9"}},
        MODELS | {"parameters": {"normalize": True, "lambda": {"value": 0.9, "filter": "*"}}},
    ],
)
def test_the_fingerprint_ignores_the_way_of_writing(same):
    assert from_dict(same).fingerprint == from_dict(MODELS).fingerprint


def test_the_fingerprint_takes_1_for_one():
    one, same = (from_dict(LINEAR | {"parameters": {"weight": value}}) for value in (1, 1.0))
    assert one == same
    assert one.fingerprint == same.fingerprint


def test_a_dtype_may_be_written_as_torch_does():
    torch_names = {key: f"torch.{MODELS[key]}" for key in ("dtype", "out_dtype")}
    assert from_dict(MODELS | torch_names) == from_dict(MODELS)


@pytest.mark.parametrize(
    "other",
    [
        MODELS | {"merge_method": "dare_ties"},
        MODELS | {"base_model": "a"},
        MODELS | {"models": MODELS["models"][::-1]},
        MODELS | {"parameters": {"lambda": 0.9000001, "normalize": True}},
        MODELS | {"parameters": {"lambda": 0.9}},
        MODELS | {"dtype": "float16"},
        {key: value for key, value in MODELS.items() if key != "out_dtype"},
    ],
)
def test_the_fingerprint_sees_every_change(other):
    assert from_dict(other).fingerprint != from_dict(MODELS).fingerprint


def test_recipes_are_values():
    assert from_dict(MODELS) == from_dict(MODELS)
    assert len({from_dict(MODELS), from_dict(MODELS), from_dict(SLICES)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        from_dict(MODELS).base = "c"


# Everything that can be wrong.

SOURCE = {"model": "a", "layer_range": [0, 1]}


def tokens(entry: object) -> dict:
    return {"tokenizer": {"tokens": {"<x>": entry}}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"models": ["a"]}, "recipe: merge_method is missing; name one, such as 'linear'"),
        ({"merge_method": 3, "models": ["a"]}, "recipe: merge_method is missing"),
        ({"merge_method": "ties"}, "recipe: give exactly one of 'models', 'slices' and 'modules'"),
        (LINEAR | SLICES, "recipe: give exactly one of 'models', 'slices' and 'modules'"),
        (LINEAR | {"dype": "float32"}, "recipe: unknown key 'dype'; did you mean 'dtype'"),
        (LINEAR | {"xyzzy": 1}, "recipe: unknown key 'xyzzy'; known: merge_method, base_model, "),
        ({"merge_method": "linear", "modules": {}}, "modules: expected a mapping of module names"),
        (
            {"merge_method": "linear", "modules": {"encoder": {}}},
            "modules.encoder: expected a mapping with one of 'models' and 'slices'",
        ),
        (
            {"merge_method": "linear", "modules": {"x": {"models": ["a"], "base_model": "b"}}},
            "modules.x: unknown key 'base_model'",
        ),
        (LINEAR | {"base_model": {"pat": "x"}}, "recipe.base_model: unknown key 'pat'; known: mod"),
        (LINEAR | {"base_model": {"lora": "x"}}, "recipe.base_model: 'model' is missing"),
        (LINEAR | {"base_model": {"path": 1}}, "recipe.base_model: expected {path: …, revision: "),
        (LINEAR | {"base_model": {"model": 1}}, "base_model.model: expected a path or {path, rev"),
        (
            LINEAR | {"base_model": {"model": "x", "override_architecture": "y"}},
            "unknown key 'override_architecture'; leave it out; layers and roles are found",
        ),
        (
            LINEAR | {"compat": "yes"},
            "recipe.compat: expected 'mergekit' or no such key, got 'yes'",
        ),
        (LINEAR | {"tokenizer_source": 3}, "recipe.tokenizer_source: expected a name, got 3"),
        (
            LINEAR | {"tokenizer_source": "union", "tokenizer": {}},
            "recipe: give 'tokenizer_source' or 'tokenizer', not both",
        ),
        (LINEAR | {"tokenizer": "union"}, "recipe.tokenizer: expected a mapping, got 'union'"),
        (LINEAR | {"tokenizer": {"sorce": 1}}, "tokenizer: unknown key 'sorce'; did you mean 'so"),
        (LINEAR | {"tokenizer": {"tokens": [1]}}, "tokenizer.tokens: expected a mapping, got "),
        (
            LINEAR | {"tokenizer": {"pad_to_multiple_of": 0}},
            "expected a whole number above 0, got 0",
        ),
        (LINEAR | tokens("a"), "tokenizer.tokens.<x>: expected a mapping, got 'a'"),
        (LINEAR | tokens({"force": True}), "tokens.<x>: 'source' is missing; name a model, or"),
        (LINEAR | tokens({"source": "a", "froce": 1}), "unknown key 'froce'; did you mean 'force'"),
        (LINEAR | tokens({"source": "a", "force": 1}), "<x>.force: expected true or false, got 1"),
        (
            LINEAR | tokens({"source": {"kind": "one"}}),
            "kind: expected zero or model_token, got 'on",
        ),
        (
            LINEAR | tokens({"source": {"kind": "zero", "model": "a"}}),
            "source: unknown key 'model'",
        ),
        (
            LINEAR | tokens({"source": {"kind": "model_token", "model": "a"}}),
            "source: give 'token' or 'token_id', one of them",
        ),
        (
            LINEAR | tokens({"source": {"kind": "model_token", "model": "a", "token_id": "1"}}),
            "source.token_id: expected a whole number, got '1'",
        ),
        (LINEAR | {"dtype": "torch.int8"}, "recipe.dtype: 'torch.int8' is no dtype; known: "),
        (
            LINEAR | {"random_seed": 0},
            "recipe: unknown key 'random_seed'; give it on the command line: outcross merge --seed",
        ),
        (LINEAR | {"dtype": "float8"}, "recipe.dtype: 'float8' is no dtype; known: float32, fl"),
        (LINEAR | {"out_dtype": 16}, "recipe.out_dtype: expected a name, got 16"),
        (LINEAR | {"models": []}, "models: expected a list of models"),
        (LINEAR | {"models": {"a": 1}}, "models: expected a list of models"),
        (LINEAR | {"models": [3]}, r"models\[0\]: expected a mapping with 'model'"),
        (LINEAR | {"models": [{}]}, r"models\[0\]: 'model' is missing"),
        (LINEAR | {"models": [{"model": 1}]}, r"models\[0\].model: expected a name, got 1"),
        (
            LINEAR | {"models": ["a", {"model": "b", "parametres": {}}]},
            r"models\[1\]: unknown key 'parametres'; did you mean 'parameters'",
        ),
        (
            LINEAR | {"models": [SOURCE]},
            r"models\[0\]: unknown key 'layer_range'; leave it out for all",
        ),
        (
            LINEAR | {"parameters": [1]},
            r"parameters: expected a mapping of parameter names, got \[",
        ),
        (
            LINEAR | {"parameters": {"weight": []}},
            "parameters.weight: an empty list gives no value",
        ),
        (LINEAR | {"parameters": {"weight": None}}, "weight: expected a number, a boolean or a wo"),
        (LINEAR | {"parameters": {"weight": [[1]]}}, r"weight: expected a number, .* got \[1\]"),
        (
            LINEAR | {"parameters": {"weight": [1, {"value": 2}]}},
            "parameters.weight: expected a number, a boolean or a word, got {'value': 2}",
        ),
        (LINEAR | {"parameters": {"weight": {"filter": "m"}}}, "weight: a filtered entry needs a"),
        (
            LINEAR | {"parameters": {"weight": {"value": 1, "filtre": "m"}}},
            "parameters.weight: unknown key 'filtre'; did you mean 'filter'",
        ),
        (
            LINEAR | {"models": [{"model": "a", "parameters": {"weight": None}}]},
            r"models\[0\].parameters.weight: expected a number",
        ),
        ({"merge_method": "slerp", "slices": []}, "slices: expected a list of slices"),
        ({"merge_method": "slerp", "slices": SOURCE}, "slices: expected a list of slices"),
        ({"merge_method": "slerp", "slices": [1]}, r"slices\[0\]: expected a mapping with 'source"),
        ({"merge_method": "slerp", "slices": [{}]}, r"slices\[0\].sources: expected a list of mod"),
        (
            {"merge_method": "slerp", "slices": [{"source": [SOURCE]}]},
            r"slices\[0\]: unknown key 'source'; did you mean 'sources'",
        ),
        (
            {"merge_method": "slerp", "slices": [{"sources": [SOURCE], "residual_weight": 1}]},
            "unknown key 'residual_weight'; leave it out; mergekit reads it and never uses it",
        ),
        (
            {"merge_method": "slerp", "slices": [{"sources": [SOURCE], "base_model": 1}]},
            r"slices\[0\].base_model: expected a name, got 1",
        ),
    ],
)
def test_errors(data, message):
    with pytest.raises(RecipeError, match=message):
        from_dict(data)


def test_an_empty_gradient_behind_a_filter_is_refused():
    with pytest.raises(RecipeError, match=r"parameters.weight: an empty list gives no value"):
        from_dict(LINEAR | {"parameters": {"weight": {"value": [], "filter": "mlp"}}})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "nan", "-inf"])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(RecipeError, match=r"parameters.weight: "):
        from_dict(LINEAR | {"parameters": {"weight": value}})


@pytest.mark.parametrize("layers", [None, [2], [2, 1], [-1, 2], [0, 1, 2], [0.0, 1], "01"])
def test_layer_ranges_that_are_none(layers):
    source = {"model": "a", "layer_range": layers}
    with pytest.raises(
        RecipeError, match=r"slices\[0\].sources\[0\].layer_range: expected \[first, end\) .* got"
    ):
        from_dict({"merge_method": "passthrough", "slices": [{"sources": [source]}]})


def test_nearest_gives_one_name_or_all():
    assert nearest("wieght", ["weight", "density"]) == "did you mean 'weight'?"
    assert nearest("q", ["weight", "density"]) == "known: weight, density"


def test_tokenizer_source_is_the_short_form():
    short = from_dict(LINEAR | {"tokenizer_source": "union"})
    assert short == from_dict(LINEAR | {"tokenizer": {"source": "union"}})
    assert short == from_dict(LINEAR | {"tokenizer": {}})


def test_new_keys_change_the_fingerprint():
    recipes = [LINEAR, EXTRAS] + [
        {key: value for key, value in EXTRAS.items() if key != left}
        for left in ("tokenizer", "chat_template", "compat")
    ]
    assert len({from_dict(recipe).fingerprint for recipe in recipes}) == len(recipes)


def test_models_of_the_tokenizer_are_references_and_renamed():
    recipe = from_dict(EXTRAS)
    assert recipe.models == ("a",)
    assert recipe.references == ("a", "d", "b", "c")
    renamed = recipe.renamed({"a": "A", "b": "B", "d": "D"})
    assert renamed.references == ("A", "D", "B", "c")
    assert (renamed.chat_template, renamed.compat) == ("chatml", True)
    assert renamed.renamed({"A": "a", "B": "b", "D": "d"}) == recipe


def test_union_and_base_are_no_models():
    for word in ("union", "base"):
        recipe = from_dict(LINEAR | {"tokenizer_source": word})
        assert recipe.references == ("a",)
        assert recipe.renamed({word: "x"}) == recipe


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"path": "x"}, "x"),
        ({"path": "x", "revision": "v1"}, "x@v1"),
        ({"model": "x"}, "x"),
        ({"model": {"path": "x", "revision": "v1"}}, "x@v1"),
        ({"model": {"path": "x"}, "lora": {"path": "y", "revision": "v2"}}, "x+y@v2"),
        ({"model": "x", "lora": "y"}, "x+y"),
    ],
)
def test_the_dictionary_form_of_a_model(data, text):
    recipe = from_dict({"merge_method": "linear", "models": [{"model": data}], "base_model": data})
    assert recipe.models == (text,)
    assert recipe.base == text
    assert from_dict(LINEAR | {"tokenizer_source": data}).references == ("a", text)


def test_a_recipe_without_extras_writes_no_empty_keys():
    assert to_dict(Recipe("linear", (Slice((Source("a"),)),))) == LINEAR


FINGERPRINT = "d49979936d583674742bbf72160c21b43989769939ba01af4788ee141679ce89"
