"""Files of several documents: the order of stages, and what a later one knows of an earlier one."""

from pathlib import Path

import pytest
import torch
from tiny_tokens import trio

from merge_core.checkpoint import open_checkpoint
from merge_core.errors import RecipeError
from merge_core.export import write_model
from merge_core.parents import Parents
from merge_core.plan import compile_plan
from merge_core.recipe import from_dict
from merge_core.stages import planned_checkpoint, read_stages
from merge_core.vocabulary import align_vocabularies

WEIGHT = {"parameters": {"weight": 1}}


def document(*models: str, name: str | None = None, **more) -> dict:
    found = {"merge_method": "linear", "models": list(models), **WEIGHT, **more}
    return found | ({"name": name} if name else {})


def names(*documents: dict) -> list[str | None]:
    return [stage.name for stage in read_stages(documents)]


def test_stages_come_before_what_needs_them():
    last, middle, first = document("m", "x"), document("f", "y", name="m"), document("z", name="f")
    assert names(last, middle, first) == ["f", "m", None]
    assert names(first, middle, last) == ["f", "m", None]


def test_one_document_is_the_result():
    (stage,) = read_stages([document("a")])
    assert (stage.name, stage.needs, stage.where, stage.warnings) == (None, (), "", ())
    assert read_stages([document("a", name="x")]) == (stage,)


def test_what_the_result_does_not_need_is_told():
    spare, needed = document("one", name="two"), document("b", name="one")
    *_, result = read_stages([document("one"), needed, spare])
    assert result.warnings == ("document 'two' is not merged: the result does not need it",)


def test_only_models_are_references():
    """A stage may have the name of a method, of a token or of a source of tokenizers."""
    tokenizer = {"source": "union", "tokens": {"linear": {"source": "linear"}}}
    first, union = document("a", name="linear"), document("a", name="union")
    *stages, result = read_stages([first, union, document("b", tokenizer=tokenizer)])
    assert [stage.name for stage in stages] == ["linear"]
    assert result.needs == ("linear",)
    assert result.recipe.method == "linear"


def test_a_base_and_a_tokenizer_are_references():
    result = document("a", base_model="one", tokenizer_source="two")
    assert names(document("a", name="two"), document("a", name="one"), result) == [
        "one",
        "two",
        None,
    ]


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([document("a", name="x"), document("b", name="y")],
         "exactly one document must have no 'name': it is the result; 0 of 2 documents have none"),
        ([document("a"), document("b")], "2 of 2 documents have none"),
        ([document("x"), document("a", name="x"), document("b", name="x")],
         "two documents have the name 'x'; rename one"),
        ([document("x"), document("y", name="x"), document("x", name="y")],
         "documents need each other: 'x' needs 'y' needs 'x'; break the circle"),
        ([document("x"), document("x", name="x")], "'x' needs 'x'"),
        ([document("x"), document("a", name="x", dtyp="y")],
         "document 'x': recipe: unknown key 'dtyp'; did you mean 'dtype'?"),
        ([document("x"), document("a") | {"name": "a/b"}], "document 2: name must be a word"),
        ([document("x"), document("a") | {"name": 3}], "document 2: name must be a word"),
    ],
)  # fmt: skip
def test_mistakes(documents, message):
    with pytest.raises(RecipeError) as error:
        read_stages(documents)
    assert message in str(error.value)


def test_a_planned_stage_is_what_will_be_written(tmp_path: Path):
    models = trio(tmp_path)
    recipe = from_dict(document("a", "b", tokenizer_source="union", out_dtype="bfloat16"))
    opened = {name: open_checkpoint(models / name, name) for name in recipe.references}
    aligned = align_vocabularies(recipe, opened)
    plan = compile_plan(recipe, aligned.checkpoints)
    planned = planned_checkpoint(plan, "s", aligned.files)
    parents = Parents(aligned.checkpoints, torch.device("cpu"))
    write_model(plan, parents, tmp_path / "s", files=aligned.files)
    written = open_checkpoint(tmp_path / "s", "s")
    assert planned.tensors == written.tensors
    assert planned.layers == written.layers
    assert planned.config == written.config
    then = from_dict(document("s", "base", tokenizer_source="union"))
    plans = [
        compile_plan(then, align_vocabularies(then, {**opened, "base": base, "s": s}).checkpoints)
        for base in [open_checkpoint(models / "base", "base")]
        for s in (planned, written)
    ]
    assert plans[0] == plans[1]
