"""Vocabularies that differ: every row where the rule says, files that transformers loads."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_adapters import write_adapter
from tiny_tokens import BASE_TOKENS, resize, speaker_of, trio, write_speaker
from transformers import AutoModelForCausalLM, AutoTokenizer

from merge_core.adapters import with_adapter
from merge_core.checkpoint import digest, open_checkpoint
from merge_core.errors import CheckpointError, RecipeError
from merge_core.export import write_model
from merge_core.parents import Parents
from merge_core.plan import compile_plan
from merge_core.recipe import from_dict
from merge_core.vocabulary import align_vocabularies
from merge_core.vocabulary_tensors import vocabulary_tensors

CPU = torch.device("cpu")
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
START, END, TOOL, MORE = "<|start|>", "<|end|>", "<|tool|>", "<|more|>"
LINEAR = {"merge_method": "linear", "models": ["a", "b"], "parameters": {"weight": 1}}
ARITHMETIC = LINEAR | {"merge_method": "task_arithmetic", "base_model": "base"}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return trio(tmp_path_factory.mktemp("trio"))


def aligned_of(models: Path, recipe: dict):
    read = from_dict(recipe)
    opened = {name: open_checkpoint(models / name, name) for name in read.references}
    return align_vocabularies(read, opened)


def rows(models: Path, recipe: dict, tensor: str = VOCABULARY[0]) -> dict[str, torch.Tensor]:
    """One vocabulary tensor of each parent, after alignment."""
    checkpoints = aligned_of(models, recipe).checkpoints
    parents = Parents(checkpoints, CPU)
    return {name: parents.tensor(name, tensor) for name in from_dict(recipe).models}


def written(models: Path, recipe: dict, out: Path) -> Path:
    read, aligned = from_dict(recipe), aligned_of(models, recipe)
    plan = compile_plan(read, aligned.checkpoints)
    write_model(plan, Parents(aligned.checkpoints, CPU), out, files=aligned.files)
    return out


def ids(recipe: dict, models: Path) -> dict[str, int]:
    text = aligned_of(models, recipe).files["tokenizer.json"]
    data = json.loads(text if isinstance(text, str) else text.read_text())
    return {entry["content"]: entry["id"] for entry in data["added_tokens"]}


def row(models: Path, name: str, token: str, tensor: str = VOCABULARY[0]) -> torch.Tensor:
    number = speaker_of(models / name).get_vocab()[token]
    return load_file(models / name / "model.safetensors")[tensor][number]


# The rule.


@pytest.mark.parametrize("tensor", VOCABULARY)
def test_union_without_a_base_shares_what_one_has(models, tensor):
    found = rows(models, LINEAR | {"tokenizer_source": "union"}, tensor)
    assert ids(LINEAR | {"tokenizer_source": "union"}, models).items() >= {
        (START, 100),
        (END, 101),
        (TOOL, 102),
        (MORE, 103),
    }
    for name in "ab":
        assert torch.equal(found[name][100], row(models, "a", START, tensor))
        assert torch.equal(found[name][101], row(models, name, END, tensor))
        assert torch.equal(found[name][102], row(models, "b", TOOL, tensor))
        own = load_file(models / name / "model.safetensors")[tensor]
        assert torch.equal(found[name][:BASE_TOKENS], own[:BASE_TOKENS])


def test_what_two_have_and_the_base_lacks_is_their_mean(models):
    base = rows(models, ARITHMETIC | {"tokenizer_source": "union"})["base"]
    mean = (row(models, "a", END) + row(models, "b", END)) / 2
    torch.testing.assert_close(base[101], mean)
    assert torch.equal(base[100], row(models, "a", START))


def test_what_the_base_has_goes_before_the_other_owners(models):
    """`b` as base has <|tool|>, which then reaches the others from it."""
    recipe = {
        **LINEAR,
        "merge_method": "task_arithmetic",
        "base_model": "b",
        "models": ["a", "base"],
    }
    found = rows(models, recipe | {"tokenizer_source": "union"})
    number = ids(recipe | {"tokenizer_source": "union"}, models)
    for token in (TOOL, END, MORE):
        assert torch.equal(found["base"][number[token]], row(models, "b", token))
    assert torch.equal(found["a"][number[END]], row(models, "a", END))


def test_base_and_a_model_as_the_source(models):
    base = rows(models, ARITHMETIC | {"tokenizer_source": "base"})
    assert all(len(found) == BASE_TOKENS for found in base.values())
    found = rows(models, ARITHMETIC | {"tokenizer_source": "b"})
    assert all(len(table) == 103 for table in found.values())
    assert torch.equal(found["a"][100], row(models, "b", TOOL))
    assert torch.equal(found["a"][101], row(models, "a", END))


def test_a_source_outside_the_merge_gives_its_own_rows(models):
    recipe = {"merge_method": "passthrough", "models": ["base"], "tokenizer": {"source": "a"}}
    assert torch.equal(rows(models, recipe)["base"][100], row(models, "a", START))
    zero = rows(models, recipe | {"compat": "mergekit"})["base"]
    assert not zero[100:].any()
    assert "2 tokens" not in " ".join(aligned_of(models, recipe).warnings)


def test_rows_that_are_named_token_by_token(models):
    tokens = {
        START: {"source": "a", "force": True},
        TOOL: {"source": {"kind": "model_token", "model": "b", "token": "x"}},
        MORE: {"source": {"kind": "zero"}},
        END: {"source": {"kind": "model_token", "model": "a", "token_id": 7}, "force": True},
    }
    recipe = ARITHMETIC | {"tokenizer": {"source": "union", "tokens": tokens}}
    found, number = rows(models, recipe), ids(recipe, models)
    seven = load_file(models / "a/model.safetensors")[VOCABULARY[0]][7]
    for name in ("a", "b", "base"):
        assert torch.equal(found[name][number[START]], row(models, "a", START))
        assert torch.equal(found[name][number[END]], seven)
    assert torch.equal(found["b"][number[TOOL]], row(models, "b", TOOL))  # not forced
    assert torch.equal(found["a"][number[TOOL]], row(models, "b", "x"))
    assert not found["a"][number[MORE]].any()
    assert found["b"][number[MORE]].any()


def test_a_token_that_no_tokenizer_has_is_added(models, tmp_path):
    tokens = {"<|new|>": {"source": {"kind": "model_token", "model": "a", "token": "y"}}}
    recipe = ARITHMETIC | {"tokenizer": {"source": "base", "tokens": tokens}}
    out = written(models, recipe, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out)("<|new|>")["input_ids"] == [1, 100]
    assert torch.equal(rows(models, recipe)["b"][100], row(models, "a", "y"))


def test_nobodys_tokens_are_zero_with_a_warning(models):
    recipe = LINEAR | {"tokenizer": {"source": "union"}}
    short = {**recipe, "models": ["a", "short"]}
    folder = models.parent / "with_short"
    shutil.copytree(models, folder, dirs_exist_ok=True)
    write_speaker(folder / "short", ["<|lost|>"], seed=4)
    resize(folder / "short", BASE_TOKENS)
    aligned = aligned_of(folder, short)
    said = " ".join(aligned.warnings)
    assert "model 'short' has 1 tokens without a row, such as '<|lost|>'" in said
    assert "1 tokens, such as '<|lost|>', are in no parent: their rows are zero" in said
    assert not rows(folder, short)["a"][-1].any()


def test_only_what_moves_is_derived(models):
    recipe = LINEAR | {"models": ["a", "base"], "tokenizer_source": "a", "base_model": "a"}
    checkpoints = aligned_of(models, recipe).checkpoints
    assert not checkpoints["a"].derived
    assert set(checkpoints["base"].derived) == set(VOCABULARY)


@pytest.mark.parametrize("family", ["llama", "llama_tied", "qwen2", "gpt_neox", "gpt2"])
def test_every_family_merges_loads_and_speaks(tmp_path, family):
    trio(tmp_path, family, dtype=torch.bfloat16)
    out = written(tmp_path, ARITHMETIC | {"tokenizer_source": "union"}, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out)
    tokens = AutoTokenizer.from_pretrained(out)
    assert model.config.vocab_size == 104 == len(tokens)
    read = tokens(f"{TOOL}a{END}", return_tensors="pt")["input_ids"]
    assert read.tolist()[0] == [1, 102, tokens.get_vocab()["a"], 101]
    assert model(read).logits.isfinite().all()


def test_positions_are_no_tokens(tmp_path):
    write_speaker(tmp_path / "x", rows=128, family="gpt2")  # as many as it has positions
    checkpoint = open_checkpoint(tmp_path / "x", "x")
    assert vocabulary_tensors(checkpoint) == ("transformer.wte.weight",)


def test_rows_of_an_adapter_reach_the_others(models, tmp_path):
    own = load_file(models / "a/model.safetensors")
    write_adapter(tmp_path, {VOCABULARY[0]: own[VOCABULARY[0]] + 1})
    recipe = from_dict(LINEAR | {"tokenizer_source": "union"})
    opened = {name: open_checkpoint(models / name, name) for name in "ab"}
    opened["a"] = with_adapter(opened["a"], tmp_path)
    parents = Parents(align_vocabularies(recipe, opened).checkpoints, CPU)
    assert torch.equal(parents.tensor("b", VOCABULARY[0])[100], row(models, "a", START) + 1)


def test_ordinary_pieces_of_another_vocabulary_leave_the_donors_texts_alone(models, tmp_path):
    """In mergekit they become added tokens, found inside words."""
    shutil.copytree(models, tmp_path / "m")
    file = tmp_path / "m/b/tokenizer.json"
    data = json.loads(file.read_text())
    data["model"]["vocab"]["ab"] = data["model"]["vocab"].pop("z")
    file.write_text(json.dumps(data))
    recipe = LINEAR | {"tokenizer_source": "union"}
    (warning,) = aligned_of(tmp_path / "m", recipe).warnings
    assert warning.startswith("1 ordinary pieces of 'b' are not in 'a': they get rows, but texts")
    for compat, pieces in ((None, 4), ("mergekit", 3)):
        out = written(tmp_path / "m", recipe | {"compat": compat}, tmp_path / f"out{compat}")
        speaker = AutoTokenizer.from_pretrained(out)
        assert "ab" in speaker.get_vocab()
        assert len(speaker("cab")["input_ids"]) == pieces
    row_of_ab = rows(tmp_path / "m", recipe)["a"][speaker.get_vocab()["ab"]]
    assert torch.equal(row_of_ab, row(tmp_path / "m", "b", "ab"))


# Padding.


def test_padding_that_the_parents_have_is_kept(tmp_path):
    for seed, (name, tokens) in enumerate({"a": [START], "b": [TOOL]}.items()):
        write_speaker(tmp_path / name, tokens, rows=128, seed=seed)
    recipe = LINEAR | {"tokenizer_source": "union"}
    found = rows(tmp_path, recipe)
    for name in "ab":
        own = load_file(tmp_path / name / "model.safetensors")[VOCABULARY[0]]
        assert torch.equal(found[name][102:], own[102:])
    shrunk = rows(tmp_path, recipe | {"compat": "mergekit"})
    assert all(len(table) == 102 for table in shrunk.values())


def test_parents_with_unequal_padding_keep_its_multiple(tmp_path):
    write_speaker(tmp_path / "a", [START], rows=128)
    write_speaker(tmp_path / "b", [TOOL], rows=192, seed=1)
    found = rows(tmp_path, LINEAR | {"tokenizer_source": "union"})
    assert all(len(table) == 128 for table in found.values())


def test_padding_that_is_asked_for_is_the_mean_of_the_rest(models):
    recipe = ARITHMETIC | {"tokenizer": {"pad_to_multiple_of": 64}}
    for table in rows(models, recipe).values():
        assert len(table) == 128
        torch.testing.assert_close(table[104:], table[:104].mean(0).expand(24, -1))


def test_means_of_float64_rows_are_in_float64(tmp_path):
    for seed, name in enumerate(("a", "b", "base")):
        write_speaker(tmp_path / name, [] if name == "base" else [END], seed=seed)
        path = tmp_path / name / "model.safetensors"
        wide = {key: tensor.double() + 1e-9 for key, tensor in load_file(path).items()}
        save_file(wide, path, metadata={"format": "pt"})
    stored = {"out_dtype": "float32", "tokenizer": {"source": "union", "pad_to_multiple_of": 64}}
    base = rows(tmp_path, ARITHMETIC | stored)["base"]
    mean = (row(tmp_path, "a", END) + row(tmp_path, "b", END)) / 2
    torch.testing.assert_close(base[100], mean, atol=1e-16, rtol=0)
    torch.testing.assert_close(base[101], base[:101].mean(0), atol=1e-16, rtol=0)


# Files and configuration.


def test_new_tokens_have_the_same_numbers_under_any_hash_seed(models):
    code = (
        "import json, sys; sys.path[:0] = sys.argv[2:]; from pathlib import Path\n"
        "import test_vocabulary as t\n"
        "print(json.dumps(t.ids(t.LINEAR | {'tokenizer_source': 'union'}, Path(sys.argv[1]))))"
    )
    here = [str(Path(__file__).parent), *(path for path in sys.path if path)]
    found = {
        subprocess.run(
            [sys.executable, "-c", code, str(models), *here],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert len(found) == 1


def test_the_sources_special_tokens_reach_the_configuration(models, tmp_path):
    shutil.copytree(models, tmp_path / "m")
    other, base = tmp_path / "m/b", tmp_path / "m/base"
    config = json.loads((other / "config.json").read_text()) | {"eos_token_id": 101}
    (other / "config.json").write_text(json.dumps(config))
    settings = {"eos_token_id": [2, 1], "pad_token_id": 0, "temperature": 0.3}
    (base / "generation_config.json").write_text(json.dumps(settings))
    (other / "generation_config.json").write_text(json.dumps({"pad_token_id": 102}))
    out = written(tmp_path / "m", ARITHMETIC | {"tokenizer_source": "b"}, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert (config["eos_token_id"], config["bos_token_id"]) == (101, 1)
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [2, 1], "pad_token_id": 102, "temperature": 0.3}


def test_without_a_block_the_donors_files_survive(models, tmp_path):
    shutil.copytree(models / "a", tmp_path / "a")
    (tmp_path / "a/generation_config.json").write_text('{"temperature": 0.25}')
    (tmp_path / "a/chat_template.jinja").write_text("{{ messages }}")
    extra = tmp_path / "a/additional_chat_templates/tools.jinja"
    extra.parent.mkdir()
    extra.write_text("{{ tools }}")
    out = written(tmp_path, {"merge_method": "passthrough", "models": ["a"]}, tmp_path / "out")
    for name in ("generation_config.json", "chat_template.jinja", "tokenizer.json"):
        assert (out / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    assert (out / "additional_chat_templates/tools.jinja").read_text() == "{{ tools }}"


def test_second_spellings_of_a_changed_vocabulary_are_left_out(models, tmp_path):
    shutil.copytree(models, tmp_path / "m")
    (tmp_path / "m/a/vocab.json").write_text("{}")
    config = json.loads((tmp_path / "m/a/tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {}
    (tmp_path / "m/a/tokenizer_config.json").write_text(json.dumps(config))
    files = aligned_of(tmp_path / "m", LINEAR | {"tokenizer_source": "union"}).files
    assert "vocab.json" not in files
    decoder = json.loads(files["tokenizer_config.json"])["added_tokens_decoder"]
    assert {decoder[str(n)]["content"] for n in range(100, 104)} == {START, END, TOOL, MORE}


def test_the_digest_covers_the_tokenizers(models, tmp_path):
    shutil.copytree(models, tmp_path / "m")
    recipe = LINEAR | {"tokenizer_source": "union"}
    before = digest(aligned_of(tmp_path / "m", recipe).checkpoints["a"])
    file = tmp_path / "m/b/tokenizer.json"
    file.write_text(file.read_text().replace(MORE, "<|else|>"))
    assert digest(aligned_of(tmp_path / "m", recipe).checkpoints["a"]) != before


# A tied head and one of its own.


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """`base` and `b` tie their heads, `a` has one of its own."""
    folder = tmp_path_factory.mktemp("mixed")
    write_speaker(folder / "base", seed=0, family="llama_tied")
    write_speaker(folder / "a", [START, END], seed=1)
    write_speaker(folder / "b", [TOOL, END], seed=2, family="llama_tied")
    return folder


@pytest.mark.parametrize("models_", [["a", "b"], ["b", "a"]], ids="".join)
def test_tied_and_untied_heads_are_merged_by_token(mixed, tmp_path, models_):
    recipe = LINEAR | {"models": models_, "tokenizer_source": "union"}
    out = written(mixed, recipe, tmp_path / "out")
    tensors = load_file(out / "model.safetensors")
    number = speaker_of(out).get_vocab()
    for token, owners in ((START, "aa"), (TOOL, "bb"), (END, "ab"), ("x", "ab")):
        for tensor in VOCABULARY:
            stored = {"a": tensor, "b": VOCABULARY[0]}  # b's embeddings are its head
            given = [row(mixed, owner, token, stored[owner]) for owner in owners]
            assert tensors[tensor][number[token]].allclose((given[0] + given[1]) / 2, atol=1e-6)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert not model.config.tie_word_embeddings
    assert model.lm_head.weight.equal(tensors["lm_head.weight"])


def test_filters_of_a_tied_parent_find_its_head(mixed, tmp_path):
    weight = [{"filter": "lm_head", "value": 0}, {"value": 1}]
    models_ = [{"model": "a"}, {"model": "b", "parameters": {"weight": weight}}]
    recipe = LINEAR | {"models": models_, "tokenizer_source": "union"}
    head = rows(mixed, recipe | {"models": ["a", "b"]}, VOCABULARY[0])["b"]
    out = load_file(written(mixed, recipe, tmp_path / "out") / "model.safetensors")
    own = load_file(mixed / "a/model.safetensors")["lm_head.weight"]
    assert out["lm_head.weight"][:100].allclose(own[:100], atol=1e-6)
    assert not out[VOCABULARY[0]][:100].allclose(head[:100])


def test_an_adapter_on_tied_embeddings_changes_the_digest_of_who_takes_its_rows(mixed, tmp_path):
    embedding = load_file(mixed / "b/model.safetensors")[VOCABULARY[0]]
    parts = {
        "model.embed_tokens.lora_embedding_A": torch.ones(2, embedding.shape[0]),
        "model.embed_tokens.lora_embedding_B": torch.ones(embedding.shape[1], 2),
    }
    read = from_dict(LINEAR | {"tokenizer_source": "union"})
    found = []
    for folder, factor in (("one", 1.0), ("two", 2.0)):
        write_adapter(tmp_path / folder, {name: factor * part for name, part in parts.items()})
        b = with_adapter(open_checkpoint(mixed / "b", "b"), tmp_path / folder)
        opened = {"a": open_checkpoint(mixed / "a", "a"), "b": b}
        found.append(digest(align_vocabularies(read, opened).checkpoints["a"]))
    assert found[0] != found[1]


# Warnings and errors.


def test_equal_lengths_with_other_tokens_are_a_warning(tmp_path):
    write_speaker(tmp_path / "a", [START], rows=104)
    write_speaker(tmp_path / "b", [TOOL], rows=104)
    (warning,) = aligned_of(tmp_path, LINEAR).warnings
    assert warning == (
        "the tokens of 'b' and 'a' differ: number 100 is '<|tool|>' in one and '<|start|>' in the "
        "other. Rows are merged by number; to merge them by token add 'tokenizer: {source: union}'"
    )
    write_speaker(tmp_path / "b", [START, TOOL], rows=104)
    (warning,) = aligned_of(tmp_path, LINEAR).warnings
    assert "'<|tool|>' is in the first only" in warning


def test_equal_tokens_are_no_warning(models, tmp_path):
    shutil.copytree(models / "a", tmp_path / "a")
    shutil.copytree(models / "a", tmp_path / "b")
    assert aligned_of(tmp_path, LINEAR).warnings == ()
    (tmp_path / "b/tokenizer.json").write_text("{}")
    assert aligned_of(tmp_path, LINEAR).warnings == ()
    (tmp_path / "b/tokenizer.json").unlink()
    assert aligned_of(tmp_path, LINEAR).warnings == ()


def test_unequal_lengths_without_a_block_name_the_repair(models):
    recipe = from_dict(LINEAR)
    checkpoints = aligned_of(models, LINEAR).checkpoints
    with pytest.raises(
        RecipeError, match=r"vocabularies differ; add 'tokenizer: \{source: union\}"
    ):
        compile_plan(recipe, checkpoints)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (LINEAR | {"tokenizer_source": "base"}, "'base' needs base_model; set it"),
        (LINEAR | {"tokenizer": {"tokens": {"x": {"source": {"kind": "model_token", "model": "a",
         "token": "<|nope|>"}, "force": True}}}}, "tokens.x: model 'a' has no token '<|nope|>'"),
        (LINEAR | {"tokenizer": {"tokens": {"x": {"source": {"kind": "model_token", "model": "a",
         "token_id": 102}, "force": True}}}}, "tokens.x: model 'a' has no row 102"),
        (LINEAR | {"tokenizer": {"tokens": {TOOL: {"source": "a"}}}}, "model 'a' has no token"),
    ],
)  # fmt: skip
def test_mistakes(models, recipe, message):
    with pytest.raises(RecipeError) as error:
        aligned_of(models, recipe)
    assert message in str(error.value)


def test_a_model_that_is_not_open(models):
    recipe = from_dict(LINEAR | {"tokenizer_source": "c"})
    opened = {name: open_checkpoint(models / name, name) for name in "ab"}
    with pytest.raises(RecipeError, match="model 'c' is not open"):
        align_vocabularies(recipe, opened)


def test_a_tokenizer_without_its_json(models, tmp_path):
    shutil.copytree(models, tmp_path / "m")
    recipe = LINEAR | {"tokenizer_source": "union"}
    (tmp_path / "m/b/tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"model 'b' .*tokenizer.json can't be read"):
        aligned_of(tmp_path / "m", recipe)
    (tmp_path / "m/b/tokenizer.json").unlink()
    (tmp_path / "m/b/tokenizer.model").write_bytes(b"x")
    with pytest.raises(
        CheckpointError, match=r"no tokenizer.json beside tokenizer.model.*write one"
    ):
        aligned_of(tmp_path / "m", recipe)


def test_a_model_without_a_vocabulary(models):
    recipe = from_dict(LINEAR | {"tokenizer_source": "union"})
    opened = {name: open_checkpoint(models / name, name) for name in "ab"}
    bare = {n: s for n, s in opened["b"].tensors.items() if n not in VOCABULARY}
    outer = {**opened["b"].layers, None: ("model.norm.weight",)}
    opened["b"] = replace(opened["b"], tensors=bare, layers=outer)
    with pytest.raises(CheckpointError, match="none of its tensors has a row for each token"):
        align_vocabularies(recipe, opened)
