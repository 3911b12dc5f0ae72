"""Floors, fronts and figures without items, from the study file to the claim."""

from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import optuna
import pytest
import yaml
from optuna.trial import FrozenTrial, create_trial
from rich.console import Console
from tiny_study import study_dict

from evals.floors import KEPT
from evals.harness import Benchmark
from evals.items import Role
from evals.objective import Reading
from evals.scorecard import Score, Scorecard
from search.bench import check_study
from search.card import model_card
from search.commands import compare_study, export_study, run_study
from search.config import ObjectiveConfig
from search.errors import NothingFound, ProtocolError, StudyError
from search.finals import chosen, front_of
from search.functions import load_scorer
from search.goals import Aim, Goals, Result, front, missed_text, spread, violation
from search.record import (
    baseline_results,
    by_fingerprint,
    card_from_dict,
    finished,
    load,
    rank_of,
    recompute,
)
from search.study import open_study


def aim(better: bool = True, **config: Any) -> Aim:
    """A benchmark whose figure is that of a card's only item."""

    def pooled(found: Mapping[Role, Any]) -> float:
        return float(np.mean([value for values in found.values() for value in values]))

    stub = SimpleNamespace(metric="acc", higher_is_better=better, pooled=pooled)
    return Aim(ObjectiveConfig(task="t", **config), cast("Benchmark", stub), None)


def result(*values: float, **figures: float) -> Result:
    roles = (Role.SEARCH, Role.SELECT)
    cards = tuple(
        Scorecard((Score("t", "acc", value, None, 1),), {"t": {"acc": (value,)}}, 0.0, role)
        for value, role in zip(values, roles, strict=False)
    )
    return Result(cards, figures)


PARENTS = (result(0.5), result(0.4))


@pytest.mark.parametrize(
    ("floor", "limit", "better"),
    [
        ("parents", 0.5, True),
        ({"parents": 0.02}, 0.48, True),
        (0.3, 0.3, True),
        ("parents", 0.4, False),
        ({"parents": 0.02}, 0.42, False),
    ],
)
def test_a_floor_is_a_limit_of_the_metric_itself(floor: Any, limit: float, better: bool):
    one = aim(better, floor=floor)
    found = one.limit(PARENTS)
    assert found == pytest.approx(limit)
    assert one.missed(result(limit), limit) == 0
    worse = limit - 0.1 if better else limit + 0.1
    assert one.missed(result(worse), limit) == pytest.approx(0.1)


def test_a_floor_that_is_just_met_is_kept_whatever_the_last_digit():
    one = aim(floor={"parents": 0.02})
    limit = one.limit(PARENTS)
    assert limit is not None
    assert one.missed(result(0.48), limit) == 0.0


def test_cards_of_several_roles_are_pooled():
    one = aim(floor="parents")
    assert one.figure(result(0.2, 0.4)) == pytest.approx(0.3)


def test_large_figures_are_missed_by_a_share():
    one = Aim(ObjectiveConfig(model="parameters", at_most=1000))
    assert one.missed(result(parameters=1500), 1000) == 0.5
    assert one.missed(result(parameters=900), 1000) < 0


def test_every_parent_is_asked_for_the_best():
    goals = Goals((aim(floor="parents"),), pareto=False)
    assert goals.missed(result(0.45), PARENTS) == {"t": pytest.approx(0.05)}
    assert goals.by_parents
    assert violation({"a": -0.5, "b": 0.25, "c": 0.5}) == 0.75
    assert missed_text({"a": -0.5, "b": 0.25}) == "b by 0.2500"


def test_the_front_is_optunas():
    generator = np.random.default_rng(0)
    points = generator.integers(0, 6, (60, 3)).astype(float)
    study = optuna.create_study(directions=["maximize"] * 3)
    study.add_trials([create_trial(values=list(point)) for point in points])
    expected = {tuple(trial.values) for trial in study.best_trials}
    found = front(points.tolist(), [0.0] * 60)
    assert {tuple(points[at]) for at in found} == expected
    assert len(found) == len(expected)  # equals stand there once


def test_who_keeps_to_the_limits_beats_who_does_not():
    values = [(9.0, 9.0), (1.0, 2.0), (2.0, 1.0), (0.0, 0.0)]
    assert front(values, [0.1, 0.0, 0.0, 0.0]) == [1, 2]
    assert front(values, [0.3, 0.2, 0.2, 0.1]) == [3]
    assert front([], []) == []


def test_a_long_front_is_spread_from_the_best_mean_to_the_far_ends():
    values = [(x, 10.0 - x) for x in range(11)]
    found = spread(values, [-abs(x - 5) for x in range(11)], 3)
    assert found == [5, 0, 10]
    assert sorted(spread(values, [0.0] * 11, 99)) == list(range(11))


RECIPE = {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}]}
FLOORS = [
    {"task": "tiny_choice", "metric": "acc", "floor": {"parents": 0.05}},
    {"task": "tiny_text", "floor": 1.0},
    {"model": "depth", "at_most": 3},
]


@pytest.fixture(scope="module")
def floors(study_folder: Path) -> Path:
    """A study that was run whose second floor nothing can reach."""
    return ran(study_folder, "floors", objectives=FLOORS)


def test_what_is_missed_is_told_as_constraints(floors: Path):
    study = opened(floors)
    parents = [baseline_results(study)[name] for name in ("base", "a", "b")]
    best = max(figure(one.cards[0], 0) for one in parents)
    for trial in study.get_trials():
        card = card_of(trial)
        choice, text, depth = trial.user_attrs["constraints"]
        assert choice == pytest.approx(best - 0.05 - figure(card, 0))
        assert text == pytest.approx(figure(card, 1) - 1.0, rel=1e-5)
        assert depth == 0
        assert load(trial).missed == {"tiny_choice": choice, "tiny_text": text, "depth": depth}


def test_where_nothing_is_feasible_the_least_missed_wins_and_it_is_said(floors: Path):
    trials = opened(floors).get_trials()
    assert all(rank_of(trial)[0] > 0 for trial in trials)
    shown = floors.with_suffix(".txt").read_text()
    assert "No finalist keeps to every limit. The winner misses the least: tiny_" in shown
    assert "misses tiny_text by" in shown
    first = min(trials, key=rank_of)
    assert f"(trial {first.number}; it misses" in shown.split("Finalists")[0].splitlines()[-1]


def test_the_claim_says_of_each_limit_whether_it_is_kept(floors: Path):
    out = StringIO()
    claim = compare_study(floors, Console(file=out, width=200))
    rooms = {room.objective: room for room in claim.rooms}
    assert list(rooms) == ["tiny_choice", "tiny_text", "depth"]
    assert rooms["tiny_choice"].against in ("base", "a", "b")
    assert rooms["tiny_choice"].low <= rooms["tiny_choice"].room <= rooms["tiny_choice"].high
    assert rooms["tiny_text"].verdict == "broken"
    assert (rooms["depth"].verdict, rooms["depth"].low) == (KEPT, None)
    assert claim.figures == {"depth": dict.fromkeys(claim.figures["depth"], 3)}
    for text in ("Limits: what the winner has above each", "broken", "depth (a figure without"):
        assert text in out.getvalue()


def test_only_finalists_are_compared_though_parents_were_scored_on_the_same_items(floors: Path):
    study = opened(floors)
    finalists = study.user_attrs["finalists"]
    assert len(finalists) == 3
    assert study.user_attrs["winner"] in finalists
    parents = [t.number for t in study.get_trials() if t.user_attrs.get("reused") in ("a", "b")]
    known = study.user_attrs["select"]
    assert all(study.get_trials()[n].user_attrs["fingerprint"] in known for n in parents)
    others = [number for number in range(6) if number not in finalists]
    assert set(others) & set(parents)
    listed = ", ".join(map(str, finalists))
    for number in others:
        message = f"trial {number} is no finalist of this study; finalists are {listed}$"
        with pytest.raises(NothingFound, match=message):
            compare_study(floors, silent(), trial=number)
    looks = opened(floors).user_attrs.get("looks", [])
    assert not {look["trial"] for look in looks} & set(others)


def test_finalists_that_are_known_models_are_listed_too():
    """Also in a study that did not keep who they are."""
    study = optuna.create_study()
    for number, more in enumerate(({}, {"reused": "a"}, {}, {"reused": 1})):
        key = f"model {number % 3 if number < 3 else 1}"
        attributes = {"fingerprint": key, "recipe": RECIPE, **more}
        study.add_trial(create_trial(value=0.5, user_attrs=attributes))
    study.set_user_attr("winner", 2)
    study.set_user_attr("select", {"model 1": {}, "model 2": {}})
    assert chosen(study, 1).number == 1
    with pytest.raises(
        NothingFound, match=r"trial 3 is no finalist of this study; fin.* are 1, 2$"
    ):
        chosen(study, 3)
    study.set_user_attr("finalists", [2])
    with pytest.raises(NothingFound, match=r"trial 1 is no finalist of this study; fin.* are 2$"):
        chosen(study, 1)


def test_a_card_says_which_limits_are_kept(floors: Path):
    checked, study = check_study(floors), opened(floors)
    best, found = chosen(study, None), compare_study(floors, silent())
    before, after = model_card(checked, best, None), model_card(checked, best, found)
    choice = "missed" if best.missed["tiny_choice"] > 0 else "kept"
    assert "## Limits, on the items of the search alone\n" in before
    assert f"\n- tiny_choice: {choice}\n- tiny_text: missed\n- depth: kept\n\n## Fig" in before
    assert "\n- depth: winner 3\n" in before
    room = {room.objective: room for room in found.rooms}["tiny_choice"]
    assert "## Limits\n" in after
    assert f"tiny_choice: {room.verdict}; it has {room.figure:.6g}, the limit is" in after
    assert f"(of {room.against}), room {room.room:+.4g}, 95% interval [{room.low:+.4g}, " in after
    assert "\n- tiny_text: broken; it has " in after
    assert "\n- depth: kept; it has 3, the limit is 3\n" in after
    assert "\n- depth: winner 3, base 3" in after


def test_a_card_says_which_member_of_a_front_it_is(pareto: Path):
    checked, study = check_study(pareto), opened(pareto)
    best, members = chosen(study, None), front_of(study)
    assert members[0] == best.number
    assert set(members) == set(dict(study.user_attrs["front"]))
    size = f"a Pareto front of {len(members)} over tiny_choice, my.txt, spread, depth"
    for number, said in (
        (members[0], f"Of {size}, it is the member with the best weighted mean."),
        (99, f"It was chosen by hand, and is no member of {size}."),
    ):
        assert said in model_card(checked, replace(best, number=number), None, members)
    other = model_card(checked, best, None, (99, best.number))
    assert "It is a member of a Pareto front of 2 over tiny_choice, my.txt, sp" in other
    assert "Pareto" not in model_card(checked, best, None)


def test_feasible_trials_come_first_everywhere(study_folder: Path):
    choice = {"task": "tiny_choice", "signal": "probability"}
    text = {"task": "tiny_text", "weight": 1e-6}
    free = opened(ran(study_folder, "free", objectives=[choice, text]))
    figures = {t.number: figure(card_of(t), 1) for t in free.get_trials()}
    best = figures[free.user_attrs["winner"]]
    below = max(one for one in figures.values() if one < best)
    limit = (best + below) / 2  # costs the winner its place
    path = ran(study_folder, "kept", objectives=[choice, text | {"floor": limit}])
    study = opened(path)
    kept = {trial.number for trial in study.get_trials() if rank_of(trial)[0] == 0}
    assert kept == {number for number, one in figures.items() if one <= limit}
    ranked = sorted(study.get_trials(), key=rank_of)
    assert {trial.number for trial in ranked[:3]} == {t.number for t in finalists_of(study)}
    assert kept == {trial.number for trial in ranked[: len(kept)]}
    assert study.user_attrs["winner"] in kept
    shown = path.with_suffix(".txt").read_text()
    assert "No finalist keeps" not in shown
    last = shown.split("Finalists")[0].splitlines()[-1]
    assert any(f"(trial {number}); " in last for number in kept)


SCORER = """
def spread(model, tokenizer):
    assert not model.training and tokenizer is not None
    return [float(p.std()) for name, p in model.named_parameters() if "mlp" in name]

def picky(model, tokenizer):
    widths = spread(model, tokenizer)
    if sum(widths) / len(widths) > {most}:
        raise ValueError("too wide")
    return 1

def nothing(model, tokenizer):
    return float("nan")
"""
TAKES = """
def one(model): 1 / 0
def two(model, tokenizer): 1 / 0
def three(model, tokenizer, batch): 1 / 0
def more(model, tokenizer, batch=8): 1 / 0
def any_(*given): 1 / 0
def named(*, model, tokenizer): 1 / 0
class Scorer:
    def __new__(cls, model, tokenizer): 1 / 0
max = max  # has no signature
"""
FRONT = [
    {"task": "tiny_choice", "metric": "acc"},
    {"text": "./my.txt", "chars": 100, "weight": 0.5},
    {"function": "./scorer.py:spread", "direction": "minimize"},
    {"model": "depth"},
    {"model": "parameters", "at_most": 10**9},
]


@pytest.fixture(scope="module")
def pareto(study_folder: Path) -> Path:
    """A study of four objectives and a constraint that was run."""
    lines = [f"The miller of {n} sacks pays {n * n} coins at noon." for n in range(120)]
    (study_folder / "my.txt").write_text("\n\n".join(lines))
    (study_folder / "scorer.py").write_text(SCORER.format(most=0))
    return ran(study_folder, "pareto", objectives=FRONT, search={"goal": "pareto", "trials": 8})


def test_every_objective_is_a_value_and_the_mean_is_kept(pareto: Path):
    study = opened(pareto)
    assert len(study.directions) == 4
    for trial in study.get_trials():
        record = load(trial)
        card = card_of(trial)
        choice, text, spread_, depth = trial.values
        assert record.values == (choice, text, spread_, depth)
        assert depth == -3
        assert spread_ == -record.figures["spread"] < 0
        assert text == pytest.approx(-figure(card, 1) * np.log(2), rel=0.05)  # nats, by piece
        assert record.value == pytest.approx((choice + 0.5 * text + spread_) / 2.5)
        assert record.missed["parameters"] < 0
        assert record.figures["parameters"] > 1000


def test_a_front_comes_again_from_what_is_stored(pareto: Path):
    study = opened(pareto)
    trials = {trial.number: load(trial) for trial in finished(study)}
    again = recompute(study)
    assert list(again) == list(trials)
    for number, record in trials.items():
        assert again[number].values == pytest.approx(record.values)
        assert again[number].value == pytest.approx(record.value)
    alone = recompute(study, {"spread": 1.0, "tiny_choice": 1.0}, signal=False)
    for number, record in trials.items():
        assert record.scorecard is not None
        spread_ = -record.figures["spread"]
        accuracy = figure(record.scorecard, 0)
        assert alone[number].value == pytest.approx((accuracy + spread_) / 2)
        assert alone[number].values == pytest.approx((accuracy, *(record.values or ())[1:]))
        assert alone[number].missed == record.missed


def test_finalists_are_the_front_and_its_best_mean_wins(pareto: Path):
    study = opened(pareto)
    trials = list(by_fingerprint(study).values())
    known = {trials[at].number for at in front([t.values for t in trials], [0.0] * len(trials))}
    finalists = {trial.number for trial in finalists_of(study)}
    assert finalists <= known
    assert len(finalists) == min(3, len(known))
    members = dict(study.user_attrs["front"])
    assert study.user_attrs["winner"] in members
    assert set(members) <= finalists
    assert all(len(values) == 4 for values in members.values())


def test_a_front_is_printed_as_people_know_its_figures(pareto: Path):
    """What is minimised is stored with its sign turned, and read as it is."""
    shown = pareto.with_suffix(".txt").read_text()
    table = shown.partition("Pareto front on search + select items")[2].splitlines()
    names, better = (" ".join(line.split()) for line in table[2:4])
    assert names == "tiny_choice my.txt spread depth weighted mean"
    assert better == f"trial{' higher is better' + 3 * ' lower is better' + ' higher is better'}"
    members = dict(opened(pareto).user_attrs["front"])
    for row in table[5 : 5 + len(members)]:
        number, choice, *lower, _ = (float(cell) for cell in row.split())
        expected = members[int(number)]
        assert [choice, *(-one for one in lower)] == pytest.approx(expected, rel=1e-4)
        assert lower[-1] == 3


@pytest.mark.parametrize("better", [True, False])
def test_a_signal_rises_whatever_its_metric_does(better: bool):
    plain = Reading("t", "acc", None, 1.0, {}, {}, {})
    assert aim(better).turned is replace(aim(better), reading=plain).turned is not better
    assert not replace(aim(better), reading=replace(plain, signal="probability")).turned
    assert Aim(ObjectiveConfig(model="depth")).turned


def test_other_members_of_the_front_are_compared_and_exported(pareto: Path, tmp_path: Path):
    study = opened(pareto)
    best = study.user_attrs["winner"]
    other = next(t.number for t in finalists_of(study) if t.number != best)
    first = compare_study(pareto, silent())
    second = compare_study(pareto, silent(), trial=other)
    assert (first.trial, second.trial) == (best, other)
    assert len(compare_study(pareto, silent()).looks) == 2  # each was read once
    assert set(second.figures) == {"spread", "depth", "parameters"}
    assert second.figures["spread"]["winner"] == load(study.get_trials()[other]).figures["spread"]
    export_study(pareto, tmp_path / "out", silent(), other)
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert load(study.get_trials()[other]).recipe.method in card
    assert f"- spread: winner {second.figures['spread']['winner']:.6g}, base " in card
    assert f"- parameters: kept; it has {second.figures['parameters']['winner']:.6g}, the" in card
    assert "chosen by hand" in card
    with pytest.raises(NothingFound, match="trial 99 is no finalist of this study; finalists are"):
        compare_study(pareto, silent(), trial=99)


def test_running_again_changes_nothing(pareto: Path):
    before = opened(pareto)
    run_study(pareto, silent(), quiet=True)
    after = opened(pareto)
    assert [t.values for t in after.get_trials()] == [t.values for t in before.get_trials()]
    assert after.user_attrs["front"] == before.user_attrs["front"]


def test_a_study_of_another_goal_is_refused_with_the_way_out(pareto: Path):
    config = yaml.safe_load(pareto.read_text())
    config["search"]["goal"] = "mean"
    config["objectives"] = config["objectives"][:2]
    path = pareto.with_name("changed.yaml")
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ProtocolError) as error:
        run_study(path, silent())
    assert 'goal: was "pareto", is not given' in error.value.mistakes
    assert "run it with --fork: a new study with the same trials" in str(error.value)


def test_a_changed_function_is_another_study(pareto: Path):
    scorer = pareto.with_name("scorer.py")
    before = scorer.read_text()
    scorer.write_text(before + "# changed\n")
    try:
        with pytest.raises(ProtocolError, match=r"functions\.spread: was"):
            run_study(pareto, silent())
    finally:
        scorer.write_text(before)


def test_a_function_that_fails_is_the_candidates_failure(study_folder: Path, pareto: Path):
    widths = [one.figures["spread"] for one in baseline_results(opened(pareto)).values()]
    (study_folder / "picky.py").write_text(SCORER.format(most=1.3 * max(widths)))
    objectives = [{"task": "tiny_choice"}, {"function": "./picky.py:picky"}]
    recipe = study_dict()["recipe"]
    recipe["models"][0]["parameters"]["weight"] = {"range": [0.0, 9.0]}
    path = ran(study_folder, "picky", objectives=objectives, recipe=recipe, search={"trials": 10})
    failures = [t.user_attrs["failure"] for t in opened(path).get_trials() if not t.values]
    assert "function 'picky' failed: ValueError: too wide" in failures


def test_a_function_that_gives_no_number_says_so(study_folder: Path, pareto: Path):
    del pareto  # has written the file
    objectives = [{"task": "tiny_choice"}, {"function": "./scorer.py:nothing"}]
    with pytest.raises(NothingFound, match="function 'nothing' gave nan; expected a finite number"):
        ran(study_folder, "nothing", objectives=objectives)


def test_what_is_wrong_with_files_is_said_before_anything_is_spent(study_folder: Path):
    (study_folder / "short.txt").write_text("One. \n\n Two.")
    (study_folder / "broken.py").write_text("1 / 0")
    (study_folder / "empty.py").write_text("")
    (study_folder / "takes.py").write_text(TAKES)
    (study_folder / "leaves.py").write_text("import sys\nsys.exit(3)")
    objectives = [
        {"task": "tiny_choice"},
        {"text": "./nowhere.txt"},
        {"text": "./short.txt"},
        {"function": "./nowhere.py:f"},
        {"function": "./broken.py:g"},
        {"function": "./empty.py:h"},
        {"function": "./leaves.py:i"},
        *({"function": f"./takes.py:{name}"} for name in ("one", "three", "named")),
    ]
    path = study_folder / "wrong.yaml"
    path.write_text(yaml.safe_dump(study_dict(objectives=objectives)))
    with pytest.raises(StudyError) as error:
        check_study(path)
    expected = [
        f"objectives[1]: text 'nowhere.txt': there is no file {study_folder / 'nowhere.txt'}",
        "objectives[2]: text 'short.txt': has 1 item, too few for search 16, select 8, "
        "holdout 16; lower them under 'items'; or give a longer text, or fewer chars than 1,000 "
        "to a piece",
        f"objectives[3].function: there is no file {study_folder / 'nowhere.py'}",
        f"objectives[4].function: {study_folder / 'broken.py'} fails: ZeroDivisionError: division "
        "by zero",
        f"objectives[5].function: {study_folder / 'empty.py'} has no function 'h'",
        f"objectives[6].function: {study_folder / 'leaves.py'} fails: SystemExit: 3",
        *(
            f"objectives[{at}].function: {study_folder / 'takes.py'}: '{name}' is called with the "
            f"model and its tokenizer, but takes {told}"
            for at, name, told in (
                (7, "one", "(model): too many positional arguments"),
                (8, "three", "(model, tokenizer, batch): missing a required argument: 'batch'"),
                (9, "named", "(*, model, tokenizer): too many positional arguments"),
            )
        ),
    ]
    assert list(error.value.mistakes) == expected


@pytest.mark.parametrize("function", ["two", "more", "any_", "Scorer", "max"])
def test_what_can_be_called_is_not_refused_and_not_called(study_folder: Path, function: str):
    (study_folder / "takes.py").write_text(TAKES)
    assert load_scorer(f"./takes.py:{function}", study_folder).name == function


@pytest.mark.parametrize(
    ("floor", "direction", "told"),
    [
        (1.5, None, "got 1.5"),
        ({"parents": 1.5}, None, "got 1.5"),
        (-0.1, "minimize", "got -0.1"),
        (1.0, None, None),
        (0.0, "minimize", None),
    ],
)
def test_a_floor_of_an_accuracy_is_a_share(
    study_folder: Path, floor: Any, direction: Any, told: str | None
):
    path = study_folder / "shares.yaml"
    objectives = [
        {"task": "tiny_text", "floor": 1.5},
        {"task": "tiny_choice", "floor": floor, "direction": direction},
    ]
    path.write_text(yaml.safe_dump(study_dict(objectives=objectives)))
    if told is None:
        check_study(path)
        return
    with pytest.raises(StudyError) as error:
        check_study(path)
    assert error.value.mistakes == (
        f"objectives[1].floor: acc is a share from 0 to 1 (0.6 is 60%), {told}",
    )


def silent() -> Console:
    return Console(file=StringIO())


def ran(folder: Path, name: str, **changes: Any) -> Path:
    """Run a study beside the others; what it printed lies next to it."""
    study = study_dict(name=name, **changes)
    study["search"] = study_dict()["search"] | changes.get("search", {})
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    with path.with_suffix(".txt").open("w") as out:
        assert run_study(path, Console(file=out, width=200))
    return path


def opened(path: Path) -> optuna.Study:
    """The study in its storage, for reading."""
    with open_study(check_study(path)) as study:
        copy = optuna.create_study(directions=study.directions)
        for key, value in study.user_attrs.items():
            copy.set_user_attr(key, value)
        copy.add_trials(study.get_trials())
        return copy


def finalists_of(study: optuna.Study) -> list[FrozenTrial]:
    keys = study.user_attrs["select"]
    return [trial for trial in study.get_trials() if trial.user_attrs["fingerprint"] in keys]


def card_of(trial: FrozenTrial) -> Scorecard:
    return card_from_dict(trial.user_attrs["scorecard"])


def figure(card: Scorecard, at: int) -> float:
    value = card.scores[at].value
    assert value is not None
    return value
