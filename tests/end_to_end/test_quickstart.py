"""The quickstart with parents that are hardly trained: the plumbing, not the numbers."""

from dataclasses import replace
from io import StringIO

import pytest
import torch
import yaml
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from search import quickstart
from search.bench import check_study
from search.study import open_study
from studies.quickstart.parents import FULL, Budget, make_parents

HARDLY = Budget(
    replace(FULL.base, steps=4),
    tuple(replace(expert, steps=2) for expert in FULL.experts),
    items=900,
)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder in which the quickstart ran, with what it printed and how often it trained."""
    folder = tmp_path_factory.mktemp("quickstart")
    built: list[object] = []

    def hardly(target, *, progress):
        built.append(target)
        return make_parents(target, budget=HARDLY, processes=0, progress=progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTCROSS_CACHE", str(folder / "cache"))
        patch.setattr(quickstart, "make_parents", hardly)
        printed = [start(folder / "work") for _ in range(2)]
    return folder / "work", printed, built


def test_it_trains_searches_compares_and_exports(work):
    folder, (first, _), _ = work
    for text in ("Training the tiny parents", "trial 2 (3/3)", "Finalists", "Holdout: 2,048 items"):
        assert text in first
    model = AutoModelForCausalLM.from_pretrained(folder / "winner")
    tokenizer = AutoTokenizer.from_pretrained(folder / "winner")
    tokens = tokenizer("rev cafe=", return_tensors="pt")["input_ids"]
    assert model(tokens).logits.isfinite().all()
    recipe = yaml.safe_load((folder / "winner" / "recipe.yaml").read_text())
    assert recipe["merge_method"] == "task_arithmetic"


def test_a_second_time_goes_on_from_there(work):
    folder, (_, second), built = work
    assert len(built) == 1
    assert "Training" not in second
    assert "Holdout" in second
    with open_study(check_study(folder / "study.yaml")) as study:
        assert len(study.get_trials()) == 3


def test_models_are_of_one_family_and_differ(work):
    folder, _, _ = work
    states = {
        name: AutoModelForCausalLM.from_pretrained(folder / "models" / name).state_dict()
        for name in ("base", "sort", "inc", "max")
    }
    assert len({tuple(state) for state in states.values()}) == 1
    weights = [state["model.layers.0.mlp.up_proj.weight"] for state in states.values()]
    assert all(not torch.equal(weights[0], other) for other in weights[1:])


def start(folder) -> str:
    out = StringIO()
    quickstart.run_quickstart(
        folder,
        Console(file=out, width=200),
        seed=0,
        trials=3,
        fresh=False,
        quiet=False,
        verbose=False,
    )
    return out.getvalue()
