"""Opening a model folder: headers, shards, and everything that can be missing or damaged."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import write_model

from merge_core.checkpoint import INDEX, SINGLE, digest, open_checkpoint
from merge_core.errors import CheckpointError, MergeError
from merge_core.parents import Parents

CONFIG = {"num_hidden_layers": 2, "model_type": "toy"}


def test_headers_of_a_real_model(family):
    folder = family("llama") / "a"
    opened, stored = open_checkpoint(folder, "a"), load_file(folder / SINGLE)
    assert list(opened.tensors) == sorted(stored)
    for name, tensor in stored.items():
        spec = opened.tensors[name]
        assert (spec.name, spec.shape, spec.dtype) == (name, tuple(tensor.shape), tensor.dtype)
        assert spec.numel == tensor.numel()
    assert opened.bytes == sum(tensor.nbytes for tensor in stored.values())
    assert opened.config == json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", ["llama", "llama_tied", "qwen2", "gpt_neox", "gpt2"])
def test_layers_of_every_family(family, name):
    opened = open_checkpoint(family(name) / "base", "base")
    assert set(opened.layers) == {None, 0, 1, 2}
    assert sorted(sum(opened.layers.values(), ())) == list(opened.tensors)
    assert len(opened.layers[0]) == len(opened.layers[2]) > 5
    assert opened.ties_embeddings == (name in {"llama_tied", "qwen2", "gpt2"})


def test_shards_are_one_model(family, tmp_path):
    write_model(tmp_path / "cut", near=family("llama") / "a", spread=0, shard="30KB")
    assert not (tmp_path / "cut" / SINGLE).exists()
    cut, whole = (
        open_checkpoint(tmp_path / "cut", "cut"),
        open_checkpoint(family("llama") / "a", "a"),
    )
    assert len({spec.file for spec in cut.tensors.values()}) > 2
    assert {n: s.shape for n, s in cut.tensors.items()} == {
        n: s.shape for n, s in whole.tensors.items()
    }
    parents = Parents({"cut": cut, "a": whole}, torch.device("cpu"))
    for name in whole.tensors:
        assert torch.equal(parents.tensor("cut", name), parents.tensor("a", name))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
def test_dtypes_are_read(tmp_path, dtype):
    opened = open_checkpoint(toy(tmp_path / "m", extra=torch.ones(3, 2).to(dtype)), "m")
    assert opened.tensors["extra"].dtype == dtype
    assert opened.tensors["extra"].shape == (3, 2)


def test_parents_read_views_that_forget(family):
    opened = open_checkpoint(family("llama") / "a", "a")
    parents = Parents({"a": opened}, torch.device("cpu"))
    first = parents.tensor("a", "model.norm.weight")
    assert parents.tensor("a", "model.norm.weight") is first
    parents.forget()
    again = parents.tensor("a", "model.norm.weight")
    assert again is not first
    assert torch.equal(again, first)


def test_the_digest_follows_the_content_not_the_place(tmp_path):
    one = toy(tmp_path / "one")
    two = shutil.copytree(one, tmp_path / "two")
    (two / "README.md").write_text("a card")
    assert digest(open_checkpoint(one, "x")) == digest(open_checkpoint(two, "y"))


@pytest.mark.parametrize("change", ["weights", "config"])
def test_the_digest_sees_every_change(tmp_path, change):
    one, two = toy(tmp_path / "one"), toy(tmp_path / "two")
    if change == "weights":
        toy(two, fill=1.5)
    else:
        (two / "config.json").write_text(json.dumps(CONFIG | {"rope_theta": 1}))
    assert digest(open_checkpoint(one, "x")) != digest(open_checkpoint(two, "x"))


# Everything that can be wrong with a folder.


def test_a_folder_that_is_not_there(tmp_path):
    refused(tmp_path / "nowhere", "model 'm' .*nowhere.*: the path is no folder; give a")


def test_no_configuration(tmp_path):
    (toy(tmp_path) / "config.json").unlink()
    refused(tmp_path, "the path has no config.json; give a Hugging Face model folder")


@pytest.mark.parametrize("text", ["{", "", "\udcff"])
def test_configuration_that_is_not_json(tmp_path, text):
    (toy(tmp_path) / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(tmp_path, "config.json is not valid JSON: ")


@pytest.mark.parametrize("text", ["[]", "3", "null"])
def test_configuration_that_is_no_object(tmp_path, text):
    (toy(tmp_path) / "config.json").write_text(text)
    refused(tmp_path, "config.json holds no JSON object")


def test_configuration_of_another_depth(tmp_path):
    (toy(tmp_path) / "config.json").write_text('{"num_hidden_layers": 3}')
    refused(tmp_path, "config.json states 3 layers, but the tensor names show {'layers.': 2}")


def test_configuration_without_a_depth(tmp_path):
    (toy(tmp_path) / "config.json").write_text("{}")
    refused(tmp_path, "config.json has none of num_hidden_layers, .* its depth is unknown")


def test_no_weights(tmp_path):
    (toy(tmp_path) / SINGLE).unlink()
    refused(tmp_path, "no safetensors weights; expected model.safetensors or model.safetensors.ind")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_named_and_never_loaded(tmp_path, name):
    (toy(tmp_path) / SINGLE).unlink()
    (tmp_path / name).write_bytes(b"anything")
    refused(tmp_path, f"no safetensors weights; found {name}, which is pickled and is never loaded")


@pytest.mark.parametrize(
    "content", [b"", b"short", b"\xff" * 100, b"\x08" + b"\0" * 7 + b"not json"]
)
def test_damaged_header(tmp_path, content):
    (toy(tmp_path) / SINGLE).write_bytes(content)
    refused(tmp_path, "model.safetensors is not readable: ")


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1000\n"
    (toy(tmp_path) / SINGLE).write_text(text)
    refused(tmp_path, "model.safetensors is a Git LFS pointer and not the weights; .*git lfs pull")


def test_truncated_weights(tmp_path):
    path = toy(tmp_path) / SINGLE
    path.write_bytes(path.read_bytes()[:-3])
    refused(tmp_path, "model.safetensors is not readable: ")


@pytest.mark.parametrize("text", ["{", "{}", "[]", "\udcff"])
def test_damaged_index(tmp_path, text):
    (toy(tmp_path) / INDEX).write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(tmp_path, "model.safetensors.index.json is damaged; copy it again")


@pytest.mark.parametrize("files", [[], None, {"layers.0.w": 3}])
def test_an_index_of_the_wrong_kind(tmp_path, files):
    (toy(tmp_path) / INDEX).write_text(json.dumps({"weight_map": files}))
    refused(tmp_path, "model.safetensors.index.json is damaged; copy it again")


def test_a_tensor_that_no_shard_holds(tmp_path):
    files = {"layers.0.w": SINGLE, "layers.1.w": SINGLE, "norm.weight": SINGLE}
    (toy(tmp_path) / INDEX).write_text(json.dumps({"weight_map": files}))
    refused(tmp_path, "norm.weight")


def test_a_shard_that_is_missing(tmp_path):
    index = {"weight_map": {"layers.0.w": SINGLE, "layers.1.w": "model-00002-of-00002.safetensors"}}
    (toy(tmp_path) / INDEX).write_text(json.dumps(index))
    refused(tmp_path, "model-00002-of-00002.safetensors is named in .*index.json but is missing")


def test_a_dtype_that_can_not_be_merged(tmp_path):
    toy(tmp_path, extra=torch.ones(2).to(torch.float8_e4m3fn))
    refused(tmp_path, "tensor 'extra' has dtype F8_E4M3, which can't be merged; convert .*BF16")


def test_all_errors_are_merge_errors():
    assert issubclass(CheckpointError, MergeError)
    assert issubclass(MergeError, ValueError)


def refused(folder, message):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder, "m")


def toy(folder, fill=0.5, **more):
    """Two layers of one tensor each."""
    folder.mkdir(exist_ok=True)
    tensors = {f"layers.{i}.w": torch.full((2, 3), fill) for i in range(2)}
    save_file(tensors | more, folder / SINGLE)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder
