"""What may pass by itself is tried three times; the result is as if nothing had happened."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_study import study_dict

from evals.errors import EvaluationError, NoMemoryError
from evals.items import Role
from merge_core.errors import RecipeError
from merge_core.recipe import Recipe, Setting, Slice, Source
from search.bench import Bench, build_bench, check_study
from search.errors import ScorerError
from search.persistence import PAUSES, may_pass, persistent
from search.trial import evaluate

AVERAGE = Recipe(
    "linear", (Slice((Source("a"), Source("b"))),), None, (("weight", (Setting(None, 0.5),)),)
)
NUMPY = "Unable to allocate 9 GiB"
TORCH = "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you tried"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, none of which takes time."""
    made: list[float] = []
    monkeypatch.setattr("search.persistence.time.sleep", made.append)
    return made


@pytest.fixture
def bench(study_folder: Path) -> Bench:
    """A bench over log-likelihoods and generations."""
    path = study_folder / "persistence.yaml"
    objectives = [{"task": "tiny_choice"}, {"task": "tiny_generate"}]
    path.write_text(yaml.safe_dump(study_dict(objectives=objectives)))
    return build_bench(check_study(path), (Role.SEARCH,))


def failing(bench: Bench, errors: list[Exception], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have generations, which come last, fail with these errors one after another."""
    tries: list[int] = []
    lm: Any = bench.harness.lm
    real: Callable[..., Any] = lm.generate_until

    def work(*args: Any, **options: Any) -> Any:
        tries.append(1)
        if len(tries) <= len(errors):
            raise errors[len(tries) - 1]
        return real(*args, **options)

    monkeypatch.setattr(lm, "generate_until", work)
    return tries


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError(5, "Input/output error"), True),
        (FileNotFoundError("away"), True),
        (MemoryError(NUMPY), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError(TORCH), True),
        (NoMemoryError("memory runs out"), True),
        (EvaluationError("out of memory of a kind"), False),
        (RecipeError("weights sum to zero"), False),
        (ScorerError("function 'f' failed: OSError: away"), False),
        (RuntimeError("shapes differ"), False),
        (ZeroDivisionError(), False),
    ],
)
def test_what_may_pass(error: Exception, passes: bool):
    assert may_pass(error) is passes


def test_memory_is_given_back_before_the_next_try(pauses: list[float]):
    tries: list[str] = []

    def work() -> str:
        tries.append("work")
        if len(tries) < 4:
            raise MemoryError
        return "done"

    assert persistent(work, lambda: tries.append("forget")) == "done"
    assert tries == ["work", "forget", "work", "forget", "work"]
    assert pauses == list(PAUSES)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), torch.OutOfMemoryError("no")])
def test_a_candidate_that_was_tried_again_has_the_same_scores(
    bench: Bench, pauses: list[float], monkeypatch: pytest.MonkeyPatch, error: Exception
):
    expected = evaluate(AVERAGE, bench, Role.SEARCH, measure=True)
    bench.workbench.done.clear()
    tries = failing(bench, [error, error], monkeypatch)
    found = evaluate(AVERAGE, bench, Role.SEARCH, measure=True)
    assert len(tries) == 3
    assert pauses == list(PAUSES)
    assert found.failure is None
    assert found.scorecard is not None
    assert expected.scorecard is not None
    assert found.scorecard.items == expected.scorecard.items
    assert (found.norms, found.practice) == (expected.norms, expected.practice)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(5, "Input/output error"), "OSError: [Errno 5] Input/output error"),
        (
            torch.OutOfMemoryError("no"),
            "evaluation.batch_size: memory runs out with 16 sequences; set it lower or to 'auto'",
        ),
    ],
)
def test_the_third_failure_is_final_and_its_reason_says_so(
    bench: Bench,
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    reason: str,
):
    tries = failing(bench, [error] * 3, monkeypatch)
    found = evaluate(AVERAGE, bench, Role.SEARCH)
    assert (found.scorecard, found.failure) == (None, f"{reason} (tried three times)")
    assert (len(tries), len(pauses)) == (3, 2)
    assert evaluate(AVERAGE, bench, Role.SEARCH).failure is None  # the next one is none the worse


def test_what_will_not_pass_is_tried_once(
    bench: Bench, pauses: list[float], monkeypatch: pytest.MonkeyPatch
):
    tries = failing(bench, [RuntimeError("shapes differ")], monkeypatch)
    assert evaluate(AVERAGE, bench, Role.SEARCH).failure == "RuntimeError: shapes differ"
    assert (len(tries), pauses) == (1, [])
