"""A study goes on under another question: what is comparable is kept, the rest is tried again."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import optuna
import pytest
from headers import checkpoint
from optuna.trial import create_trial
from rich.console import Console
from tiny_study import study_dict, write_study

from evals.objective import objective
from merge_core.recipe import to_dict
from search.bench import check_study
from search.chain import go_on_with, successor
from search.commands import RunOptions, check_file, compare_study, run_study
from search.errors import ProtocolError
from search.finals import looks
from search.forking import asked_anew, forked, with_starts
from search.genes import distribution
from search.holes import build_space
from search.known import fingerprint
from search.record import (
    best_of,
    card_from_dict,
    load,
    readings_from_dict,
    samplers_of,
    stored_practice,
)
from search.space import SearchSpace, Values
from search.study import open_study

SILENT = Console(file=StringIO())
BOTH = [{"task": "tiny_choice"}, {"task": "tiny_shots"}]
LAYER = {
    "self_attn.o_proj.weight": (4, 4),
    "mlp.up_proj.weight": (8, 4),
    "mlp.down_proj.weight": (4, 8),
}
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


def test_what_a_fork_tries_first_stays_under_other_weights(ran: Path):
    items = {"search": 14, "select": 8, "holdout": 16}
    study_of(ran.parent, items=items)
    run_study(ran, SILENT, RunOptions(fork=True, trials=3))
    study_of(ran.parent, weight=3.0, items=items)
    run_study(ran, told := Console(file=StringIO()), RunOptions(trials=6))
    assert "first tries" not in told.file.getvalue()  # pyright: ignore
    with open_study(check_study(ran)) as study:
        assert study.study_name == "tiny#3"
        prior = study.user_attrs["prior"]
        assert [trial.params for trial in study.trials] == prior[:6]


def test_points_outside_of_the_new_ranges_are_left_out(ran: Path):
    recipe = study_dict()["recipe"]
    recipe["models"][0]["parameters"]["weight"] = {"range": [0.45, 0.55]}
    study_of(ran.parent, recipe=recipe)
    run_study(ran, SILENT, RunOptions(fork=True))
    with open_study(check_study(ran)) as study:
        assert {t.state.name for t in study.trials} == {"COMPLETE"}
        assert all(0.45 <= t.params["a.weight"] <= 0.55 for t in study.trials)


def test_a_fork_that_takes_over_nothing_says_so(ran: Path):
    recipe = study_dict()["recipe"]
    for model in recipe["models"]:
        model["parameters"]["weight"] = {"range": [1.6, 1.7]}
    study_of(ran.parent, recipe=recipe)
    told = "Warning: Begins study 'tiny#2' with nothing of 'tiny': none of its candidates is in"
    assert told in said(ran, fork=True)


def stopping_at(step: str) -> Callable[..., None]:
    """What runs a study until it comes to a step of `search.searching`."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    def run(study: Path, monkeypatch: pytest.MonkeyPatch, **options: bool) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(f"search.searching.{step}", interrupt)
            with pytest.raises(KeyboardInterrupt):
                run_study(study, SILENT, RunOptions(**options))

    return run


broken_off = stopping_at("_score_baselines")  # the first parent would be scored
interrupted = stopping_at("with_starts")  # the parents are scored, and no trial has begun


@pytest.mark.parametrize("until", [broken_off, interrupted])
def test_a_fork_that_is_corrected_before_any_trial_keeps_what_it_took_over(
    until: Any, ran: Path, monkeypatch: pytest.MonkeyPatch
):
    with open_study(check_study(ran)) as study:
        best = min(study.trials, key=lambda t: (-t.value, t.number))
    recipe = study_dict()["recipe"]
    for model in recipe["models"]:
        model["parameters"]["weight"] = {"range": [1.6, 1.7]}  # no candidate is in it
    study_of(ran.parent, recipe=recipe)
    until(ran, monkeypatch, fork=True)
    study_of(ran.parent, items={"search": 14, "select": 8, "holdout": 16})
    told = (
        "'tiny#2' under the changed conditions, as it has no trials; it first tries 10 candidates"
    )
    assert told in said(ran, fork=True)
    assert names(ran) == ["tiny", "tiny#2"]
    with open_study(check_study(ran)) as study:
        assert study.trials[0].params == best.params
        for data in study.user_attrs["baselines"].values():
            assert {score.n for score in card_from_dict(data).scores} == {14}


def test_a_fork_of_a_fork_goes_on_with_what_the_first_one_did_not_try():
    space = space_of(None)
    points: list[Values] = [{"a.weight": a, "b.weight": b} for a, b in WEIGHTS]
    first = told_study(space, points)
    second = forked(first, space, 1, {})
    layers = space_of({"origin": ["a", "merge"]})
    keys = [trial.user_attrs["fingerprint"] for trial in first.trials]
    assert taken(second, layers) == keys
    second.set_user_attr("before", None)  # as studies were stored before
    assert taken(second, space) == keys


def test_points_of_another_space_are_not_tried():
    space = space_of(None)
    study = told_study(space, [])
    inside, outside = ({"a.weight": at, "b.weight": 0.3} for at in (0.7, 70.0))
    study.set_user_attr("prior", [outside, inside])
    points = with_starts(study, space, 100).points
    assert points[0] == inside
    assert outside not in points


def test_a_fork_of_failures_says_that_none_was_scored(ran: Path):
    with open_study(check_study(ran)) as study:
        failed = [create_trial(state=optuna.trial.TrialState.FAIL)]
        storage, stored = study._storage, study.user_attrs  # pyright: ignore
        optuna.delete_study(study_name="tiny", storage=storage)
        again = optuna.create_study(storage=storage, study_name="tiny", direction="maximize")
        again.add_trials(failed)
        again.set_user_attr("protocol", stored["protocol"])
    study_of(ran.parent, items={"search": 14, "select": 8, "holdout": 16})
    assert "nothing of 'tiny': none of its candidates was scored on all" in said(ran, fork=True)


@pytest.mark.parametrize("until", [broken_off, interrupted])
def test_a_study_without_trials_may_be_asked_anything(
    until: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = study_of(tmp_path)
    until(path, monkeypatch)
    study_of(tmp_path, weight=3.0, items={"search": 14, "select": 8, "holdout": 16})
    check_file(path, SILENT)
    assert "Goes on with study 'tiny' under the changed conditions" in said(path)
    assert names(path) == ["tiny"]
    with open_study(check_study(path)) as study:
        assert [one.weight for one in readings_from_dict(study)] == [1.0, 3.0]
        assert study.user_attrs["protocol"]["items"]["search"] == 14
        for data in study.user_attrs["baselines"].values():
            assert {score.n for score in card_from_dict(data).scores} == {14}
        assert len(study.trials) == 14


def test_nothing_of_a_broken_off_run_is_read_under_another_question():
    space = space_of(None)
    study = told_study(space, [])
    practice = {"sequences": 1, "gates": {}}
    stale = {"practice": practice, "figures": {"a": {"depth": 2}}, "samplers": [[0, "tpe", "tpe"]]}
    stale |= {"norms": {"a": [0, 1]}, "readings": [1], "select": {"key": {}}, "starts": 3}
    for name, value in (stale | {"baselines": {"a": {}}, "prior": []}).items():
        study.set_user_attr(name, value)
    asked_anew(study, space, {"seed": 1})
    assert study.user_attrs["protocol"] == {"seed": 1}
    assert stored_practice(study) is None
    assert samplers_of(study) == readings_from_dict(study) == []
    assert not any(study.user_attrs[name] for name in (*stale, "baselines"))
    made = with_starts(study, space, 100).points
    assert len(made) == study.user_attrs["starts"] > 3


def test_a_question_that_baselines_answer_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = study_of(tmp_path)
    interrupted(path, monkeypatch)
    write_study(tmp_path, study_dict(objectives=BOTH[:1], search=SEARCH))
    monkeypatch.setattr("search.searching._score_baselines", lambda *_: pytest.fail("a model"))
    assert "'tiny#2': 0 trials of 'tiny'" in said(path)


def test_a_study_without_trials_gets_a_successor_for_another_number_of_values(
    ran: Path, monkeypatch: pytest.MonkeyPatch
):
    study_of(ran.parent, items={"search": 14, "select": 8, "holdout": 16})
    broken_off(ran, monkeypatch, fork=True)
    front = SEARCH | {"goal": "pareto", "trials": 4}
    items = {"search": 12, "select": 8, "holdout": 16}
    write_study(ran.parent, study_dict(objectives=BOTH, search=front, items=items))
    assert "it first tries 10 candidates" in said(ran)
    with open_study(check_study(ran)) as study:
        assert study.study_name == "tiny#3"
        assert {len(trial.values) for trial in study.trials} == {2}


def test_readings_of_the_holdout_are_counted_over_all_studies_that_have_it(ran: Path):
    def read(trial: int, day: int) -> list[int]:
        """Note a reading that has just been; return all that the study then knows of."""
        with open_study(check_study(ran)) as study:
            entry = {"time": f"2026-01-{day:02d}", "trial": trial, "recipe": {}}
            study.set_user_attr("looks", [*study.user_attrs.get("looks", []), entry])
            return [look.trial for look in looks(study)]

    assert read(1, day=1) == [1]
    study_of(ran.parent, weight=3.0)  # the same trials: it has the reading itself
    run_study(ran, SILENT)
    assert read(2, day=2) == [1, 2]
    recipe = study_dict()["recipe"]
    recipe["models"][0]["parameters"]["weight"] = {"range": [0.45, 0.55]}
    study_of(ran.parent, recipe=recipe)  # other candidates on the same items
    run_study(ran, SILENT, RunOptions(fork=True))
    assert read(3, day=3) == [1, 2, 3]
    study_of(ran.parent, items={"search": 14, "select": 8, "holdout": 16})
    run_study(ran, SILENT, RunOptions(fork=True))
    assert read(4, day=4) == [4]
    study_of(ran.parent)  # back to one of before
    run_study(ran, SILENT, RunOptions(fork=True))
    assert read(5, day=5) == [1, 2, 3, 5]


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
    assert "which first tries the best 10 candidates of 'tiny'" in said(ran, fork=True)
    with open_study(check_study(ran)) as study:
        assert study.trials[0].user_attrs["recipe"] == best[0].user_attrs["recipe"]
        assert study.trials[0].value == best[0].value
        assert any("slices" in t.user_attrs["recipe"] for t in study.trials)


WEIGHTS = [(0.7, 0.2), (0.3, 0.9), (0.5, 0.5), (1.0, 0.0)]  # the best first
SCALED: dict[str, dict[str, Any]] = {
    "repeated": {"origin": ["a", "merge"], "depth": [9, 12]},
    "blocks": {"origin": ["merge", "a"], "per": 3, "depth": [8, 12], "ends": ["layers", "merge"]},
    "cuts": {"cuts": 2},
    "walk": {"walk": 1, "of": ["merge", "a"]},
    "every jump": {"walk": 1, "of": ["a", "b", "merge"], "scale": "layers"},
}


def space_of(slices: dict[str, Any] | None, encoding: str = "auto") -> SearchSpace:
    parents = {name: checkpoint(name, 10, layer=LAYER) for name in ("base", "a", "b")}
    recipe, mistakes = study_dict()["recipe"], list[str]()
    if slices is not None:
        recipe |= {"slices": slices | {"encoding": encoding}}
    space = build_space(recipe, parents, mistakes, parents)
    assert not mistakes
    return space


def told_study(space: SearchSpace, points: list[Values]) -> optuna.Study:
    """A study of these trials, each worse than the one before."""
    study = optuna.create_study(direction="maximize", study_name="told")
    for at, point in enumerate(points):
        recipe = space.decode(point)
        told = {"recipe": to_dict(recipe), "fingerprint": fingerprint(recipe, space.depths)}
        kinds = {d.name: distribution(d) for d in space.active(point)}
        params = {name: point[name] for name in kinds}
        study.add_trial(
            create_trial(value=-at, params=params, distributions=kinds, user_attrs=told)
        )
    return study


def taken(study: optuna.Study, space: SearchSpace) -> list[str]:
    """The models that a fork tries first."""
    prior = forked(study, space, 1, {}).user_attrs["prior"]
    return [fingerprint(space.decode(point), space.depths) for point in prior]


@pytest.mark.parametrize("encoding", ["choices", "numbers"])
@pytest.mark.parametrize("form", SCALED)
def test_weights_first_then_layers_with_scales(form: str, encoding: str):
    """The scales, which no weight had, are 1."""
    study = told_study(space_of(None), [{"a.weight": a, "b.weight": b} for a, b in WEIGHTS])
    space = space_of({"scale": True} | SCALED[form], encoding)
    assert taken(study, space) == [trial.user_attrs["fingerprint"] for trial in study.trials]


@pytest.mark.parametrize("encoding", ["choices", "numbers"])
def test_layers_first_then_scales(encoding: str):
    """Orders of layers go on too, those with jumps as well."""
    form = {"cuts": 2, "of": ["merge", "a"]}
    before = space_of(form, encoding)
    study = told_study(before, list(before.points))
    assert any(len(before.decode(point).slices) > 1 for point in before.points)
    keys = [trial.user_attrs["fingerprint"] for trial in study.trials]
    assert taken(study, space_of(form | {"scale": True}, encoding)) == keys[:10]


def test_one_model_is_taken_over_once_however_it_is_written():
    space = space_of({"origin": "a", "depth": [7, 10]})
    points = [{"drops": 2, "drop1": one, "drop2": two} for one, two in ((3, 5), (5, 3), (4, 5))]
    weights = {"a.weight": 0.5, "b.weight": 0.5}
    study = told_study(space, [weights | point for point in points])
    keys = [trial.user_attrs["fingerprint"] for trial in study.trials]
    assert keys[0] == keys[1]
    assert taken(study, space) == [keys[0], keys[2]]


def test_what_was_taken_over_is_not_tried_again_in_other_words():
    space = space_of({"origin": ["merge", "a"], "depth": [8, 10]})
    copied: Values = {f"origin{at:02d}": "a" for at in range(10)} | {"drops": 0}
    parent: Values = copied | {"a.weight": 0.25, "b.weight": 0.25}
    key = fingerprint(space.decode(parent), space.depths)
    written = [p for p in space.points if fingerprint(space.decode(p), space.depths) == key]
    assert written
    assert written != [parent]
    after = forked(told_study(space, [parent]), space, 1, {})
    points = with_starts(after, space, 1_000).points
    keys = [fingerprint(space.decode(point), space.depths) for point in points]
    assert keys[0] == key
    assert len(set(keys)) == len(keys) == len(space.points)


def test_auto_writes_layers_as_any_study_of_the_name_does(tmp_path: Path):
    """One of them may be gone back to, whatever the budget is now."""
    recipe = study_dict()["recipe"] | {"slices": {"origin": "merge", "depth": [2, 4]}}
    study = study_dict(recipe=recipe, search={"sampler": "auto", "trials": 8})
    path = write_study(tmp_path, study)
    few, many = check_study(path), check_study(path, 600)
    assert few.space.describe() != many.space.describe()
    with open_study(few) as opened:
        stated = json.loads(json.dumps(few.space.describe()))
        opened.set_user_attr("protocol", {"space": stated})
        second = successor(opened, 1)
        second.set_user_attr("protocol", {"space": []})
        go_on_with(second)
    assert check_study(path, 600).space.describe() == few.space.describe()
