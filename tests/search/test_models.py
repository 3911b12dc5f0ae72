"""From what a study calls a model to a folder."""

import json
from pathlib import Path

import pytest
from tiny_adapters import low_rank, write_adapter
from tiny_families import write_family_model

from merge_core.errors import CheckpointError
from search.models import Reference, absolute, locate, open_model, open_models, read_reference


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_path_is_relative_to_the_study(study_folder: Path):
    assert locate("./models/a", study_folder) == (study_folder / "models/a").resolve()
    assert locate("models/a", study_folder) == (study_folder / "models/a").resolve()
    assert (
        locate(str(study_folder / "models/a"), Path("/")) == (study_folder / "models/a").resolve()
    )


def test_the_home_folder_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert locate("~/model", Path("/nowhere")) == (tmp_path / "model").resolve()


@pytest.mark.parametrize(
    "reference", ["./models/x", "/models/x", "~/models/x", "models", "a/b/c", "with space/x"]
)
def test_a_folder_that_is_missing_is_named_and_the_hub_is_not_asked(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("search.models.snapshot_download", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(CheckpointError, match="there is no such folder") as error:
        locate(reference, tmp_path)
    assert f"'{reference}'" in str(error.value)


@pytest.mark.parametrize(
    ("text", "model", "adapter"),
    [
        ("base", "base", None),
        ("base+lora", "base", "lora"),
        ("base+org/lora@v2", "base", "org/lora@v2"),
        ("org/base@v1+org/lora@v2", "org/base@v1", "org/lora@v2"),
        ("org/base@v1+lora", "org/base@v1", "lora"),
        ("c++", "c++", None),
        ("c+++lora", "c++", "lora"),
        ("base+c++", "base", "c++"),
        ("c+++c++", "c++", "c++"),
        ("whole+lora", "whole+lora", None),
    ],
)
def test_model_and_adapter(tmp_path: Path, text: str, model: str, adapter: str | None):
    for name in ("base", "lora", "c++", "whole+lora"):
        (tmp_path / name).mkdir()
    assert read_reference(text, tmp_path) == Reference(model, adapter)


@pytest.mark.parametrize("text", ["./no+./where", "+lora", "base+", "no such+thing"])
def test_a_plus_between_nothing_is_a_mistake(tmp_path: Path, text: str):
    (tmp_path / "base").mkdir()
    with pytest.raises(CheckpointError, match=r"split at .* it names none either"):
        read_reference(text, tmp_path)


def test_an_adapter_in_a_study(study_folder: Path, tmp_path: Path):
    module = "model.layers.0.self_attn.q_proj"
    write_adapter(tmp_path / "lora", low_rank(study_folder / "models/a", [module]))
    mistakes: list[str] = []
    reference = f"./models/a+{tmp_path / 'lora'}"
    opened = open_models({"a": reference}, study_folder, mistakes)
    assert mistakes == []
    assert list(opened["a"].derived) == [f"{module}.weight"]
    expected = f"{(study_folder / 'models/a').resolve()}+{tmp_path / 'lora'}"
    assert absolute(reference, study_folder) == expected
    assert absolute("org/model@v1+./nowhere", study_folder) == "org/model@v1+./nowhere"


def test_a_folder_has_no_revision(study_folder: Path):
    with pytest.raises(CheckpointError, match=r"a is a folder, and a folder has no revision 'v1'"):
        locate("./models/a@v1", study_folder)


def test_an_at_in_a_folders_name_is_no_revision(tmp_path: Path):
    (tmp_path / "model@v1").mkdir()
    assert locate("./model@v1", tmp_path) == (tmp_path / "model@v1").resolve()


def test_a_plus_in_a_folders_name_is_no_adapter(tmp_path: Path):
    (tmp_path / "c++").mkdir()
    assert locate("./c++", tmp_path) == (tmp_path / "c++").resolve()


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("reference", ["org/model", "org/model@main"])
def test_a_hub_id_without_a_network_is_one_line(reference: str, tmp_path: Path):
    with pytest.raises(CheckpointError) as error:
        locate(reference, tmp_path)
    assert str(error.value).startswith(
        f"'{reference}': there is no such folder, and the hub gave: "
    )
    assert "\n" not in str(error.value)


def test_a_revision_is_passed_on_and_no_pickles_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = {}

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("search.models.snapshot_download", download)
    assert locate("org/model@v1", tmp_path) == tmp_path
    assert (asked["name"], asked["revision"]) == ("org/model", "v1")
    assert not any(end in pattern for pattern in asked["patterns"] for end in ("bin", "pt", "py"))
    locate("org/model", tmp_path)
    assert asked["revision"] is None


def test_every_model_that_cannot_be_opened_is_a_mistake(study_folder: Path):
    mistakes: list[str] = []
    references = {"a": "./models/a", "x": "./models/x", "tasks": "./tasks"}
    opened = open_models(references, study_folder, mistakes)
    assert list(opened) == ["a"]
    assert [line.split(":")[0] for line in mistakes] == ["models.x", "models.tasks"]
    assert "has no config.json" in mistakes[1]


@pytest.mark.parametrize("reference", ["~no-such-user/model", "org/model"])
def test_no_reference_crashes(reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def download(*_: object, **__: object) -> str:
        raise TimeoutError  # its text is empty

    monkeypatch.setattr("search.models.snapshot_download", download)
    with pytest.raises(CheckpointError):
        locate(reference, tmp_path)


def test_what_a_rule_says_of_layers_is_stated(tmp_path: Path):
    """Layer by layer, so that it goes with them; the file stays as it is."""
    folder = write_family_model(tmp_path / "m", "gemma2", layers=3)
    config = json.loads((folder / "config.json").read_text())
    stated = config.pop("layer_types")
    (folder / "config.json").write_text(json.dumps(config))
    assert open_model(str(folder), tmp_path, "m").config == config | {"layer_types": stated}
    assert json.loads((folder / "config.json").read_text()) == config
