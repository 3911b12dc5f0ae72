"""A candidate that fails a guard is a reason, not a score."""

from pathlib import Path

import pytest
import torch
import yaml
from tiny_study import study_dict

from evals.guards import Range
from evals.items import Role
from evals.scorecard import Scorecard
from merge_core.recipe import Recipe, Setting, Slice, Source
from search.baselines import parent_recipe
from search.bench import Bench, build_bench, check_study
from search.trial import evaluate


def average(*layers: tuple[int, int]) -> Recipe:
    """The average of two parents' layers."""
    parts = [Slice((Source("a", span), Source("b", span))) for span in layers]
    whole = Slice((Source("a"), Source("b")))
    return Recipe("linear", tuple(parts) or (whole,), None, (("weight", (Setting(None, 0.5),)),))


AVERAGE = average()


@pytest.fixture
def bench(study_folder: Path) -> Bench:
    """A bench over choices and generations."""
    path = study_folder / "trial.yaml"
    objectives = [{"task": "tiny_choice"}, {"task": "tiny_generate"}]
    path.write_text(yaml.safe_dump(study_dict(objectives=objectives)))
    return build_bench(check_study(path), (Role.SEARCH,))


def test_a_sound_candidate_has_a_scorecard(bench: Bench):
    outcome = evaluate(parent_recipe("a"), bench, Role.SEARCH)
    assert outcome.failure is None
    assert outcome.scorecard is not None
    assert outcome.scorecard.role is Role.SEARCH
    assert set(outcome.scorecard.symptoms) == {"tiny_generate"}


def test_norms_beyond_the_parents_fail(bench: Bench):
    bench.norms = {"model.norm.weight": Range(1e-3, 1e-2)}
    outcome = evaluate(AVERAGE, bench, Role.SEARCH)
    assert outcome.scorecard is None
    assert (outcome.failure or "").startswith("tensor 'model.norm.weight' exploded")


def test_layers_are_held_against_the_layers_that_they_are_made_of(bench: Bench):
    name = "model.layers.{}.mlp.up_proj.weight"
    bench.norms = {name.format(0): Range(1e-3, 1e-2), name.format(1): Range(1.0, 10.0)}
    layers = [(at, at + 1) for at in (1, 1, 1)]
    found = evaluate(average(*layers), bench, Role.SEARCH)
    assert found.failure is None
    found = evaluate(average(*layers, (0, 1)), bench, Role.SEARCH)
    assert (found.failure or "").startswith("the plan has 4 layers")
    found = evaluate(average((1, 2), (0, 1)), bench, Role.SEARCH)
    assert (found.failure or "").startswith(f"tensor '{name.format(1)}' exploded")


def test_a_parents_own_tensors_were_looked_at_when_it_was_scored(bench: Bench):
    bench.norms = {"model.norm.weight": Range(1e-3, 1e-2)}
    assert evaluate(parent_recipe("a"), bench, Role.SEARCH).failure is None


def test_generations_that_are_no_answers_fail_and_those_at_the_limit_are_flagged(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    score = bench.harness.score

    def ill(role: Role, *_: object) -> Scorecard:
        card = score(role)
        rates = {"truncated": 0.5, "empty": empty, "looping": 0.0}
        return Scorecard(card.scores, card.items, card.seconds, role, {"tiny_generate": rates})

    monkeypatch.setattr(bench.harness, "score", ill, raising=False)
    bench.worst = {"tiny_generate": {"truncated": 0.1, "empty": 0.0, "looping": 0.0}}
    empty = 0.2
    outcome = evaluate(parent_recipe("a"), bench, Role.SEARCH)
    assert outcome.failure is None
    assert outcome.flags == (
        "tiny_generate: 50% of its texts end at the generation limit (at most 10% of a parent's), "
        "so the score depends on it",
    )
    empty = 0.9
    outcome = evaluate(parent_recipe("a"), bench, Role.SEARCH)
    assert outcome.scorecard is None
    assert (outcome.failure or "").startswith("tiny_generate: 90% of its texts are empty")


def test_only_what_changed_is_looked_at_again(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []

    def look(_: object, slots: dict[str, torch.Tensor], *__: object) -> None:
        seen.append(len(slots))

    monkeypatch.setattr("search.trial.health", look)
    for name in ("a", "a", "b", "b"):
        evaluate(parent_recipe(name), bench, Role.SEARCH)
    whole = len(bench.workbench.slots)
    assert seen == [whole, 0, whole, 0]


def test_what_was_found_ill_is_looked_at_again(bench: Bench):
    bench.norms = {"model.norm.weight": Range(1e-3, 1e-2)}
    reasons = [evaluate(AVERAGE, bench, Role.SEARCH).failure for _ in range(2)]
    assert reasons[0] == reasons[1]
    assert reasons[0] is not None
