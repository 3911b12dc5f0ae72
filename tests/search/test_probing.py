"""What a few candidates tell of a study: numbers that never do, filters that match nothing."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_study import study_dict

from evals.items import Role
from merge_core.checkpoint import Checkpoint
from merge_core.errors import NumbersError
from merge_core.plan import compile_plan
from search.bench import build_bench, check_study
from search.errors import StudyError
from search.foresight import Foresight, foresee
from search.probing import Planned, hopeless, unmatched
from search.space import SearchSpace

Read = Callable[[dict[str, Any]], SearchSpace]


NEVER = {"choice": [-0.5, [-0.5, -0.5]]}


def linear(a: Any, b: Any, **more: Any) -> dict[str, Any]:
    models = [{"model": m, "parameters": {"weight": w}} for m, w in (("a", a), ("b", b))]
    return {"merge_method": "linear", "models": models} | more


def planned(checkpoints: dict[str, Checkpoint]) -> Planned:
    return partial(compile_plan, parents=checkpoints)


@pytest.mark.parametrize(
    ("recipe", "found"),
    [
        (linear({"range": [-1, 1]}, {"range": [-1, 1]}), 0),  # the middles sum to zero
        (linear({"choice": [0.5, -0.5]}, 0.5), 0),
        (linear(NEVER, 0.5), 1),
        (linear(-0.5, 0.5, merge_method={"choice": ["linear", "karcher"]}), 1),
        (linear(-0.5, 0.5, parameters={"normalize": {"choice": [True, False]}}), 0),
    ],
)
def test_a_method_is_hopeless_only_if_all_its_candidates_are(
    recipe: dict[str, Any], found: int, read_space: Read, checkpoints: dict[str, Checkpoint]
):
    told = list(hopeless(read_space(recipe), planned(checkpoints)))
    assert len(told) == found
    assert all(text.startswith("recipe (linear): tensor '") for text in told)
    assert all("sum to 0 and can't be normalised" in text for text in told)


def test_a_study_whose_middle_is_refused_is_built(study_folder: Path):
    recipe = linear({"range": [-1, 1]}, {"range": [-1, 1]}, dtype="float32")
    path = study_folder / "middle.yaml"
    path.write_text(yaml.safe_dump(study_dict(recipe=recipe)))
    bench = build_bench(check_study(path), (Role.SEARCH,))
    space = bench.study.space
    middle = next(space.probes())
    with pytest.raises(NumbersError, match="sum to 0"):
        bench.plan(space.decode(dict.fromkeys(middle, 0.0)))


def test_a_study_of_numbers_that_never_do_is_refused(study_folder: Path):
    path = study_folder / "never.yaml"
    path.write_text(yaml.safe_dump(study_dict(recipe=linear(NEVER, 0.5))))
    with pytest.raises(StudyError, match="sum to 0 and can't be normalised"):
        check_study(path)


def test_filters_that_match_nothing_are_told(study_folder: Path):
    grouped = {"range": [0, 1], "by": ["mlp", "self_attn", "*"]}
    slip = [{"filter": "mpl", "value": 0.9}, {"filter": "layers.1", "value": 0.5}, {"value": 0.4}]
    path = study_folder / "slip.yaml"
    path.write_text(yaml.safe_dump(study_dict(recipe=linear(grouped, slip))))
    told = [text for text in check_study(path).warnings if "filter" in text]
    assert told == [
        "recipe: parameters of model 'b'.weight: filter 'mpl' is part of no tensor's name: did you "
        "mean 'mlp'?"
    ]


def test_a_filter_of_one_candidate_is_looked_for_in_all(
    read_space: Read, checkpoints: dict[str, Checkpoint]
):
    choice = {"choice": [[{"filter": "mpl", "value": 1.0}, {"value": 0.5}], 0.7]}
    space = read_space(linear(choice, 0.5))
    assert len(set(unmatched(space, checkpoints, planned(checkpoints)))) == 1


def test_numbers_of_one_candidate_are_no_mistake_of_a_study_of_layers(study_folder: Path):
    """The middles sum to zero there too, and `check` looks at them to see whether layers move."""
    recipe = linear({"range": [-1, 1]}, {"range": [-1, 1]}, slices={"origin": ["a", "merge"]})
    path = study_folder / "layers.yaml"
    path.write_text(yaml.safe_dump(study_dict(recipe=recipe)))
    assert foresee(check_study(path)) == Foresight((), ())
