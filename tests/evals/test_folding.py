"""Scales of layers folded into weights: proved on live models, and on what is exported."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from tiny_families import build_family, family_config, load_family
from transformers import PreTrainedModel
from windows import sharpen

from evals.activations import find_layers
from evals.folding import refusal
from evals.resident import Resident, match_slots
from merge_core.checkpoint import Checkpoint, open_checkpoint
from merge_core.export import write_model
from merge_core.interleave import Run, interleave
from merge_core.parents import Parents
from merge_core.plan import compile_plan
from merge_core.recipe import Parameters, Recipe, Setting, Slice, Source
from merge_core.writers import Writers, find_writers, folded, powers, scale_settings

FAMILIES = (
    *("llama", "qwen2", "qwen3", "mistral", "gemma", "gpt_neox", "gpt2", "smollm3", "phi"),
    *("falcon", "cohere", "olmo", "olmo2", "glm4", "exaone4", "mixtral", "qwen3_moe", "gpt_oss"),
)
ONE_PLUS = ("gemma2", "gemma3_text")
INNER = ("v_proj.weight", "up_proj.weight", "query_key_value.weight", "c_attn.weight", "w3.weight")
EPS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
Live = Callable[..., tuple[Checkpoint, Resident]]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Live:
    """A family's model as a parent and alive; what a test does to it, it must undo."""
    root = tmp_path_factory.mktemp("live")

    def build(
        family: str, dtype: torch.dtype = torch.float32, **more: object
    ) -> tuple[Checkpoint, Resident]:
        folder = root / "-".join([family, *map(str, more)])
        model = lively(build_family(family, **more))
        if not folder.exists():
            model.save_pretrained(folder)
        parent = open_checkpoint(folder, "a")
        model = model.to(dtype)
        return parent, Resident(model, None, match_slots(model, parent.tensors))

    return build


@pytest.mark.parametrize("family", FAMILIES)
def test_scales_are_proved(live: Live, family: str):
    parent, resident = live(family)
    assert refusal(resident, powers(parent, find_writers(parent))) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_the_proof_fails_when_a_tensor_is_missing_or_one_too_many(live: Live, family: str):
    parent, resident = live(family)
    found = powers(parent, find_writers(parent))
    *others, last = found
    # 24 tokens need not visit every expert.
    names = [n for n in parent.layers[len(others)] if not re.search(r"experts\.[1-9]", n)]
    for name in names:
        fewer = {other: power for other, power in last.items() if other != name}
        if last.get(name, 0) > 0:
            assert refusal(resident, [*others, fewer]), name
    if any("norm" in name for name in last):
        return  # what ends in a norm doesn't see a factor of what is before
    for name in names:
        if name not in last and name.endswith(INNER):
            assert refusal(resident, [*others, {**last, name: 1}]), name


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_it_leaves_a_model_of_any_dtype_as_it_was(live: Live, family: str):
    parent, resident = live(family, torch.bfloat16)
    model = resident.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    places = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    hooks, eps = hooks_of(model), eps_of(model)
    writers = find_writers(parent)
    assert refusal(resident, powers(parent, writers)) is None
    assert refusal(resident, [{} for _ in range(parent.layout.depth)])
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
        assert tensor.data_ptr() == places[name]
    assert (hooks_of(model), eps_of(model)) == (hooks, eps)


def test_it_leaves_a_model_that_breaks_as_it_was(live: Live):
    parent, resident = live("llama", torch.bfloat16)
    block = resident.model.model.layers[1].mlp

    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    hook = block.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no memory"):
        refusal(resident, powers(parent, find_writers(parent)))
    hook.remove()
    assert {p.dtype for p in resident.model.parameters()} == {torch.bfloat16}
    assert hooks_of(resident.model) == 0


def test_layers_that_share_their_weights_are_scaled_apart(live: Live):
    """A repeated layer: two positions, one storage."""
    parent, resident = live("llama")
    one, two = resident.model.model.layers[:2]
    for mine, other in zip(one.parameters(), two.parameters(), strict=True):
        other.data = mine.data
    assert refusal(resident, powers(parent, find_writers(parent))) is None


@pytest.mark.parametrize("family", ONE_PLUS)
def test_norms_of_one_plus_weight_cant_be_multiplied(live: Live, family: str):
    parent, resident = live(family)
    reason = refusal(resident, powers(parent, find_writers(parent)))
    assert "layer 0's blocks" in str(reason)
    assert "they multiply by 1 + weight" in str(reason)


def test_a_model_that_reads_the_stream_without_a_norm_is_refused(live: Live):
    parent, resident = live("opt", do_layer_norm_before=False)
    assert "layer 0 still writes to the residual stream" in str(
        refusal(resident, powers(parent, find_writers(parent)))
    )
    parent, resident = live("olmo2")
    writers = Writers(find_writers(parent).writing)
    assert "layer 0 reads the residual stream without a norm" in str(
        refusal(resident, powers(parent, writers))
    )


def test_a_head_that_sees_the_streams_size_is_refused(live: Live):
    parent, resident = live("llama")
    resident.model.model.norm = torch.nn.Identity()
    reason = refusal(resident, powers(parent, find_writers(parent)))
    assert "what follows the last layer depends on the stream's size" in str(reason)


def test_layers_and_slots_must_be_the_live_models(live: Live):
    parent, resident = live("llama")
    found = powers(parent, find_writers(parent))
    assert refusal(resident, found[1:]) == "the live model shows 3 layers, not 2"
    told = "tensor '{}' is no weight of the live model's layer {}"
    assert refusal(resident, [*found[:-1], {"x": 1}]) == told.format("x", 2)
    name = next(iter(found[1]))
    assert refusal(resident, [found[1], *found[1:]]) == told.format(name, 0)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "olmo"])  # its eps is in its code
def test_what_is_exported_is_the_model_that_scales_the_stream(tmp_path: Path, family: str):
    """A plain checkpoint, loaded by transformers alone, against hooks on the unscaled layers."""
    more = dict.fromkeys(set(EPS) & set(family_config(family).to_dict()), 1e-12)
    parents = {
        name: open_checkpoint(write_lively(tmp_path / name, family, seed, more), name)
        for seed, name in enumerate("ab")
    }
    walk = [("a", 0, 1.0), (None, 1, 0.7), ("b", 1, 1.4), (None, 2, 1.0), ("a", 2, 1.2)]
    writers = find_writers(parents["a"])
    factors = folded([scale for *_, scale in walk])
    plain = write_walk(tmp_path / "plain", walk, [()] * len(walk), parents)
    scaled = write_walk(
        tmp_path / "scaled", walk, [scale_settings(writers, f) for f in factors], parents
    )
    hooked = load_family(plain, family)
    unscaled = logits(hooked)
    for layer, (*_, scale) in zip(find_layers(hooked), walk, strict=True):
        scale_input(layer, scale)
    wanted, found = logits(hooked), logits(load_family(scaled, family))
    spread = wanted.std(-1).mean()
    assert (found - wanted).abs().max() < 1e-4 * spread
    assert (unscaled - wanted).abs().max() > 1e-2 * spread


@torch.no_grad()
def lively(model: PreTrainedModel) -> PreTrainedModel:
    """Far from equally likely tokens, and no parameter of zeros, which any factor suits."""
    for parameter in model.parameters():
        if not parameter.any():
            parameter.normal_(0.0, 0.05)
    return sharpen(model)


def write_lively(folder: Path, family: str, seed: int, more: Mapping[str, object]) -> Path:
    lively(build_family(family, seed, **more)).save_pretrained(folder)
    return folder


def write_walk(
    folder: Path,
    walk: Sequence[tuple[str | None, int, float]],
    settings: Sequence[Parameters],
    parents: Mapping[str, Checkpoint],
) -> Path:
    """Export layers of several parents, or of their average, each with settings of its own."""
    runs = [
        Run(origin, layer, layer + 1, own)
        for (origin, layer, _), own in zip(walk, settings, strict=True)
    ]
    whole = Slice(tuple(map(Source, parents)))
    average = Recipe("linear", (whole,), parameters=(("weight", (Setting(None, 0.5),)),))
    depths = {name: parent.layout.depth for name, parent in parents.items()}
    plan = compile_plan(interleave(average, runs, depths), parents)
    write_model(plan, Parents(parents, torch.device("cpu")), folder)
    return folder


def scale_input(layer: torch.nn.Module, scale: float) -> None:
    def multiply(_: object, args: tuple, keywords: dict) -> tuple[tuple, dict]:
        if args:
            return (args[0] * scale, *args[1:]), keywords
        return args, keywords | {"hidden_states": keywords["hidden_states"] * scale}

    layer.register_forward_pre_hook(multiply, with_kwargs=True)


@torch.inference_mode()
def logits(model: torch.nn.Module) -> torch.Tensor:
    tokens = torch.randint(104, (2, 10), generator=torch.Generator().manual_seed(0))
    return model(input_ids=tokens, use_cache=False).logits


def hooks_of(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def eps_of(model: torch.nn.Module) -> list[object]:
    return [value for m in model.modules() for key, value in vars(m).items() if "eps" in key]
