"""Writing a merge out: the search's own bits, as a folder that transformers loads."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES
from tiny_models import write_model as write_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from merge_core import export
from merge_core.apply import Workbench, apply
from merge_core.checkpoint import INDEX, SINGLE, open_checkpoint
from merge_core.errors import MergeError
from merge_core.export import new_folder, verify, write_model
from merge_core.parents import Parents
from merge_core.plan import compile_plan
from merge_core.recipe import from_dict
from merge_core.registry import Base, find_method, merge_methods

HALF = {"merge_method": "linear", "models": ["a", "b"], "parameters": {"weight": 0.5}}
TIES = {
    "merge_method": "ties",
    "base_model": "base",
    "models": ["a", "b"],
    "parameters": {"weight": 0.6, "density": 0.4},
}
DARE = TIES | {"merge_method": "dare_linear"}
every_family = pytest.mark.parametrize("name", FAMILIES)


@every_family
def test_a_merge_loads_as_its_family(family, name, tmp_path):
    written(HALF, parents_of(family(name)), tmp_path / "out")
    merged = load(tmp_path / "out").state_dict()
    a, b = (load(family(name) / parent).state_dict() for parent in "ab")
    assert merged.keys() == a.keys()
    for tensor in merged:
        torch.testing.assert_close(merged[tensor], (a[tensor] + b[tensor]) / 2)


@every_family
def test_a_parent_written_out_answers_as_itself(family, name, tmp_path):
    recipe = {"merge_method": "passthrough", "models": ["a"]}
    written(recipe, parents_of(family(name)), tmp_path / "out")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out")("1 + 1 =", return_tensors="pt")
    with torch.inference_mode():
        mine, theirs = (
            load(folder)(tokens["input_ids"]).logits
            for folder in (tmp_path / "out", family(name) / "a")
        )
    assert torch.equal(mine, theirs)
    assert mine.isfinite().all()


@pytest.mark.parametrize("given", [{}, {"dtype": "float32"}, {"out_dtype": "bfloat16"}])
def test_a_float64_model_passes_through_to_the_bit(family, tmp_path, given):
    write_tiny(tmp_path / "a", near=family("llama") / "a", dtype=torch.float64)
    wide = load_file(tmp_path / "a" / SINGLE)
    wide["model.norm.weight"] += 1e-9  # no float32 holds that
    save_file(wide, tmp_path / "a" / SINGLE, metadata={"format": "pt"})
    parents = parents_of(tmp_path, ["a"])
    recipe = {"merge_method": "passthrough", "models": ["a"]}
    plan = written(recipe | given, parents, tmp_path / "o")
    dtype = getattr(torch, next(iter(given.values()), "float64"))
    expected = {name: tensor.to(dtype) for name, tensor in wide.items()}
    assert_same(load_file(tmp_path / "o" / SINGLE), expected)
    assert plan.config["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("recipe", [HALF, TIES, DARE], ids=lambda r: r["merge_method"])
@pytest.mark.parametrize("stored", [{}, {"out_dtype": "bfloat16"}], ids=["fp32", "bf16"])
def test_the_file_holds_the_bits_that_the_search_has_seen(family, name, recipe, stored, tmp_path):
    parents = parents_of(family(name))
    plan = written(recipe | stored, parents, tmp_path / "out")
    slots = {step.out: torch.empty(step.shape, dtype=step.dtype) for step in plan.steps}
    apply(plan, Workbench(parents, slots))
    assert_same(load_file(tmp_path / "out" / SINGLE), slots)


def test_every_method_can_be_written(family, tmp_path):
    parents = parents_of(family("llama"))
    for method in merge_methods():
        found = find_method(method)
        count = max(1, found.inputs[0] - (found.base in {Base.ENDPOINT, Base.INPUT}))
        models = ["a", "b"][:count] if method != "passthrough" else ["a"]
        given = {"t": 0.3, "weight": 0.7, "density": 0.6}
        known = {parameter.name for parameter in found.parameters}
        recipe = {
            "merge_method": method,
            "base_model": None if method == "passthrough" else "base",
            "models": models,
            "parameters": {name: value for name, value in given.items() if name in known},
        }
        written(recipe, parents, tmp_path / method)
        assert all(tensor.isfinite().all() for tensor in stored_in(tmp_path / method).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda steps: {steps[0].out: torch.zeros(1)}, "was to be written as"),
        (lambda steps: {steps[0].out: None}, "but the file holds none; merge again"),
        (lambda _: {"model.extra.weight": torch.zeros(1)}, "'model.extra.weight' was written but"),
    ],
)
def test_a_file_that_is_not_what_was_planned_is_refused(family, tmp_path, change, message):
    plan = written(HALF, parents_of(family("llama")), tmp_path / "out")
    verify(tmp_path / "out", plan)
    tensors = load_file(tmp_path / "out" / SINGLE) | change(plan.steps)
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(tensors, tmp_path / "out" / SINGLE)
    with pytest.raises(MergeError, match=message):
        verify(tmp_path / "out", plan)


def test_a_write_that_lied_leaves_nothing(family, tmp_path, monkeypatch):
    def lie(path, *_):
        path.write_bytes(b"")

    monkeypatch.setattr(export, "_write_shard", lie)
    with pytest.raises(MergeError, match=r"model.safetensors is not readable"):
        written(HALF, parents_of(family("llama")), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# Dtypes.


def test_bf16_out_of_fp32_parents_is_rounded_once(family, tmp_path):
    parents = parents_of(family("llama"))
    written(HALF, parents, tmp_path / "fine")
    written(HALF | {"out_dtype": "bfloat16"}, parents, tmp_path / "coarse")
    fine, coarse = stored_in(tmp_path / "fine"), stored_in(tmp_path / "coarse")
    assert_same(coarse, {name: tensor.bfloat16() for name, tensor in fine.items()})
    assert json.loads((tmp_path / "coarse/config.json").read_text())["dtype"] == "bfloat16"
    assert load(tmp_path / "coarse").dtype == torch.bfloat16


def test_bf16_parents_stay_bf16(family, tmp_path):
    for parent in "ab":
        write_tiny(tmp_path / parent, near=family("llama") / parent, spread=0, dtype=torch.bfloat16)
    written(HALF, parents_of(tmp_path, "ab"), tmp_path / "out")
    a, b = (stored_in(tmp_path / parent) for parent in "ab")
    expected = {name: ((a[name].float() + b[name].float()) / 2).bfloat16() for name in a}
    assert_same(stored_in(tmp_path / "out"), expected)


# Frankenmerges.


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt_neox", "gpt2"])
@pytest.mark.parametrize(
    "origins", [[(0, 2), (1, 3)], [(0, 3), (0, 3)], [(0, 1)], [(2, 3), (0, 1)]], ids=str
)
def test_a_stack_of_another_depth_loads_and_runs(family, name, origins, tmp_path):
    slices = [
        {"sources": [{"model": "ab"[i], "layer_range": list(span)}]}
        for i, span in enumerate(origins)
    ]
    recipe = {"merge_method": "passthrough", "slices": slices}
    parents = parents_of(family(name))
    plan = written(recipe, parents, tmp_path / "out")
    depth = sum(end - start for start, end in origins)
    model, opened = load(tmp_path / "out"), open_checkpoint(tmp_path / "out", "out")
    assert plan.depth == model.config.num_hidden_layers == opened.layout.depth == depth
    assert model(torch.tensor([[5, 6, 7]])).logits.isfinite().all()

    tensors = stored_in(tmp_path / "out")
    copied = [("ab"[i], layer) for i, span in enumerate(origins) for layer in range(*span)]
    for layer, (parent, origin) in enumerate(copied):
        source = parents.checkpoints[parent]
        for tensor in opened.layers[layer]:
            original = parents.tensor(parent, source.layout.moved(tensor, origin))
            assert torch.equal(tensors[tensor], original)


def test_a_scaled_stack_scales_what_the_filter_names(family, tmp_path):
    scale = [{"filter": "o_proj", "value": 0.0}, {"value": 1.0}]
    source = {"model": "a", "layer_range": [0, 2], "parameters": {"scale": scale}}
    recipe = {"merge_method": "passthrough", "slices": [{"sources": [source]}]}
    written(recipe, parents_of(family("llama")), tmp_path / "out")
    for name, tensor in stored_in(tmp_path / "out").items():
        assert tensor.any() == ("o_proj" not in name)


# Files.


def test_a_large_model_is_cut_into_shards(family, tmp_path):
    parents = parents_of(family("llama"))
    plan = written(TIES, parents, tmp_path / "whole")
    limit = 20_000
    written(TIES, parents, tmp_path / "cut", shard_bytes=limit)
    files = sorted(path.name for path in (tmp_path / "cut").glob("*.safetensors"))
    count = len(files)
    assert count > 3
    assert files == [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    for file in files:
        shard = load_file(tmp_path / "cut" / file)
        assert len(shard) == 1 or sum(tensor.nbytes for tensor in shard.values()) <= limit
    index = json.loads((tmp_path / "cut" / INDEX).read_text())
    assert index["metadata"]["total_size"] == plan.bytes_out
    assert index["weight_map"].keys() == {step.out for step in plan.steps}
    assert_same(stored_in(tmp_path / "cut"), stored_in(tmp_path / "whole"))
    assert_same(load(tmp_path / "cut").state_dict(), load(tmp_path / "whole").state_dict())


def test_one_byte_per_shard_is_one_tensor_per_shard(family, tmp_path):
    plan = written(HALF, parents_of(family("llama")), tmp_path / "out", shard_bytes=1)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == len(plan.steps)


def test_a_written_merge_is_a_parent_of_the_next(family, tmp_path):
    written(HALF, parents_of(family("llama")), tmp_path / "half", shard_bytes=30_000)
    (tmp_path / "base").symlink_to(family("llama") / "base")
    recipe = {"merge_method": "passthrough", "models": ["half"]}
    written(recipe, parents_of(tmp_path, ("half",)), tmp_path / "copy")
    assert_same(stored_in(tmp_path / "copy"), stored_in(tmp_path / "half"))


def test_the_tokenizer_comes_along_and_the_rest_does_not(family, tmp_path):
    source = tmp_path / "a"
    write_tiny(source, near=family("llama") / "a", spread=0)
    (source / "generation_config.json").write_text("{}")
    (source / "README.md").write_text("of the parent")
    (source / "training_args.bin").write_bytes(b"state")
    recipe = {"merge_method": "passthrough", "models": ["a"]}
    extra = {"recipe.yaml": "mine", "NOTES.md": "also mine"}
    written(recipe, parents_of(tmp_path, "a"), tmp_path / "out", extra=extra)
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= found
    assert not found & {"README.md", "training_args.bin"}
    assert (tmp_path / "out" / "recipe.yaml").read_text() == "mine"
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (source / file).read_bytes()


def test_progress_names_every_tensor_once(family, tmp_path):
    seen = []
    plan = written(HALF, parents_of(family("llama")), tmp_path / "out", progress=seen.append)
    assert seen == [step.out for step in plan.steps]


# All or nothing.


@pytest.mark.parametrize("existing", [False, True])
def test_an_error_on_the_way_leaves_no_folder(family, tmp_path, existing):
    target = tmp_path / "there" / "out"
    if existing:
        target.mkdir(parents=True)
    seen = []

    def fail_late(name):
        seen.append(name)
        if len(seen) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written(HALF, parents_of(family("llama")), target, progress=fail_late, shard_bytes=9000)
    assert list(target.parent.iterdir()) == ([target] if existing else [])
    assert not existing or not any(target.iterdir())
    written(HALF, parents_of(family("llama")), target)
    assert open_checkpoint(target, "out")


def test_a_method_that_refuses_leaves_no_folder(family, tmp_path):
    models = [{"model": m, "parameters": {"weight": w}} for m, w in (("a", 1), ("b", -1))]
    with pytest.raises(MergeError, match="sum to 0"):
        written(
            {"merge_method": "linear", "models": models},
            parents_of(family("llama")),
            tmp_path / "out",
        )
    assert not any(tmp_path.iterdir())


def test_no_file_appears_under_the_final_name_before_the_end(family, tmp_path):
    target = tmp_path / "out"
    written(
        HALF,
        parents_of(family("llama")),
        target,
        progress=lambda _: (_ for _ in ()).throw(AssertionError) if target.exists() else None,
    )
    assert target.exists()


def test_a_folder_with_files_is_refused_and_kept(family, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("kept")
    with pytest.raises(MergeError, match="out is not empty; give a new folder"):
        written(HALF, parents_of(family("llama")), tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "precious.txt"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("kept")
    with (
        pytest.raises(MergeError, match="out is not empty; give a new folder"),
        new_folder(tmp_path / "out"),
    ):
        pass
    assert (tmp_path / "out").read_text() == "kept"


def test_memory_stays_at_one_tensor(family, tmp_path, monkeypatch):
    parents = parents_of(family("llama"))
    held = []
    forget = parents.forget
    monkeypatch.setattr(parents, "forget", lambda: (held.append(len(parents._tensors)), forget()))
    written(TIES, parents, tmp_path / "out")
    assert set(held) == {3}  # one tensor of each of base, a and b
    assert export.SHARD_BYTES == 5_000_000_000


def written(recipe, parents, folder, **options):
    plan = compile_plan(from_dict(recipe), parents.checkpoints)
    write_model(plan, parents, folder, **options)
    return plan


def parents_of(folder, names=("base", "a", "b")):
    opened = {name: open_checkpoint(folder / name, name) for name in names}
    return Parents(opened, torch.device("cpu"))


def load(folder):
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    assert not any(report.values()), report
    return model


def stored_in(folder):
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name
