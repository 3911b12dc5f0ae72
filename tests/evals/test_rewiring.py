"""A rewired live model is the model that transformers builds of the same plan, bit for bit."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import family_logits, load_family, write_family_model
from tiny_models import tokenizer

from evals.resident import Resident, build_resident
from merge_core.apply import Workbench, apply
from merge_core.checkpoint import Checkpoint, open_checkpoint
from merge_core.export import write_model
from merge_core.parents import Parents
from merge_core.plan import MergePlan, compile_plan
from merge_core.recipe import Recipe, Slice, Source

CPU = torch.device("cpu")
LAYERS = 5
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 4},
    "qwen2": {
        "use_sliding_window": True,
        "sliding_window": 3,
        "layer_types": ["full_attention", "sliding_attention"] * 2 + ["full_attention"],
    },
    "qwen3": {},
    "gemma2": {"sliding_window": 3},
    "gemma3_text": {
        "sliding_window": 3,
        "layer_types": ["sliding_attention"] * 2 + ["full_attention"] + ["sliding_attention"] * 2,
    },
    "gpt_neox": {},
    "gpt2": {},
    "smollm3": {"no_rope_layers": [1, 1, 0, 1, 0]},
    "mixtral": {},
    "qwen3_moe": {},
}
Walk = Sequence[tuple[str, int]]
"""The layers of a plan: parent and number."""


@dataclass
class Live:
    """Two parents and a live model."""

    parents: dict[str, Checkpoint]
    resident: Resident
    bench: Workbench

    def be(self, walk: Walk) -> MergePlan:
        plan = self.plan(walk)
        assert self.resident.wiring is not None
        self.resident.wiring.rewire(plan.config)
        apply(plan, self.bench)
        return plan

    def plan(self, walk: Walk) -> MergePlan:
        return compile_plan(recipe_of(walk), self.parents)

    def logits(self, walk: Walk) -> torch.Tensor:
        self.be(walk)
        return family_logits(self.resident.model)


def recipe_of(walk: Walk) -> Recipe:
    slices = tuple(Slice((Source(name, (at, at + 1)),)) for name, at in walk)
    return Recipe("passthrough", slices)


def random_walk(seed: int, least: int = 1, most: int = LAYERS + 3) -> Walk:
    chance = random.Random(seed)
    count = chance.randint(least, most)
    return [(chance.choice("ab"), chance.randrange(LAYERS)) for _ in range(count)]


def live_model(folders: dict[str, Path], deepest: Walk) -> Live:
    parents = {name: open_checkpoint(folder, name) for name, folder in folders.items()}
    plan = compile_plan(recipe_of(deepest), parents)
    names = [step.out for step in plan.steps]
    resident = build_resident(plan.config, folders["a"], names, torch.float32, CPU)
    return Live(parents, resident, Workbench(Parents(parents, CPU), resident.slots))


def whole(name: str, layers: int = LAYERS) -> Walk:
    return [(name, at) for at in range(layers)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory):
    """Parents `a` and `b` of a family, written once."""
    root = tmp_path_factory.mktemp("families")

    def write(family: str) -> dict[str, Path]:
        more = FAMILIES[family]
        found = {name: root / family / name for name in "ab"}
        for seed, folder in enumerate(found.values()):
            if not folder.exists():
                write_family_model(folder, family, seed, layers=LAYERS, **more)
                tokenizer().save_pretrained(folder)
        return found

    return write


def fresh_logits(live: Live, walk: Walk, family: str, folder: Path) -> torch.Tensor:
    plan = live.plan(walk)
    write_model(plan, Parents(live.parents, CPU), folder, files={})
    return family_logits(load_family(folder, family))


@pytest.mark.parametrize("family", FAMILIES)
def test_any_plan_is_the_model_that_transformers_loads(folders, tmp_path: Path, family: str):
    live = live_model(folders(family), random_walk(3, LAYERS + 3, LAYERS + 3))
    walks = [whole("a"), *map(random_walk, (1, 2, 3)), whole("b")]
    found = [live.logits(walk) for walk in walks]
    for at, walk in enumerate(walks):
        assert torch.equal(found[at], fresh_logits(live, walk, family, tmp_path / str(at))), walk
    for walk, expected in reversed(list(zip(walks, found, strict=True))):
        assert torch.equal(live.logits(walk), expected)
    assert torch.equal(found[0], family_logits(load_family(folders(family)["a"], family)))
    assert not torch.equal(found[0], found[-1])
