"""`outcross merge`: several documents, tokenizers, adapters, what is kept and what is checked."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from tiny_adapters import low_rank, write_adapter
from tiny_tokens import trio
from transformers import AutoModelForCausalLM, AutoTokenizer

from search import cli, merging

Run = Callable[..., tuple[int, str, str]]
HALF = {"parameters": {"weight": 0.5}, "merge_method": "linear"}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `outcross` in this process: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["outcross", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def models(tmp_path: Path, trio_folder: Path) -> Path:
    shutil.copytree(trio_folder, tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture(scope="module")
def trio_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trio(tmp_path_factory.mktemp("trio"))


def write(folder: Path, *documents: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump_all(documents, sort_keys=False))
    return path


def two_stages(models: Path) -> list[dict[str, Any]]:
    """A stage with the name of a method, and a result that takes its base and tokenizer from it."""
    a, b, base = (str(models / name) for name in ("a", "b", "base"))
    return [
        {"name": "linear", "models": [a, b], "tokenizer": {"source": "union"}} | HALF,
        {"models": ["linear", base], "base_model": "linear", "tokenizer_source": "base"} | HALF,
    ]


def test_documents_are_merged_in_turn(run: Run, models: Path, tmp_path: Path):
    recipe = write(tmp_path, *two_stages(models))
    code, out, _ = run("merge", recipe, tmp_path / "out")
    assert code == 0
    assert out.index("linear:") < out.index("result:")
    tables = {
        name: load_file(models / name / "model.safetensors")["lm_head.weight"]
        for name in ("a", "b", "base")
    }
    merged = load_file(tmp_path / "out/model.safetensors")["lm_head.weight"]
    first = (tables["a"][:100] + tables["b"][:100]) / 2
    assert merged[:100].allclose((first + tables["base"]) / 2, atol=1e-7)
    assert merged[100].allclose(tables["a"][100], atol=1e-7)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == 104
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "out", "recipe.yaml"]


def test_a_later_documents_mistake_is_found_before_any_work(
    run: Run, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(merging, "write_model", lambda *_, **__: pytest.fail("written"))
    first, result = two_stages(models)
    del result["tokenizer_source"]  # the stage has 104 tokens, the base 100
    code, _, err = run("merge", write(tmp_path, first, result), tmp_path / "out")
    assert code == 2
    assert "parents of one recipe need equal shapes (their vocabularies differ; add" in err
    (first_bad := dict(first))["parameters"] = {"wieght": 1}
    code, _, err = run("merge", write(tmp_path, first_bad, result), tmp_path / "out")
    assert "document 'linear': " in err
    assert "did you mean 'weight'?" in err


def test_a_misspelt_stage_gets_the_nearest(run: Run, models: Path, tmp_path: Path):
    first, result = two_stages(models)
    result["models"] = ["linear", "linea"]
    _, _, err = run("merge", write(tmp_path, first, result), "--dry-run")
    assert "'linea': there is no such folder" in err
    assert "of the documents did you mean 'linear'?" in err


def test_kept_stages_are_used_again_only_if_nothing_changed(
    run: Run, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written: list[str] = []
    real = merging.write_model

    def spy(plan: Any, parents: Any, folder: Path, **options: Any) -> None:
        written.append(folder.name)
        real(plan, parents, folder, **options)

    monkeypatch.setattr(merging, "write_model", spy)
    documents = two_stages(models)

    def merge(name: str) -> list[str]:
        written.clear()
        recipe = write(tmp_path, *documents)
        code, _, err = run("merge", recipe, tmp_path / name, "--keep-stages", tmp_path / "kept")
        assert (code, err) == (0, "")
        return list(written)

    assert merge("one") == ["linear", "one"]
    assert merge("two") == ["two"]
    documents[0]["parameters"] = {"weight": 0.25}
    assert merge("three") == ["linear", "three"]
    shutil.rmtree(models / "b")
    shutil.copytree(models / "a", models / "b")
    assert merge("four") == ["linear", "four"]
    assert merge("five") == ["five"]


def test_a_folder_of_somebody_else_is_not_removed(run: Run, models: Path, tmp_path: Path):
    (tmp_path / "kept/linear").mkdir(parents=True)
    (tmp_path / "kept/linear/mine.txt").write_text("x")
    recipe = write(tmp_path, *two_stages(models))
    code, _, err = run("merge", recipe, tmp_path / "out", "--keep-stages", tmp_path / "kept")
    assert code == 2
    assert "linear is not empty; give a new folder" in err
    assert (tmp_path / "kept/linear/mine.txt").exists()


def test_a_full_output_is_refused_before_the_stages(
    run: Run, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(merging, "write_model", lambda *_, **__: pytest.fail("written"))
    code, _, err = run("merge", write(tmp_path, *two_stages(models)), models)
    assert (code, "models is not empty; give a new folder" in err) == (2, True)


def test_an_adapter_in_a_recipe(run: Run, models: Path, tmp_path: Path):
    module = "model.layers.0.self_attn.q_proj"
    parts = low_rank(models / "a", [module])
    write_adapter(tmp_path / "lora", parts)
    whole = {"model": {"path": str(models / "a")}, "lora": {"path": str(tmp_path / "lora")}}
    for number, model in enumerate((f"{models / 'a'}+{tmp_path / 'lora'}", whole)):
        recipe = write(tmp_path, {"merge_method": "passthrough", "models": [{"model": model}]})
        assert run("merge", recipe, tmp_path / f"out{number}")[0] == 0
        merged = load_file(tmp_path / f"out{number}/model.safetensors")[f"{module}.weight"]
        alone = load_file(models / "a/model.safetensors")[f"{module}.weight"]
        up, down = (parts[f"{module}.lora_{part}.weight"] for part in "BA")
        assert merged.allclose(alone + 2 * up @ down, atol=1e-6)


def test_shards_of_a_given_size_load(run: Run, models: Path, tmp_path: Path):
    recipe = write(tmp_path, {"models": [str(models / "base")], **HALF})
    assert run("merge", recipe, tmp_path / "out", "--shard-size", "40kB")[0] == 0
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("text", ["5", "0.5MB", "2gb", "1 TB", "7B"])
def test_sizes_that_can_be_read(run: Run, models: Path, tmp_path: Path, text: str):
    recipe = write(tmp_path, {"models": [str(models / "base")], **HALF})
    assert run("merge", recipe, "--dry-run", "--shard-size", text)[0] == 0


@pytest.mark.parametrize("text", ["big", "-1GB", "0", "5PB", "5 GB each"])
def test_sizes_that_cannot(run: Run, models: Path, tmp_path: Path, text: str):
    recipe = write(tmp_path, {"models": [str(models / "base")], **HALF})
    code, _, err = run("merge", recipe, "--dry-run", f"--shard-size={text}")
    assert (code, "expected a size such as 5GB" in err) == (2, True)


def test_random_seed_is_another_name_of_seed(run: Run, models: Path, tmp_path: Path):
    drop = {"merge_method": "dare_linear", "base_model": str(models / "base")}
    drop |= {"models": [str(models / "a")], "parameters": {"weight": 1, "density": 0.5}}
    recipe = write(tmp_path, drop | {"tokenizer_source": "base"})
    for name, option in (("one", "--seed"), ("two", "--random-seed")):
        assert run("merge", recipe, tmp_path / name, option, "7")[0] == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(one[name].equal(two[name]) for name in one)


def test_warnings_are_printed(run: Run, models: Path, tmp_path: Path):
    recipe = write(tmp_path, {"models": [str(models / "a")], "chat_template": "chatml", **HALF})
    _, out, _ = run("merge", recipe, "--dry-run")
    assert "Warning: chat_template: chatml writes <|im_start|>, <|im_end|>" in out


def test_filters_that_no_document_has_a_tensor_for_are_told(run: Run, models: Path, tmp_path: Path):
    first, result = two_stages(models)
    first["parameters"] = {"weight": [{"filter": "mpl", "value": 0.9}, {"value": 0.5}]}
    result["parameters"] = {"weight": [{"filter": "mlp", "value": 0.9}, {"value": 0.5}]}
    _, out, _ = run("merge", write(tmp_path, first, result), "--dry-run")
    told = (
        "Warning: parameters.weight: filter 'mpl' is part of no tensor's name: did you mean 'mlp'?"
    )
    assert told in out[: out.index("result:")]
    assert out.count("is part of no tensor's name") == 1


def test_numbers_are_refused_before_any_work(run: Run, models: Path, tmp_path: Path):
    first, result = two_stages(models)
    result["parameters"] = {"weight": [{"filter": "layers.1", "value": 0.0}, {"value": 0.5}]}
    recipe = write(tmp_path, first, result)
    for target in ("--dry-run", tmp_path / "out"):
        code, _, err = run("merge", recipe, target)
        assert code == 2
        assert "tensor 'model.layers.1." in err
        assert "sum to 0 and can't be normalised" in err
    assert not (tmp_path / "out").exists()


def test_what_differs_between_the_parents_is_printed_once(run: Run, models: Path, tmp_path: Path):
    shutil.copytree(models / "a", tmp_path / "other")
    config = json.loads((tmp_path / "other/config.json").read_text())
    config["rms_norm_eps"] = 0.5
    (tmp_path / "other/config.json").write_text(json.dumps(config))
    recipe = write(tmp_path, {"models": [str(models / "a"), str(tmp_path / "other")], **HALF})
    _, out, _ = run("merge", recipe, "--dry-run")
    assert out.count("Warning: config.json: 'rms_norm_eps' of model ") == 1


def test_a_misspelt_word_for_a_tokenizer(run: Run, models: Path, tmp_path: Path):
    recipe = write(tmp_path, {"models": [str(models / "a")], "tokenizer_source": "unoin", **HALF})
    code, _, err = run("merge", recipe, "--dry-run")
    assert code == 2
    assert "'unoin': there is no such folder" in err
    assert "tokenizer.source: did you mean 'union'?" in err


@pytest.mark.parametrize("text", ["- a\n", "a: 1\n--- \n- b\n", ""])
def test_a_file_that_holds_no_recipe(run: Run, tmp_path: Path, text: str):
    (tmp_path / "recipe.yaml").write_text(text)
    code, _, err = run("merge", tmp_path / "recipe.yaml", "--dry-run")
    assert (code, "expected a mapping of keys at the top" in err) == (2, True)


@pytest.mark.parametrize("stages", [False, True])
def test_a_terminated_merge_leaves_nothing(models: Path, tmp_path: Path, stages: bool):
    alone = [{"models": [str(models / "a")], **HALF}]
    recipe = write(tmp_path, *(two_stages(models) if stages else alone))
    code = (
        "import signal; from merge_core import export; from search import cli\n"
        "export.verify = lambda *_: signal.raise_signal(signal.SIGTERM); cli.main()"
    )
    command = [sys.executable, "-c", code, "merge", recipe, tmp_path / "out"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, "Traceback" in ended.stderr) == (130, False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "recipe.yaml"]


def test_quiet_prints_the_folder(run: Run, models: Path, tmp_path: Path):
    recipe = write(tmp_path, *two_stages(models))
    assert run("merge", recipe, "--dry-run", "-q") == (0, "", "")
    assert run("merge", recipe, tmp_path / "out", "-q") == (0, f"{tmp_path / 'out'}\n", "")


def test_a_document_that_nobody_needs_is_named(run: Run, models: Path, tmp_path: Path):
    spare = {"name": "spare", "models": [str(models / "a")], **HALF}
    recipe = write(tmp_path, *two_stages(models), spare)
    code, out, _ = run("merge", recipe, tmp_path / "out")
    assert (code, "spare:" in out) == (0, False)
    assert "Warning: document 'spare' is not merged: the result does not need it\n" in out


def test_one_document_may_have_a_name(run: Run, models: Path, tmp_path: Path):
    recipe = write(tmp_path, {"name": "chat", "models": [str(models / "a")], **HALF})
    code, out, _ = run("merge", recipe, tmp_path / "out")
    assert (code, "Warning" in out) == (0, False)


def test_a_merge_imports_nothing_that_evaluates(models: Path, tmp_path: Path):
    recipe = write(tmp_path, *two_stages(models))
    code = (
        "import sys; from search import cli\n"
        "try: cli.main()\n"
        "finally: print({'lm_eval', 'datasets', 'optuna', 'evals.harness'} & {*sys.modules})"
    )
    command = [sys.executable, "-c", code, "merge", recipe, tmp_path / "out", "-q"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout == f"{tmp_path / 'out'}\nset()\n"
