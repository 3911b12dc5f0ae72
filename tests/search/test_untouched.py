"""A user's function that changes the live model fails its candidate and harms no other."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_study import study_dict

from evals.items import Role
from merge_core.recipe import Recipe, Setting, Slice, Source
from search.baselines import parent_recipe
from search.bench import Bench, build_bench, check_study
from search.checksums import checksum
from search.errors import StudyError
from search.functions import Scorer
from search.trial import Outcome, evaluate
from search.untouched import untouched

AVERAGE = Recipe(
    "linear", (Slice((Source("a"), Source("b"))),), None, (("weight", (Setting(None, 0.5),)),)
)
CANDIDATES = [parent_recipe("a"), AVERAGE, parent_recipe("b"), parent_recipe("a")]


def width(model: Any, _: Any) -> float:
    return sum(float(p.double().abs().sum()) for p in model.parameters())


@pytest.fixture(scope="module")
def bench(study_folder: Path) -> Bench:
    """A bench of a study with a function, which the tests put others in the place of."""
    (study_folder / "width.py").write_text("def width(model, tokenizer): return 1")
    path = study_folder / "untouched.yaml"
    objectives = [{"task": "tiny_choice"}, {"function": "./width.py:width"}]
    path.write_text(yaml.safe_dump(study_dict(objectives=objectives)))
    return build_bench(check_study(path), (Role.SEARCH,))


@pytest.fixture(scope="module")
def expected(bench: Bench) -> list[Outcome]:
    """What the candidates give with a function that changes nothing."""
    return [tried(bench, recipe, width) for recipe in CANDIDATES]


def tried(bench: Bench, recipe: Recipe, function: Callable[[Any, Any], Any]) -> Outcome:
    scorers: Any = bench.study.scorers
    scorers["width"] = Scorer("width", function, "")
    return evaluate(recipe, bench, Role.SEARCH)


def same(found: Outcome, other: Outcome) -> bool:
    assert found.scorecard is not None
    assert other.scorecard is not None
    return (found.figures, found.scorecard.items) == (other.figures, other.scorecard.items)


def halve(model: Any, _: Any) -> float:
    for tensor in model.parameters():
        tensor.data.mul_(0.5)
    return 1.0


def one_bit(model: Any, _: Any) -> float:
    tensor = model.model.layers[1].mlp.up_proj.weight
    tensor.data.view(torch.uint8)[-1, -1] ^= 1
    return 1.0


def turn(model: Any, _: Any) -> float:
    tensor = model.model.layers[0].mlp.up_proj.weight.data
    tensor.copy_(tensor.flip(0))
    return 1.0


def rebind(model: Any, _: Any) -> float:
    tensor = model.model.norm.weight
    tensor.data = torch.zeros(3)
    return 1.0


def exchange(model: Any, _: Any) -> float:
    norm = model.model.norm
    norm.weight = torch.nn.Parameter(torch.zeros_like(norm.weight))
    return 1.0


def cut(model: Any, _: Any) -> float:
    model.model.layers[0].mlp = torch.nn.Identity()
    return 1.0


def hook(model: Any, _: Any) -> float:
    model.model.layers[0].register_forward_hook(lambda *_: None)
    return 1.0


def train(model: Any, _: Any) -> float:
    model.train()
    return 1.0


def ask(model: Any, _: Any) -> float:
    model.model.norm.weight.requires_grad_(True)
    return 1.0


def halve_and_fail(model: Any, tokenizer: Any) -> float:
    halve(model, tokenizer)
    raise ValueError("oh")


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (halve, "tensor 'model.embed_tokens.weight' (and "),
        (one_bit, "tensor 'model.layers.1.mlp.up_proj.weight'; it must"),
        (turn, "tensor 'model.layers.0.mlp.up_proj.weight'; it must"),
        (rebind, "tensor 'model.norm.weight'; it must"),
        (exchange, "tensor 'model.norm.weight' and parts or hooks of module 'model.norm'; it"),
        (cut, "tensor 'model.layers.0.mlp."),
        (hook, "parts or hooks of module 'model.layers.0'; it must"),
        (train, "the training mode of 'LlamaForCausalLM' (and "),
        (ask, "requires_grad of 'model.norm.weight'; it must"),
        (halve_and_fail, "tensor 'model.embed_tokens.weight' (and "),
    ],
)
def test_what_it_changes_is_named_and_no_other_candidate_is_harmed(
    bench: Bench, expected: list[Outcome], function: Callable[[Any, Any], Any], told: str
):
    for at, recipe in enumerate(CANDIDATES):  # parents are lent their own mapped memory
        for after in (at, (at + 1) % len(CANDIDATES)):
            found = tried(bench, recipe, function)
            assert found.scorecard is None
            assert (found.failure or "").startswith(f"function 'width' changed {told}")
            assert same(tried(bench, CANDIDATES[after], width), expected[after])


def test_its_own_failure_is_told_too(bench: Bench):
    found = tried(bench, AVERAGE, halve_and_fail)
    assert "so have it change a copy; also, function 'width' failed: ValueError: oh" in str(
        found.failure
    )


def test_what_is_put_back_is_no_change(bench: Bench, expected: list[Outcome]):
    def borrow(model: Any, tokenizer: Any) -> float:
        tensor = model.model.norm.weight
        before = tensor.clone()
        tensor.data.zero_()
        tensor.data.copy_(before)
        return width(model, tokenizer)

    assert same(tried(bench, AVERAGE, borrow), expected[1])


def test_an_exit_is_the_candidates_failure_and_an_interrupt_is_none(bench: Bench):
    def leave(*_: Any) -> float:
        raise SystemExit(3)

    def interrupt(*_: Any) -> float:
        raise KeyboardInterrupt

    assert tried(bench, AVERAGE, leave).failure == "function 'width' failed: SystemExit: 3"
    with pytest.raises(KeyboardInterrupt):
        tried(bench, AVERAGE, interrupt)


def test_without_the_parents_files_the_run_stops(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    def gone() -> None:
        raise OSError("no such file")

    monkeypatch.setattr(bench.workbench.parents, "heal", gone)
    with pytest.raises(StudyError, match="the parents can't be read again to make it whole: no su"):
        tried(bench, AVERAGE, halve)
    monkeypatch.undo()
    bench.workbench.renew()


def test_memory_that_runs_out_while_looking_leaves_nothing_unknown(
    bench: Bench, expected: list[Outcome], monkeypatch: pytest.MonkeyPatch
):
    looks = iter([None, torch.OutOfMemoryError("none left")])

    class Look:
        def __init__(self, model: Any) -> None:
            self.real, self.error = untouched(model), next(looks, None)
            self.restore = self.real.restore

        def changes(self) -> str | None:
            if self.error is not None:
                raise self.error
            return self.real.changes()

    monkeypatch.setattr("search.persistence.time.sleep", lambda _: None)  # pyright: ignore
    monkeypatch.setattr("search.figures.untouched", Look)
    assert same(tried(bench, AVERAGE, width), expected[1])
    functions = iter([halve, width])
    found = tried(bench, AVERAGE, lambda *given: next(functions)(*given))
    assert same(found, expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (64, 5), (1 << 18,)])
def test_a_checksum_sees_every_byte(dtype: torch.dtype, shape: tuple[int, ...]):
    tensor = torch.rand(shape).mul(100).to(dtype)
    before = checksum(tensor)
    assert checksum(tensor.clone()) == before
    raw = tensor.reshape(-1).view(torch.uint8)
    for at in {0, len(raw) // 2, len(raw) - 1} if len(raw) else ():
        raw[at] ^= 1
        assert checksum(tensor) != before
        raw[at] ^= 1
    assert checksum(tensor) == before


def test_a_checksum_sees_another_order_whatever_the_alignment():
    tensor = torch.arange(4096, dtype=torch.bfloat16)[1:].view(63, 65)
    assert checksum(tensor) != checksum(tensor.flip(0))
    assert checksum(tensor.T) == checksum(tensor.T.contiguous())


def test_gradients_are_looked_at_too():
    model = torch.nn.Linear(2, 2)
    before = untouched(model)
    with torch.no_grad():
        assert before.changes() == "torch's grad mode"
    assert before.changes() is None
    assert replace(before, gradients=False).changes() == "torch's grad mode"


def test_buffers_that_a_checkpoint_has_are_put_back():
    model = torch.nn.BatchNorm1d(2)
    model.register_buffer("scratch", torch.zeros(1), persistent=False)
    before, mean = untouched(model), model.running_mean
    model.running_mean = torch.ones(2)
    model.scratch = torch.ones(1)
    assert before.changes() == "tensor 'running_mean'"
    before.restore()
    assert model.running_mean is mean
    assert model.scratch == 1
    assert before.changes() is None
