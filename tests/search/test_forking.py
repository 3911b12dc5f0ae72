"""A study goes on under another question: what is comparable is kept, the rest is tried again."""

from io import StringIO
from pathlib import Path

import optuna
import pytest
from rich.console import Console
from tiny_study import study_dict, write_study

from evals.objective import objective
from search.bench import check_study
from search.commands import RunOptions, compare_study, run_study
from search.errors import ProtocolError
from search.record import best_of, load, readings_from_dict
from search.study import open_study

SILENT = Console(file=StringIO())
BOTH = [{"task": "tiny_choice"}, {"task": "tiny_shots"}]
SEARCH = {"sampler": "tpe", "trials": 14, "finalists": 2}


def study_of(folder: Path, weight: float = 1.0, **changes) -> Path:
    objectives = [{"task": "tiny_choice"}, {"task": "tiny_shots", "weight": weight}]
    return write_study(folder, study_dict(objectives=objectives, search=SEARCH, **changes))


def names(study: Path) -> list[str]:
    with open_study(check_study(study)) as opened:
        return optuna.get_all_study_names(opened._storage)  # pyright: ignore


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    path = study_of(tmp_path)
    run_study(path, SILENT)
    return path


def test_another_weight_judges_the_same_trials_anew(ran: Path):
    with open_study(check_study(ran)) as study:
        before = [load(trial) for trial in study.trials]
    study_of(ran.parent, weight=3.0)
    run_study(ran, SILENT)
    assert names(ran) == ["tiny", "tiny#2"]
    with open_study(check_study(ran)) as study:
        assert study.study_name == "tiny#2"
        after, readings = [load(trial) for trial in study.trials], readings_from_dict(study)
    assert [one.weight for one in readings] == [1.0, 3.0]
    assert [one.recipe for one in after] == [one.recipe for one in before]
    for one in after:
        assert one.value == objective([one.scorecard], readings, signal=True)
    assert [one.value for one in after] != [one.value for one in before]


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_the_best_that_is_told_is_the_best_of_all_runs(ran: Path, weight: float):
    study_of(ran.parent, weight)
    out = StringIO()
    run_study(ran, Console(file=out, width=200), RunOptions(trials=15))
    with open_study(check_study(ran)) as study:
        first = best_of(study)
    assert first is not None
    assert first.number < 14, "the test needs a last trial that isn't the best"
    (line,) = [line for line in out.getvalue().splitlines() if line.startswith("trial ")]
    assert line.startswith("trial 14 (15/15): ")
    assert f"; best {first.value:.4f} (trial {first.number}); " in line


def test_weights_put_back_give_the_values_that_there_were(ran: Path):
    with open_study(check_study(ran)) as study:
        before = [trial.value for trial in study.trials]
    for weight in (3.0, 1.0):
        study_of(ran.parent, weight)
        run_study(ran, SILENT)
    with open_study(check_study(ran)) as study:
        assert study.study_name == "tiny#3"
        assert [trial.value for trial in study.trials] == pytest.approx(before, abs=1e-5)


def test_a_fork_tries_the_best_of_the_study_before_it(ran: Path):
    with open_study(check_study(ran)) as study:
        best = sorted(study.trials, key=lambda t: (-t.value, t.number))
    study_of(ran.parent, items={"search": 14, "select": 8, "holdout": 16})
    with pytest.raises(ProtocolError, match=r"items.search: was 16, is 14(.|\n)*--fork"):
        run_study(ran, SILENT)
    run_study(ran, SILENT, RunOptions(fork=True))
    with open_study(check_study(ran)) as study:
        assert study.study_name == "tiny#2"
        assert study.trials[0].params == best[0].params
        assert len(study.trials) == 14
        counts = {len(load(t).scorecard.items["tiny_choice"]["acc,none"]) for t in study.trials}
        assert counts == {14}
    run_study(ran, SILENT, RunOptions(fork=True))  # nothing has changed: nothing is begun
    assert names(ran) == ["tiny", "tiny#2"]


def said(study: Path, **options: bool) -> str:
    text = StringIO()
    run_study(study, Console(file=text, width=300), RunOptions(**options))
    return text.getvalue()


def test_an_edit_undone_goes_on_with_the_study_before_it(ran: Path):
    edited = {"search": 14, "select": 8, "holdout": 16}
    study_of(ran.parent, items=edited)
    told = "Begins study 'tiny#2', which first tries the best 10 candidates of 'tiny'"
    assert told in said(ran, fork=True)
    study_of(ran.parent)
    assert "Goes on with study 'tiny' of the storage" in said(ran)
    assert "Goes on with" not in said(ran)  # that is the study now
    with open_study(check_study(ran)) as study:
        assert study.study_name == "tiny"
        winner = study.user_attrs["winner"]
    assert compare_study(ran, SILENT).trial == winner
    study_of(ran.parent, items=edited)
    assert "'tiny#2'" in said(ran, fork=True)
    study_of(ran.parent, items=edited | {"search": 12})
    assert "Begins study 'tiny#3'" in said(ran, fork=True)
    assert names(ran) == ["tiny", "tiny#2", "tiny#3"]


def test_a_fork_after_an_edit_was_undone_takes_a_free_name(ran: Path):
    """The name after the study that is gone on with belongs to one that has trials."""
    for search in (14, 16, 12):
        study_of(ran.parent, items={"search": search, "select": 8, "holdout": 16})
        run_study(ran, SILENT, RunOptions(fork=True))
    with open_study(check_study(ran)) as study:
        assert study.study_name == "tiny#3"
        second = optuna.load_study(study_name="tiny#2", storage=study._storage)  # pyright: ignore
        assert len(second.trials) == 14


def test_a_chain_that_was_stored_before_is_followed(ran: Path):
    study_of(ran.parent, weight=3.0)
    run_study(ran, SILENT)
    checked = check_study(ran)
    with open_study(checked) as second:
        storage = second._storage  # pyright: ignore
        first = optuna.load_study(study_name="tiny", storage=storage)
        first.set_user_attr("current", None)
        first.set_user_attr("next", "tiny#2")
    with open_study(checked) as study:
        assert study.study_name == "tiny#2"


def test_a_study_that_never_began_may_have_another_goal(tmp_path: Path):
    path = study_of(tmp_path)
    with open_study(check_study(path)) as study:
        assert study.study_name == "tiny"
    front = SEARCH | {"goal": "pareto", "trials": 4}
    write_study(tmp_path, study_dict(objectives=BOTH, search=front))
    run_study(path, SILENT)
    with open_study(check_study(path)) as study:
        assert {len(trial.values) for trial in study.trials} == {2}


def test_points_outside_of_the_new_ranges_are_left_out(ran: Path):
    recipe = study_dict()["recipe"]
    recipe["models"][0]["parameters"]["weight"] = {"range": [0.45, 0.55]}
    study_of(ran.parent, recipe=recipe)
    run_study(ran, SILENT, RunOptions(fork=True))
    with open_study(check_study(ran)) as study:
        assert {t.state.name for t in study.trials} == {"COMPLETE"}
        assert all(0.45 <= t.params["a.weight"] <= 0.55 for t in study.trials)


def test_a_successor_that_was_left_half_made_is_made_anew(ran: Path):
    with open_study(check_study(ran)) as study:
        storage = study._storage  # pyright: ignore
        half = optuna.create_study(storage=storage, study_name="tiny#2", direction="maximize")
        half.ask()
    study_of(ran.parent, weight=3.0)
    run_study(ran, SILENT)
    with open_study(check_study(ran)) as study:
        assert len(study.trials) == 14


@pytest.mark.parametrize(
    "slices", [{"origin": "merge", "depth": [2, 3]}, {"origin": ["a", "merge"]}]
)
def test_weights_first_then_layers(ran: Path, slices: dict):
    """A study that now searches the order of layers too begins with the best models before it."""
    with open_study(check_study(ran)) as study:
        best = sorted(study.trials, key=lambda t: (-t.value, t.number))
    study_of(ran.parent, recipe=study_dict()["recipe"] | {"slices": slices})
    run_study(ran, SILENT, RunOptions(fork=True))
    with open_study(check_study(ran)) as study:
        assert study.trials[0].user_attrs["recipe"] == best[0].user_attrs["recipe"]
        assert study.trials[0].value == best[0].value
        assert any("slices" in t.user_attrs["recipe"] for t in study.trials)
