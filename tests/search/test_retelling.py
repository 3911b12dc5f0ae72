"""What stored items answer is answered by them: the trials of a twin that was asked so at once."""

from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import create_trial
from rich.console import Console
from tiny_study import study_dict, write_study

from evals.items import Role
from evals.objective import objective
from evals.signals import weighed_alike
from search.bench import Bench, build_bench, check_study, protocol
from search.commands import RunOptions, run_study
from search.errors import ProtocolError
from search.record import card_from_dict, card_to_dict, load, readings_from_dict
from search.retelling import retold
from search.study import open_study

CHOICE, EXACT = {"task": "tiny_choice"}, {"task": "tiny_exact", "metric": "acc"}
SEARCH = {"sampler": "random", "trials": 6, "finalists": 3}
FRONT = SEARCH | {"goal": "pareto"}


def study_of(folder: Path, *objectives: dict[str, Any], name: str = "tiny", **changes: Any) -> Path:
    stated = {"name": name, "objectives": list(objectives), "search": SEARCH} | changes
    return write_study(folder, study_dict(**stated))


def ran(path: Path, *, fork: bool = False) -> tuple[str, optuna.Study]:
    """What was printed, and the study in memory."""
    text = StringIO()
    run_study(path, Console(file=text, width=300), RunOptions(fork=fork))
    return text.getvalue(), kept(path)


def kept(path: Path, change: Callable[[Any], Any] = lambda trial: trial) -> optuna.Study:
    with open_study(check_study(path)) as study:
        memory = optuna.create_study(directions=study.directions, study_name=study.study_name)
        for key, value in study.user_attrs.items():
            memory.set_user_attr(key, value)
        memory.add_trials([change(trial) for trial in study.get_trials()])
    return memory


ANSWERED = {
    "fewer tasks": ([CHOICE], {}),
    "another metric": ([CHOICE, EXACT | {"metric": "perplexity"}], {}),
    "a metric without its signal": (
        [CHOICE | {"metric": "acc_norm", "signal": "metric"}, EXACT],
        {},
    ),
    "another direction": ([CHOICE, EXACT | {"metric": "acc", "direction": "minimize"}], {}),
    "a floor by the parents": ([CHOICE | {"floor": "parents"}, EXACT], {}),
    "a floor by a number": ([CHOICE, EXACT | {"floor": 0.1}], {}),
    "a front": ([CHOICE, EXACT], {"search": FRONT}),
    "a front with a floor and weights": (
        [CHOICE | {"floor": 0.3}, EXACT | {"weight": 2.0}],
        {"search": FRONT},
    ),
}


@pytest.mark.parametrize("case", ANSWERED)
def test_trials_are_those_of_a_study_that_was_asked_so_at_once(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    objectives, changes = ANSWERED[case]
    _, twin = ran(study_of(tmp_path, *objectives, name="twin", **changes))
    ran(study_of(tmp_path, CHOICE, EXACT))
    path = study_of(tmp_path, *objectives, **changes)
    with pytest.raises(ProtocolError, match="same trials, of which 6 are re-scored"):
        run_study(path, Console(file=StringIO()))
    monkeypatch.setattr("search.searching._score_baselines", lambda *_: pytest.fail("a model"))
    told, study = ran(path, fork=True)
    assert "study 'tiny#2': 6 trials of 'tiny', re-scored without a model" in told
    same(study, twin)
    assert study.user_attrs["winner"] == twin.user_attrs["winner"]


def test_a_front_becomes_a_mean_and_limits_go(tmp_path: Path):
    _, twin = ran(study_of(tmp_path, CHOICE, EXACT, name="twin"))
    ran(study_of(tmp_path, CHOICE, EXACT | {"floor": 0.1}, search=FRONT))
    _, study = ran(study_of(tmp_path, CHOICE, EXACT), fork=True)
    same(study, twin)
    assert all(not trial.constraints for trial in study.trials)


def same(study: optuna.Study, twin: optuna.Study) -> None:
    assert len(study.trials) == len(twin.trials)
    for one, other in zip(study.trials, twin.trials, strict=True):
        assert one.params == other.params
        assert one.values == pytest.approx(other.values, abs=1e-5)
        assert one.constraints == pytest.approx(other.constraints, abs=1e-5)
        ours, theirs = load(one), load(other)
        assert ours.value == pytest.approx(theirs.value, abs=1e-5)
        assert ours.missed == pytest.approx(theirs.missed, abs=1e-5)
        assert ours.scorecard
        assert theirs.scorecard
        for score, wanted in zip(ours.scorecard.scores, theirs.scorecard.scores, strict=True):
            assert (score.task, score.metric, score.n) == (wanted.task, wanted.metric, wanted.n)
            assert score.value == pytest.approx(wanted.value, rel=1e-4)
        assert ours.scorecard.items.keys() == theirs.scorecard.items.keys()
    first, second = (one.user_attrs["baselines"] for one in (study, twin))
    assert first.keys() == second.keys()
    known = [[s.metric for s in card_from_dict(b["a"]).scores] for b in (first, second)]
    assert known[0] == known[1]
    for ours, theirs in zip(readings_from_dict(study), readings_from_dict(twin), strict=True):
        assert (ours.name, ours.metric, ours.signal) == (theirs.name, theirs.metric, theirs.signal)
        assert ours.scale == pytest.approx(theirs.scale, rel=1e-4)


@pytest.mark.parametrize(
    ("objectives", "changes"),
    [
        ([CHOICE, EXACT, {"task": "tiny_shots"}], {}),
        ([EXACT, CHOICE], {}),  # a text that both have is dealt to the first: other items
        ([CHOICE | {"metric": "acc_norm"}, EXACT], {}),  # the margin is weighed otherwise
        ([CHOICE, EXACT | {"signal": "probability"}], {}),
        ([CHOICE | {"num_fewshot": 1}, EXACT], {}),
        ([CHOICE, EXACT], {"dtype": "bfloat16"}),
        ([CHOICE, EXACT, {"model": "depth", "at_most": 4}], {}),
    ],
)
def test_what_stored_items_do_not_answer_is_begun_anew(
    objectives: list[Any], changes: dict[str, Any], asked: Path
):
    path = asked.with_name("changed.yaml")
    path.write_text(study_of(asked.parent, *objectives, **changes).read_text())
    study_of(asked.parent, CHOICE, EXACT)
    bench = bench_of(path)
    assert retold(kept(asked), bench, protocol(bench)) is None


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = study_of(tmp_path_factory.mktemp("asked"), CHOICE, EXACT)
    run_study(path, Console(file=StringIO()))
    return path


def bench_of(path: Path) -> Bench:
    return build_bench(check_study(path), (Role.SEARCH, Role.SELECT))


def stopped(trial: Any) -> Any:
    """Trial 3 as if it had lost after 8 of 16 items of each task, with estimates of its own."""
    if trial.number != 3:
        return trial
    card = card_from_dict(trial.user_attrs["scorecard"])
    items = {
        task: {key: values[:8] for key, values in results.items()}
        for task, results in card.items.items()
    }
    card = replace(card, scores=tuple(replace(one, n=8) for one in card.scores), items=items)
    attributes = trial.user_attrs | {"scorecard": card_to_dict(card)}
    values = [0.2, 0.1][: len(trial.values)]
    attributes["stopped"] = {"items": 16, "evidence": 21.0, "values": values}
    return create_trial(
        state=trial.state,
        values=values,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=attributes,
    )


@pytest.mark.parametrize(
    ("objectives", "search"),
    [([CHOICE, EXACT | {"weight": 3.0}], SEARCH), ([CHOICE, EXACT], FRONT), ([CHOICE], SEARCH)],
)
def test_a_stopped_candidate_keeps_the_distance_of_its_estimate(
    objectives: list[Any], search: dict[str, Any], asked: Path
):
    study = kept(asked, stopped)
    card = card_from_dict(study.trials[3].user_attrs["scorecard"])
    ahead = 0.2 - objective([card], readings_from_dict(study), signal=True)
    path = asked.with_name("changed.yaml")
    path.write_text(study_of(asked.parent, *objectives, search=search).read_text())
    study_of(asked.parent, CHOICE, EXACT)
    bench = bench_of(path)
    found = retold(study, bench, protocol(bench))
    assert found is not None
    rows = [[one] for one in bench.readings] if bench.goals.pareto else [bench.readings]
    expected = [objective([card], row, signal=True) + ahead for row in rows]
    assert found.trials[3].values == pytest.approx(expected)
    record = load(found.trials[3])
    assert record.stopped is not None
    assert record.stopped.values == pytest.approx(expected)
    assert record.scorecard is not None
    assert [score.n for score in record.scorecard.scores] == [8] * len(objectives)
    assert record.stopped.items == 8 * len(objectives)


@pytest.mark.parametrize(
    ("weight", "goal", "expected"),
    [(1.0, FRONT, [0.2, 0.1]), (3.0, FRONT, [0.2, 0.1]), (3.0, SEARCH, [0.125])],
)
def test_a_stopped_candidate_of_a_front_keeps_its_estimates(
    weight: float, goal: dict[str, Any], expected: list[float], tmp_path: Path
):
    path = study_of(tmp_path, CHOICE, EXACT, search=FRONT)
    run_study(path, Console(file=StringIO()))
    study = kept(path, stopped)
    bench = bench_of(study_of(tmp_path, CHOICE, EXACT | {"weight": weight}, search=goal))
    found = retold(study, bench, protocol(bench))
    assert found is not None
    assert found.trials[3].values == pytest.approx(expected)
    assert load(found.trials[3]).value == pytest.approx(0.15 if weight == 1.0 else 0.125)


def test_a_failed_trial_stays_so(tmp_path: Path):
    path = study_of(tmp_path, CHOICE, EXACT)
    run_study(path, Console(file=StringIO()))
    lost = create_trial(state=optuna.trial.TrialState.FAIL, user_attrs={"failure": "bad"})
    study = kept(path, lambda trial: lost if trial.number == 2 else trial)
    bench = bench_of(study_of(tmp_path, CHOICE))
    found = retold(study, bench, protocol(bench))
    assert found is not None
    assert (len(found.trials), found.scored) == (6, 5)
    assert found.trials[2].user_attrs == {"failure": "bad"}


@pytest.mark.parametrize("scored", [False, True])
def test_a_trial_that_a_killed_process_left_is_done_in_its_place(*, scored: bool, tmp_path: Path):
    """Its number too: later trials are known by theirs."""
    path = study_of(tmp_path, CHOICE, EXACT)
    run_study(path, Console(file=StringIO()))
    with open_study(check_study(path)) as study:
        trials = study.get_trials()
        left, attributes = trials[4], study.user_attrs
        given = ("recipe", "fingerprint")
        known = (
            left.user_attrs if scored else {k: v for k, v in left.user_attrs.items() if k in given}
        )
        trials[4] = create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=left.params,
            distributions=left.distributions,
            user_attrs=known,
        )
        storage = study._storage  # pyright: ignore
        optuna.delete_study(study_name="tiny", storage=storage)
        again = optuna.create_study(storage=storage, study_name="tiny", direction="maximize")
        again.add_trials(trials)
        for key, value in attributes.items():
            again.set_user_attr(key, value)
    told, study = ran(study_of(tmp_path, CHOICE), fork=True)
    assert "5 trials of 'tiny', re-scored without a model" in told
    assert "that failed" not in told
    _, twin = ran(study_of(tmp_path, CHOICE, name="twin"))
    same(study, twin)
    assert [load(one).reused for one in study.trials] == [load(one).reused for one in twin.trials]


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("acc,none", "acc,none", True),
        ("acc,none", "exact_match,strict", True),
        ("acc_norm,none", "acc_norm,none", True),
        ("acc,none", "acc_norm,none", False),
        ("acc_bytes,none", "acc_norm,none", False),
    ],
)
def test_metrics_weigh_options_alike_or_not(one: str, other: str, alike: bool):
    assert weighed_alike(one, other) is alike
