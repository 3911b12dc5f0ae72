"""The same merges, the same masks and a whole study on a CUDA device."""

from io import StringIO

import pytest
import torch
from rich.console import Console
from tiny_models import write_family
from tiny_study import study_dict, write_study

from merge_core.apply import Workbench, apply
from merge_core.checkpoint import open_checkpoint
from merge_core.combination import Stream
from merge_core.masks import random_bits
from merge_core.parents import Parents
from merge_core.plan import compile_plan
from merge_core.recipe import from_dict
from merge_core.registry import Base, merge_methods
from search.bench import check_study
from search.commands import compare_study, export_study, run_study
from search.study import open_study

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return write_family(tmp_path_factory.mktemp("gpu"), dtype=torch.bfloat16)


@pytest.mark.parametrize("method", merge_methods().values(), ids=lambda method: method.name)
def test_cuda_merges_as_the_cpu_does(family, method):
    here, there = merged(family, method, torch.device("cpu")), merged(family, method, CUDA)
    for name, tensor in here.items():
        torch.testing.assert_close(there[name].cpu(), tensor, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize(("start", "count"), [(0, 10), (65_530, 20), (3_000_000_000, 70_000)])
def test_random_masks_are_the_same_on_cuda(start, count):
    here = random_bits(Stream(7, 1), start, count, torch.device("cpu"))
    assert torch.equal(random_bits(Stream(7, 1), start, count, CUDA).cpu(), here)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_study_runs_on_cuda_by_itself(tmp_path, dtype):
    objectives = [{"task": task} for task in ("tiny_choice", "tiny_generate", "tiny_text")]
    study = write_study(tmp_path, study_dict(device="auto", dtype=dtype, objectives=objectives))
    assert check_study(study).device.type == "cuda"
    silent = Console(file=StringIO())
    run_study(study, silent)
    compare_study(study, silent)
    export_study(study, tmp_path / "out", silent)
    with open_study(check_study(study)) as opened:
        assert len(opened.get_trials()) == 6


def merged(family, method, device):
    parents = {name: open_checkpoint(family / name, name) for name in ("base", "a", "b")}
    models = {"slerp": ("base", "a"), "passthrough": ("a",)}.get(method.name, ("a", "b"))
    values = {"weight": 0.6, "density": 0.4, "t": 0.3, "scale": 1.1}
    recipe = {
        "merge_method": method.name,
        "models": [{"model": name} for name in models],
        "parameters": {name: v for name, v in values.items() if method.parameter(name)},
    }
    if method.base is not Base.INPUT:
        recipe["base_model"] = "base"
    plan = compile_plan(from_dict(recipe), parents)
    slots = {s.out: torch.empty(s.shape, dtype=s.dtype, device=device) for s in plan.steps}
    apply(plan, Workbench(Parents(parents, device), slots))
    return slots
