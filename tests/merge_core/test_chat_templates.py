"""Chat templates: who votes, and what transformers makes of what is written."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_tokens import write_speaker
from transformers import AutoTokenizer

from merge_core.chat_templates import NAMED, read_chat_template, template_of, templates_of
from merge_core.checkpoint import open_checkpoint
from merge_core.companions import companions, write_companions
from merge_core.errors import RecipeError
from merge_core.recipe import from_dict
from merge_core.vocabulary import align_vocabularies

A, B = ("{% for m in messages %}" + word + "{{ m.content }}{% endfor %}" for word in "AB")
TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes"},
    {"role": "user", "content": "Bye"},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, template in {"base": None, "a": A, "b": B, "b2": B}.items():
        write_speaker(folder / name, template=template)
    return folder


def aligned(models: Path, wanted: str | None, names: tuple[str, ...] = ("a", "b", "b2"), **more):
    recipe = {"merge_method": "linear", "models": list(names), "chat_template": wanted} | more
    read = from_dict(recipe)
    opened = {name: open_checkpoint(models / name, name) for name in read.references}
    return align_vocabularies(read, opened)


def prompt(folder: Path, files, **options) -> str:
    write_companions(files, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    tokens = AutoTokenizer.from_pretrained(folder)
    return tokens.apply_chat_template(TALK, tokenize=False, **options)


def test_auto_is_what_most_parents_have(models, tmp_path):
    assert prompt(tmp_path, aligned(models, "auto").files).startswith("BBe kind.B")


@pytest.mark.parametrize(("names", "first"), [(("a", "b"), "A"), (("b", "a"), "B")])
def test_the_donor_decides_between_equals(models, tmp_path, names, first):
    assert prompt(tmp_path, aligned(models, "auto", names).files).startswith(first)


def test_a_donor_without_one_leaves_it_to_the_order(models, tmp_path):
    files = aligned(models, "auto", ("b", "a"), base_model="base").files
    assert prompt(tmp_path, files).startswith("B")


def test_nobodys_template_is_a_warning(models):
    found = aligned(models, "auto", ("base",))
    assert found.warnings == ("chat_template: auto: no parent has one, so the output has none",)
    assert template_of(found.files) is None


def test_without_the_key_the_donors_survives(models, tmp_path):
    assert prompt(tmp_path, aligned(models, None).files).startswith("A")


def test_a_template_that_is_given_stands_in_both_places(models, tmp_path):
    files = aligned(models, B).files
    assert prompt(tmp_path, files).startswith("B")
    assert (tmp_path / "chat_template.jinja").read_text() == B
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"] == B


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("chatml", "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
         "<|im_start|>assistant\nYes<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
         "<|im_start|>assistant\n"),
        ("llama3", "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
         "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\nYes<|eot_id|>"
         "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n"),
        ("mistral", "<s>[INST] Be kind.\n\nHi [/INST] Yes</s>[INST] Bye [/INST]"),
        ("alpaca", "Be kind.\n\n### Instruction:\nHi\n\n### Response:\nYes</s>\n\n"
         "### Instruction:\nBye\n\n### Response:\n"),
        ("exaone", "[|system|]Be kind.[|endofturn|]\n[|user|]Hi\n[|assistant|]Yes[|endofturn|]\n"
         "[|user|]Bye\n[|assistant|]"),
    ],
)  # fmt: skip
def test_the_known_formats(models, tmp_path, name, text):
    assert prompt(tmp_path, aligned(models, name).files, add_generation_prompt=True) == text
    without = prompt(tmp_path, aligned(models, name).files)
    assert text.startswith(without)
    assert set(NAMED) == {"chatml", "llama3", "mistral", "alpaca", "exaone"}


def test_marks_that_are_no_tokens_are_a_warning(models, tmp_path):
    (warning,) = aligned(models, "chatml").warnings
    assert warning.startswith("chat_template: chatml writes <|im_start|>, <|im_end|>, which the")
    write_speaker(tmp_path / "a", ["<|im_start|>", "<|im_end|>"])
    assert aligned(tmp_path, "chatml", ("a",)).warnings == ()


def test_older_places_of_a_template_are_read_and_newer_ones_replaced(tmp_path):
    write_speaker(tmp_path / "old")
    file = tmp_path / "old/tokenizer_config.json"
    config = json.loads(file.read_text())
    several = [{"name": "tools", "template": A}, {"name": "default", "template": B}]
    for stated in (B, several):
        file.write_text(json.dumps(config | {"chat_template": stated}))
        (tmp_path / "old/chat_template.json").write_text("{}")
        files = companions(open_checkpoint(tmp_path / "old", "old"))
        assert template_of(files) == B
        changed = aligned(tmp_path, A, ("old",)).files
        assert template_of(changed) == A
        assert "chat_template.json" not in changed


def test_the_template_goes_with_its_tokenizer(models, tmp_path):
    recipe = {"base_model": "a", "tokenizer_source": "b"}
    assert prompt(tmp_path, aligned(models, None, ("b",), **recipe).files).startswith("B")


def test_a_tokenizer_without_a_template_gets_the_donors(tmp_path):
    write_speaker(tmp_path / "m/a", template=A)
    write_speaker(tmp_path / "m/plain")
    recipe = {"base_model": "a", "tokenizer_source": "plain"}
    files = aligned(tmp_path / "m", None, ("plain",), **recipe).files
    assert prompt(tmp_path, files).startswith("A")


@pytest.mark.parametrize("value", ["chat", "short {", "x" * 30, 3, ["auto"]])
def test_what_is_no_template(value):
    with pytest.raises(RecipeError, match=r"recipe.chat_template: .* is neither a name nor"):
        read_chat_template(value)


def test_a_misspelt_name_gets_the_nearest():
    with pytest.raises(RecipeError, match="did you mean 'chatml'"):
        read_chat_template("chat_ml")


@pytest.mark.parametrize(
    ("stated", "files"),
    [
        (None, {}),
        (A, {}),
        ([{"name": "loud", "template": A}, {"name": "default", "template": B}], {}),
        (A, {"chat_template.jinja": B}),
        (None, {"chat_template.jinja": A, "additional_chat_templates/loud.jinja": B}),
        (A, {"additional_chat_templates/loud.jinja": B}),
    ],
)
def test_templates_are_those_that_transformers_reads(
    tmp_path: Path, stated: Any, files: dict[str, str]
):
    folder = write_speaker(tmp_path / "a")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": stated}))
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    read: Any = AutoTokenizer.from_pretrained(folder).chat_template or {}
    expected = read if isinstance(read, dict) else {"default": read}
    assert templates_of(companions(open_checkpoint(folder, "a"))) == expected
