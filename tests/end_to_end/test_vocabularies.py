"""A study whose parents have other vocabularies, one of them with an adapter."""

from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from safetensors.torch import load_file
from tiny_adapters import low_rank, write_adapter
from tiny_study import study_dict, write_tasks
from tiny_tokens import trio, write_speaker
from transformers import AutoModelForCausalLM, AutoTokenizer

from search.bench import check_study
from search.commands import compare_study, export_study, run_study
from search.errors import ProtocolError, StudyError
from search.merge_command import merge_options, merge_recipe

MODULE = "model.layers.0.self_attn.q_proj"
MODELS = {"base": "./models/base", "a": "./models/a+./lora", "b": {"path": "./models/b"}}


def write(folder: Path, **changes) -> Path:
    recipe = study_dict()["recipe"] | {"tokenizer": {"source": "union"}, "chat_template": "chatml"}
    study = study_dict(models=MODELS, recipe=recipe | changes.pop("recipe", {}))
    study["search"]["trials"] = 3
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study | changes, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    trio(folder / "models")
    write_tasks(folder)
    write_adapter(folder / "lora", low_rank(folder / "models/a", [MODULE]))
    return folder


def test_a_study_of_three_vocabularies_and_an_adapter(folder, tmp_path):
    study = write(folder)
    said = StringIO()
    assert run_study(study, Console(file=said))
    assert "Warning: chat_template: chatml writes <|im_start|>" in said.getvalue()
    compare_study(study, silent())
    export_study(study, tmp_path / "out", silent())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokens) == model.config.vocab_size == 104
    assert "<|im_start|>user" in tokens.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False
    )
    recipe = tmp_path / "out/recipe.yaml"
    merge_recipe(recipe, tmp_path / "again", silent(), merge_options(0, "cpu", "1GB", None),
                 dry_run=False)  # fmt: skip
    first, again = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert all(first[name].equal(again[name]) for name in first)
    assert not list((folder / "runs").rglob(".outcross-*"))


def test_a_study_of_tied_and_untied_parents(tmp_path):
    for seed, (name, family) in enumerate({"base": "llama_tied", "a": "llama"}.items()):
        write_speaker(tmp_path / "models" / name, ["<|x|>"] * seed, seed=seed, family=family)
    write_speaker(tmp_path / "models/b", seed=2, family="llama_tied")
    write_tasks(tmp_path)
    study = study_dict()
    study["recipe"] |= {"tokenizer": {"source": "union"}}
    study["search"]["trials"] = 3
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    assert run_study(tmp_path / "study.yaml", silent())
    compare_study(tmp_path / "study.yaml", silent())
    export_study(tmp_path / "study.yaml", tmp_path / "out", silent())
    options = merge_options(0, "cpu", "1GB", None)
    merge_recipe(tmp_path / "out/recipe.yaml", tmp_path / "again", silent(), options, dry_run=False)
    first, again = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert first.keys() == again.keys() >= {"lm_head.weight"}
    assert all(first[name].equal(again[name]) for name in first)


def test_a_changed_adapter_is_another_study(folder):
    study = write(folder)
    run_study(study, silent())
    write_adapter(folder / "lora", low_rank(folder / "models/a", [MODULE], seed=5))
    with pytest.raises(ProtocolError):
        run_study(study, silent())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": {"source": "c"}}, "recipe.tokenizer: 'c' is not under 'models'"),
        ({"tokenizer": {"sorce": "a"}}, "recipe.tokenizer: unknown key 'sorce'; did you mean"),
        ({"tokenizer": {"tokens": {"x": {"source": "c"}}}}, "'c' is not under 'models'"),
        ({"tokenizer": None}, "their vocabularies differ; add 'tokenizer: {source: union}'"),
        ({"tokenizer": {"tokens": {"<|tool|>": {"source": "a"}}}}, "recipe.tokenizer.tokens.<|t"),
        ({"chat_template": "chatmll"}, "did you mean 'chatml'?"),
    ],
)
def test_mistakes_are_found_before_anything_is_spent(folder, changes, message):
    with pytest.raises(StudyError) as error:
        check_study(write(folder, recipe=changes))
    assert message in str(error.value)
    assert len(error.value.mistakes) == 1


def test_a_model_in_a_form_that_is_none(folder):
    models = MODELS | {"b": {"path": "./models/b", "revison": "x"}}
    with pytest.raises(StudyError, match=r"models.b: .*unknown key 'revison'; did you mean 'revi"):
        check_study(write(folder, models=models))


def silent() -> Console:
    return Console(file=StringIO())
