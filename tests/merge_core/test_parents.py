"""Where tensors come from: files that are mapped, and derived ones that take no memory."""

import errno
import gc
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from merge_core.checkpoint import Checkpoint, open_checkpoint
from merge_core.errors import MergeError
from merge_core.parents import Parents

NAME = "model.norm.weight"
CPU = torch.device("cpu")
MAPS = Path("/proc/self/maps")


@dataclass
class Doubled:
    """Twice what the model has."""

    of: Checkpoint
    files: tuple[Path, ...] = ()
    built: int = 0

    def build(self, reader) -> torch.Tensor:
        self.built += 1
        return reader.of(self.of, NAME) * 2


def doubled(family) -> Checkpoint:
    plain = open_checkpoint(family("llama") / "a", "a")
    return replace(plain, derived={NAME: Doubled(plain)})


def test_a_derived_tensor_is_made_once_and_again_after_forgetting(family):
    checkpoint = doubled(family)
    parents = Parents({"a": checkpoint}, CPU)
    first = parents.tensor("a", NAME)
    assert parents.tensor("a", NAME) is first
    assert checkpoint.derived[NAME].built == 1
    parents.forget()
    assert torch.equal(parents.tensor("a", NAME), first)
    assert checkpoint.derived[NAME].built == 2


def test_derivations_stand_on_each_other(family):
    once = doubled(family)
    twice = replace(once, derived={NAME: Doubled(once)})
    parents = Parents({"a": once, "b": twice}, CPU)
    assert torch.equal(parents.tensor("b", NAME), parents.tensor("a", NAME) * 2)


@pytest.mark.parametrize("derived", [True, False])
def test_what_was_written_into_is_read_again_where_it_lies(family, derived: bool):
    """Compiled loops know the addresses, and the files are never touched."""
    checkpoint = doubled(family) if derived else doubled(family).derived[NAME].of
    parents = Parents({"a": checkpoint}, CPU)
    names = list(checkpoint.tensors)
    tensors = {name: parents.tensor("a", name) for name in names}
    expected = {name: tensor.clone() for name, tensor in tensors.items()}
    for name in (NAME, names[0]):
        tensors[name].zero_()
    assert torch.equal(Parents({"a": checkpoint}, CPU).tensor("a", NAME), expected[NAME])
    parents.heal()
    for name, tensor in tensors.items():
        assert parents.tensor("a", name) is tensor
        assert torch.equal(tensor, expected[name])


@pytest.mark.skipif(not MAPS.exists(), reason="Linux shows what is mapped")
def test_a_derived_tensor_lies_in_a_file_that_has_no_name(family, tmp_path):
    """Mapped, so memory pressure can drop it; nameless, so not even a kill leaves it behind."""
    parents = Parents({"a": doubled(family)}, CPU, tmp_path)
    tensor = parents.tensor("a", NAME)
    assert list(tmp_path.iterdir()) == []
    assert f"{tmp_path}/.outcross-" in MAPS.read_text()
    del tensor
    parents.forget()
    gc.collect()
    assert f"{tmp_path}/.outcross-" not in MAPS.read_text()


def test_a_full_disk_is_a_sentence(family, tmp_path, monkeypatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        MergeError, match=r"no room for 128 bytes .*No space left on device\); free"
    ):
        Parents({"a": doubled(family)}, CPU, tmp_path).tensor("a", NAME)
    assert list(tmp_path.iterdir()) == []


def test_bf16_and_empty_tensors_can_be_laid_down(family, tmp_path):
    plain = open_checkpoint(family("llama") / "a", "a")

    @dataclass
    class Given:
        tensor: torch.Tensor
        files: tuple[Path, ...] = ()

        def build(self, reader) -> torch.Tensor:  # noqa: ARG002
            return self.tensor

    for tensor in (torch.randn(3, 5).bfloat16(), torch.zeros(0, 4), torch.tensor(3.0)):
        parents = Parents({"a": replace(plain, derived={NAME: Given(tensor)})}, CPU, tmp_path)
        found = parents.tensor("a", NAME)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)
