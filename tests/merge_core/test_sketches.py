"""Samples of tensors against whole models."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import write_family

from merge_core import sketches
from merge_core.checkpoint import Checkpoint, open_checkpoint
from merge_core.sketches import same_weights, sketch


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder = write_family(tmp_path_factory.mktemp("family"), spread=0.01)
    return {name: open_checkpoint(folder / name, name) for name in ("base", "a", "b")}


def vector(checkpoint: Checkpoint) -> torch.Tensor:
    weights = load_file(checkpoint.folder / "model.safetensors")
    return torch.cat([weights[name].double().flatten() for name in checkpoint.tensors])


def test_small_models_are_measured_exactly(models):
    found = sketch(models)
    base, a, b = (vector(models[name]) for name in ("base", "a", "b"))
    assert found.distance("a", "base") == pytest.approx((a - base).norm().item(), rel=1e-9)
    assert found.distance("a", "b") == pytest.approx((a - b).norm().item(), rel=1e-9)
    assert found.lengths("b").sum() == pytest.approx(b.square().sum().item(), rel=1e-9)
    cosine = torch.dot(a - base, b - base) / ((a - base).norm() * (b - base).norm())
    assert found.cosine("a", "b", "base") == pytest.approx(cosine.item(), abs=1e-9)
    assert found.distance("a", "a") == 0
    assert found.cosine("a", "base", "base") == 0


def test_a_sample_estimates_the_whole(models, monkeypatch):
    whole = sketch(models)
    monkeypatch.setattr(sketches, "_ELEMENTS", 300)
    monkeypatch.setattr(sketches, "_LAYERS", 2)
    monkeypatch.setattr(sketches, "_TENSORS", 2)
    part = sketch(models)
    assert len(part.roles) < len(whole.roles)
    for pair in (("a", "base"), ("a", "b")):
        assert part.distance(*pair) == pytest.approx(whole.distance(*pair), rel=0.15)
    assert part.lengths("a").sum() == pytest.approx(whole.lengths("a").sum(), rel=0.15)


def test_parts_have_roles_and_depths(models):
    found = sketch(models)
    assert set(found.roles) == {"attention", "mlp", "norm", "embedding", "head"}
    assert set(found.depths) == {None, 0.0, 0.5, 1.0}


def test_same_weights_are_told_from_almost_the_same(models, tmp_path: Path):
    write_family(tmp_path, spread=0.01, experts=1)
    copy = open_checkpoint(tmp_path / "a", "copy")
    assert same_weights(models["a"], copy)
    assert not same_weights(models["a"], models["b"])
