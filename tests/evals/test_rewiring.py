"""A rewired live model is the model that transformers builds of the same plan, bit for bit."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_families import family_logits, load_family, write_family_model
from tiny_models import tokenizer

import merge_core.apply
from evals.configuration import with_layer_lists
from evals.errors import EvaluationError
from evals.resident import Resident, build_resident
from merge_core.apply import Workbench, apply
from merge_core.checkpoint import Checkpoint, open_checkpoint
from merge_core.errors import MergeError
from merge_core.export import write_model
from merge_core.interleave import Run, interleave
from merge_core.packs import Pack
from merge_core.parents import Parents
from merge_core.plan import MergePlan, compile_plan
from merge_core.recipe import Recipe, Setting, Slice, Source
from merge_core.writers import find_writers, scale_settings

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
    return Recipe("passthrough", tuple(copy_of(*step) for step in walk))


def random_walk(seed: int, least: int = 1, most: int = LAYERS + 3) -> Walk:
    chance = random.Random(seed)
    count = chance.randint(least, most)
    return [(chance.choice("ab"), chance.randrange(LAYERS)) for _ in range(count)]


def live_model(folders: dict[str, Path], deepest: Walk) -> Live:
    parents = {name: open_checkpoint(folder, name) for name, folder in folders.items()}
    plan = compile_plan(recipe_of(deepest), parents)
    names = [step.out for step in plan.steps]
    resident = build_resident(plan.config, folders["a"], names, torch.float32, CPU)
    packs = [Pack(*pack) for pack in resident.packs]
    return Live(parents, resident, Workbench(Parents(parents, CPU), resident.slots, packs))


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


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_and_its_inverse_give_the_parent_back(folders, family: str):
    """Logits, configuration and every tensor, bit for bit, whatever was there in between."""
    live = live_model(folders(family), random_walk(3, LAYERS + 3, LAYERS + 3))
    parent = load_file(folders(family)["a"] / "model.safetensors")
    expected = family_logits(load_family(folders(family)["a"], family))
    config = live.be(whole("a")).config
    assert live.resident.wiring is not None
    for seed in range(3):
        plan = compile_plan(scaled_walk(seed, live.parents), live.parents)
        for there in (live.plan(random_walk(seed)), plan):
            live.resident.wiring.rewire(there.config)
            apply(there, live.bench)
            assert not torch.equal(family_logits(live.resident.model), expected)
            back = live.be(whole("a"))
            assert back.config == config
            assert {step.out for step in back.steps} == set(parent)
            for name, tensor in parent.items():
                assert torch.equal(live.resident.slots[name], tensor), name
                assert torch.equal(live.bench.parents.tensor("a", name), tensor), name
            assert torch.equal(family_logits(live.resident.model), expected)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_walks_through_a_merge_with_scales_are_the_models_that_transformers_loads(
    folders, tmp_path: Path, family: str
):
    """Whatever the live model held before, also where experts are packed."""
    live = live_model(folders(family), random_walk(3, LAYERS + 3, LAYERS + 3))
    assert live.resident.wiring is not None
    seen: list[torch.Tensor] = []
    for seed in (0, 1, 2, 0):
        plan = compile_plan(scaled_walk(seed, live.parents), live.parents)
        assert {step.scale for step in plan.steps} > {1.0}
        live.resident.wiring.rewire(plan.config)
        apply(plan, live.bench)
        seen.append(family_logits(live.resident.model))
        folder = tmp_path / str(len(seen))
        write_model(plan, Parents(live.parents, CPU), folder, files={})
        assert torch.equal(seen[-1], family_logits(load_family(folder, family)))
    assert torch.equal(seen[0], seen[3])
    assert not torch.equal(seen[0], seen[1])


def scaled_walk(seed: int, parents: Mapping[str, Checkpoint]) -> Recipe:
    """Layers of a, of b and of their average, each with what it adds multiplied."""
    chance, writers = random.Random(seed), find_writers(parents["a"])
    origins = [None, *chance.choices(["a", "b", None], k=LAYERS)]
    runs = [
        Run(origin, at, at + 1, scale_settings(writers, chance.choice([0.7, 1.3])))
        for origin, at in zip(origins, chance.choices(range(LAYERS), k=LAYERS + 1), strict=True)
    ]
    average = Slice((Source("a"), Source("b")))
    recipe = Recipe("linear", (average,), None, (("weight", (Setting(None, 0.5),)),))
    return interleave(recipe, runs, dict.fromkeys("ab", LAYERS))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "gpt2", "smollm3"])
def test_generation_with_a_cache_is_generation_without(folders, family: str):
    live = live_model(folders(family), random_walk(3, LAYERS + 3, LAYERS + 3))
    model: Any = live.resident.model
    for walk in (random_walk(1), random_walk(5, LAYERS + 1), whole("b")):
        live.be(walk)
        tokens = torch.tensor([[1, 20, 33, 7, 50]])
        made = model.generate(tokens, max_new_tokens=8, do_sample=False, eos_token_id=None)
        for at in range(tokens.shape[1], made.shape[1]):
            logits = model(made[:, :at], use_cache=False).logits[0, -1]
            assert logits.max() - logits[made[0, at]] < 1e-4
        with torch.inference_mode():
            cache = model(made, use_cache=True).past_key_values
        assert len(cache.layers) == len(walk)


def test_what_is_passed_through_is_lent_and_repeats_share_it(folders):
    live = live_model(folders("llama"), [*whole("a"), *whole("b")])
    live.be([("a", 2), ("b", 1), ("a", 2), ("a", 2)])
    stack: Any = live.resident.model.model.layers
    source = live.bench.parents.tensor("a", "model.layers.2.mlp.up_proj.weight")
    weights = [layer.mlp.up_proj.weight for layer in stack]
    assert [w.data_ptr() == source.data_ptr() for w in weights] == [True, False, True, True]
    assert {layer.self_attn.layer_idx for layer in stack} == {0, 1, 2, 3}
    assert set(live.bench.lent) == {step.out for step in live.be([("b", 0)] * 4).steps}


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_are_packed_once_and_then_lent(folders, monkeypatch, family: str):
    """A parent's tensors can't be lent to views into a pack, but a pack of them can."""
    live, other = (live_model(folders(family), whole("a", LAYERS)) for _ in range(2))
    other.bench.loans.packs = ()  # copies them all
    copied = counted(monkeypatch)
    live.be(whole("a"))
    live.be(whole("b"))
    assert copied
    copied.clear()
    for seed in range(8):
        live.be(random_walk(seed, most=LAYERS))
    assert not copied
    for seed in range(4):
        walk = random_walk(seed, most=LAYERS)
        assert torch.equal(live.logits(walk), other.logits(walk))
    live.be([("a", 1)] * LAYERS)
    assert (
        len({pack.data_ptr() for pack, _ in live.resident.packs})
        == len(live.resident.packs) / LAYERS
    )
    for pack, names in live.resident.packs:
        first, end = pack.data_ptr(), pack.data_ptr() + pack.nbytes
        assert all(first <= live.resident.slots[name].data_ptr() < end for name in names)


def test_what_somebody_writes_into_the_live_model_is_gone_after_renewing(folders):
    """Lent packs, lent tensors and the model's own memory alike."""
    live, other = (live_model(folders("mixtral"), whole("a")) for _ in range(2))
    merged = half_and_half((0, 1, 2))
    turns = (recipe_of(whole("a")), merged, recipe_of(whole("a")))
    for written, next_one in pairwise(turns):
        for recipe in (written, written, next_one):
            plan = compile_plan(recipe, live.parents)
            apply(plan, live.bench)
            apply(compile_plan(recipe, other.parents), other.bench)
            for name in {step.out for step in plan.steps} & set(live.bench.slots):
                assert torch.equal(live.bench.slots[name], other.bench.slots[name]), name
            for tensor in live.resident.model.parameters():
                tensor.data.mul_(0.5)
            live.bench.renew()


@pytest.mark.parametrize("room", [True, False])
def test_packs_are_lent_and_merged_in_turn(folders, monkeypatch, room: bool):
    """What is lent is never written to; where there is no room for it, experts are copied."""
    live, other = (live_model(folders("mixtral"), whole("a")) for _ in range(2))
    other.bench.loans.packs = ()
    if not room:
        monkeypatch.setattr("merge_core.geometry.make_room", no_room)
    merged = half_and_half((0, 1, 2))
    mixed = replace(
        merged, slices=(*merged.slices[:2], replace(copy_of("a", 2), method="passthrough"))
    )
    again = half_and_half((2, 1, 0))
    turns = (
        recipe_of(whole("a")),
        merged,
        mixed,
        recipe_of(whole("a")[::-1]),
        again,
        mixed,
        merged,
    )
    for recipe in turns:
        for one in (live, other):
            plan = compile_plan(recipe, one.parents)
            one.resident.wiring.rewire(plan.config)  # pyright: ignore
            apply(plan, one.bench)
        assert torch.equal(family_logits(live.resident.model), family_logits(other.resident.model))


def test_a_merge_that_fails_leaves_nothing_half_packed(folders, monkeypatch):
    live = live_model(folders("mixtral"), whole("a"))
    expected = live.logits(whole("b"))
    live = live_model(folders("mixtral"), whole("a"))
    live.be(whole("a"))
    with monkeypatch.context() as patch:
        patch.setattr(merge_core.apply, "run_steps", no_room)
        with pytest.raises(MergeError, match="none left"):
            live.be(whole("b"))
    assert torch.equal(live.logits(whole("b")), expected)


def no_room(*_: object) -> torch.Tensor:
    raise MergeError("none left")


def copy_of(name: str, at: int) -> Slice:
    return Slice((Source(name, (at, at + 1)),))


def half_and_half(layers: Sequence[int]) -> Recipe:
    pairs = tuple(Slice((*copy_of("a", at).sources, *copy_of("b", at).sources)) for at in layers)
    return Recipe("linear", pairs, None, (("weight", (Setting(None, 0.5),)),))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tensors that are written rather than lent."""
    names: list[str] = []
    run = merge_core.apply.run_steps

    def running(steps: Any, geometry: Any) -> None:
        steps = list(steps)
        names.extend(step.out for step, _ in steps)
        run(steps, geometry)

    monkeypatch.setattr(merge_core.apply, "run_steps", running)
    return names


def test_skeletons_are_built_for_new_kinds_and_depths_only(folders, monkeypatch):
    live = live_model(folders("gemma2"), random_walk(3, LAYERS + 3, LAYERS + 3))
    wiring: Any = live.resident.wiring
    built: list[int] = []
    build = wiring._build
    monkeypatch.setattr(wiring, "_build", lambda config: (built.append(1), build(config))[1])
    walks = [random_walk(seed, LAYERS, LAYERS) for seed in range(12)]
    for walk in walks:
        live.be(walk)
    assert 1 <= len(built) < 8
    done = len(built)
    for walk in walks:
        live.be(walk)
    assert len(built) == done


def test_layers_keep_their_own_kind_of_attention(folders):
    """Layer 2 alone attends to everything in this Gemma 3; it does so wherever it is."""
    live = live_model(folders("gemma3_text"), whole("a"))
    live.be([("a", 2), ("a", 0), ("b", 2), ("a", 1)])
    stack: Any = live.resident.model.model.layers
    sliding = [layer.self_attn.sliding_window for layer in stack]
    assert [window is None for window in sliding] == [True, False, True, False]
    assert live.resident.model.config.layer_types[::2] == ["full_attention"] * 2
    cache: Any = live.resident.model(torch.tensor([[1, 5]]), use_cache=True).past_key_values
    assert cache.is_sliding == [False, True, False, True]


@pytest.mark.parametrize("first", [0, 1])
def test_a_kind_that_the_live_model_was_built_without(folders, tmp_path: Path, first: int):
    """Qwen 2 then makes no sliding masks at all, and Gemma 3 no frequencies for them."""
    for family, pure in (("qwen2", [(0, 2, 4), (1, 3)]), ("gemma3_text", [(0, 1, 3), (2,)])):
        one, other = ([("a", at) for at in kind] for kind in (pure[first], pure[1 - first]))
        live = live_model(folders(family), one * 5)
        for number, walk in enumerate((other, one, [*one, *other], other)):
            expected = fresh_logits(live, walk, family, tmp_path / f"{family}{number}")
            assert torch.equal(live.logits(walk), expected)


def test_a_plan_deeper_than_the_live_model_changes_nothing(folders):
    live = live_model(folders("llama"), whole("a"))
    before = live.logits(whole("a"))
    with pytest.raises(EvaluationError, match=r"the plan has 6 layers, .* built for at most 5"):
        live.be([*whole("a"), ("b", 0)])
    assert torch.equal(family_logits(live.resident.model), before)


def test_kinds_with_other_tensors_keep_their_places(tmp_path: Path):
    kinds = ["conv", "full_attention", "conv"]
    for seed, name in enumerate("ab"):
        folder = write_family_model(tmp_path / name, "lfm2", seed, layers=3, layer_types=kinds)
        tokenizer().save_pretrained(folder)
    live = live_model({name: tmp_path / name for name in "ab"}, whole("a", 3))
    live.logits([("b", 2), ("a", 1), ("b", 0)])
    with pytest.raises(EvaluationError, match=r"layer 0: the live model's has a tensor 'conv"):
        live.be([("a", 1), ("a", 0), ("b", 2)])


def test_a_list_that_its_family_does_not_go_by_is_refused(folders, monkeypatch):
    live = live_model(folders("gemma2"), whole("a"))
    wiring: Any = live.resident.wiring
    built = wiring._parse(live.plan(whole("a")).config)
    monkeypatch.setattr(wiring, "_parse", lambda _: built)
    with pytest.raises(EvaluationError, match=r"by 'layer_types' layers are .* rule of its own"):
        live.be([("a", 1), ("a", 0), ("b", 2), ("a", 3), ("a", 4)])


def test_a_layer_that_depends_on_the_depth_is_refused(folders, monkeypatch):
    live = live_model(folders("llama"), whole("a"))
    build: Any = type(live.resident.model.model.layers[0]).__init__  # pyright: ignore

    def scaled(self: Any, config: Any, layer_idx: int) -> None:
        build(self, config, layer_idx)
        self.scale = config.num_hidden_layers**-0.5

    monkeypatch.setattr(type(live.resident.model.model.layers[0]), "__init__", scaled)  # pyright: ignore
    live = live_model(folders("llama"), whole("a"))
    before = live.logits(whole("b"))
    with pytest.raises(EvaluationError, match=r"layer 0 depends on .*'scale' is 0\.5 in a model"):
        live.be([("a", 0)] * 4)
    assert torch.equal(family_logits(live.resident.model), before)


def test_a_list_of_all_layers_within_each_of_them_is_no_hindrance(tmp_path: Path):
    """GPT-Neo's attention keeps the whole list of kinds."""
    for seed, name in enumerate("ab"):
        more = {"attention_types": [[["global", "local"], 2]], "layers": 4, "window_size": 3}
        folder = write_family_model(tmp_path / name, "gpt_neo", seed, **more)
        tokenizer().save_pretrained(folder)
        write_config(folder, with_layer_lists(read_config(folder)))
    live = live_model({name: tmp_path / name for name in "ab"}, whole("a", 4))
    for order in ((2, 1, 0, 3), (1, 0, 2, 3), (3, 0)):
        walk = [("b", at) for at in order]
        expected = fresh_logits(live, walk, "gpt_neo", tmp_path / f"out{order[0]}")
        assert torch.equal(live.logits(walk), expected)


@pytest.mark.parametrize("family", ["gemma2", "smollm3", "qwen2"])
def test_what_a_rule_says_goes_with_the_layers_in_a_merge(tmp_path: Path, family: str):
    """The layers of a model whose configuration states no lists, moved as its own plan says."""
    more = {"use_sliding_window": True, "max_window_layers": 3} if family == "qwen2" else {}
    window = {} if family == "smollm3" else {"sliding_window": 3}
    folder = write_family_model(tmp_path / "a", family, layers=LAYERS, **more, **window)
    tokenizer().save_pretrained(folder)
    ruled = read_config(folder)
    lists = {name: ruled.pop(name) for name in ("layer_types", "no_rope_layers") if name in ruled}
    write_config(folder, ruled)
    opened = open_checkpoint(folder, "a")
    parent = replace(opened, config=with_layer_lists(opened.config))
    walk = [("a", at) for at in (4, 0, 3, 3, 1, 2)]
    plan = compile_plan(recipe_of(walk), {"a": parent})
    write_model(plan, Parents({"a": parent}, CPU), tmp_path / "out", files={})
    write_config(folder, ruled | lists)
    stated = {"a": open_checkpoint(folder, "a")}
    expected = compile_plan(recipe_of(walk), stated)
    write_model(expected, Parents(stated, CPU), tmp_path / "expected", files={})
    found, right = (load_family(tmp_path / name, family) for name in ("out", "expected"))
    assert torch.equal(family_logits(found), family_logits(right))
    unaware = compile_plan(recipe_of(walk), {"a": opened})
    write_model(unaware, Parents({"a": opened}, CPU), tmp_path / "unaware", files={})
    assert not torch.equal(
        family_logits(load_family(tmp_path / "unaware", family)), family_logits(right)
    )


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(dict(config)))
