"""What a study will do and show, before anything is spent."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from tiny_study import study_dict, write_study

from evals.items import Role
from evals.power import smallest_gain
from search.bench import check_study
from search.errors import ProtocolError
from search.outlook import announcement, discordance, print_outlook, reach
from search.sizes import counted


def test_reach_is_the_power_of_the_holdout(tmp_path: Path):
    objectives = [{"task": "tiny_choice", "weight": 3.0}, {"task": "tiny_exact", "metric": "acc"}]
    checked = check_study(write_study(tmp_path, study_dict(objectives=objectives)))
    low, middle, high = reach(checked)
    assert [found.discordance for found in (low, middle, high)] == [0.05, 0.10, 0.20]
    assert middle.mean == pytest.approx(smallest_gain([16, 16], [3, 1], 0.10))
    assert middle.tasks == pytest.approx([smallest_gain([16], [1], 0.10)] * 2)
    assert smallest_gain([high.needed] * 2, [3, 1], 0.20) <= 0.02


def test_one_is_not_several():
    assert (counted(1, "dimension"), counted(1200, "item")) == ("1 dimension", "1,200 items")


def test_clusters_leave_fewer_independent_items(tmp_path: Path):
    study = write_study(tmp_path)
    independent = reach(check_study(study))
    for path in (tmp_path / "data").glob("*.jsonl"):
        rows = [json.loads(line) | {"unit": at % 15} for at, line in enumerate(path.open())]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = {"task": "tiny_choice", "metric": "acc", "cluster": "unit"}
    clustered = reach(check_study(write_study(tmp_path, study_dict(objectives=[named]))))
    assert clustered[0].mean > 1.1 * independent[0].mean
    assert clustered[0].needed > 1.2 * independent[0].needed


def test_everything_is_told_and_nothing_is_made(tmp_path: Path):
    recipe = study_dict()["recipe"] | {"merge_method": {"choice": ["ties", "task_arithmetic"]}}
    recipe["models"][0]["parameters"] = {"density": {"range": [0.1, 1.0], "log": True}}
    recipe["models"][1]["parameters"]["weight"] = {"range": [0, 1], "by": ["[x]", "*"], "knots": 1}
    recipe["models"][1]["parameters"]["weight"]["by"] = ["mlp", "*"]
    path = write_study(tmp_path, study_dict(recipe=recipe))
    before = sorted(tmp_path.rglob("*"))
    out = Console(file=StringIO(), width=120)
    print_outlook(out, check_study(path))
    told = out.file.getvalue()  # type: ignore[attr-defined]
    for text in (
        "a: ./models/a (3 layers",
        "b.weight[mlp]",
        "0.1 to 1",
        "logarithm",
        "merge_method: ties",
        "for the live model (float32 on cpu)",
        "compare makes 6",
    ):
        assert text in told
    assert sorted(tmp_path.rglob("*")) == before


def rows_of(folder: Path, objectives: list[dict[str, Any]], goal: str) -> dict[str, str]:
    """The lines of an outlook by their first word, with single blanks."""
    search = {"goal": goal, "trials": 2}
    path = write_study(folder, study_dict(objectives=objectives, search=search))
    (folder / "scorer.py").write_text("def tone(model, tokenizer): return 1\nrude = tone\n")
    out = Console(file=StringIO(), width=160)
    print_outlook(out, check_study(path))
    lines = (line.split() for line in out.file.getvalue().splitlines())  # type: ignore[attr-defined]
    return {words[0]: " ".join(words) for words in lines if words}


def test_objectives_without_items_are_told_with_their_limits(tmp_path: Path):
    objectives = [
        {"task": "tiny_choice", "floor": {"parents": 0.02}},
        {"task": "tiny_text", "floor": 9.5},
        {"function": "./scorer.py:tone", "weight": 0.2, "floor": "parents"},
        {"function": "./scorer.py:rude", "direction": "minimize", "floor": 0.5},
        {"model": "parameters", "at_most": 1_500_000_000},
    ]
    rows = rows_of(tmp_path, objectives, "mean")
    assert rows["tiny_choice"].endswith("- at most 0.02 worse than the best parent")
    assert rows["tiny_text"].endswith("- at most 9.5")
    assert rows["tone"] == "tone higher weight 0.2 in the mean no worse than the best parent"
    assert rows["rude"] == "rude lower weight 1 in the mean at most 0.5"
    assert rows["parameters"] == "parameters lower as a limit at most 1,500,000,000"
    rows = rows_of(tmp_path, [*objectives[:3], {"model": "depth"}], "pareto")
    assert rows["tone"].startswith("tone higher a value of the front, weight 0.2 in the mean no")
    assert rows["depth"] == "depth lower a value of the front -"
    rows = rows_of(tmp_path, [{"task": "tiny_choice"}], "mean")
    assert "objective" not in rows
    assert "limit" not in rows["task"]


@pytest.mark.parametrize(
    ("tasks", "search", "expected"),
    [
        (["tiny_choice"], 16, "1 benchmark with 16 search items;"),
        (["tiny_choice"], "rest", "1 benchmark with 36 search items;"),
        (["tiny_choice", "tiny_text"], 16, "2 benchmarks with 16 search items each;"),
        (["tiny_choice", "few"], "rest", "2 benchmarks with 16 to 36 search items each;"),
    ],
)
def test_search_items_are_announced_as_they_were_dealt(
    tmp_path: Path, tasks: list[str], search: int | str, expected: str
):
    items = {"search": search, "select": 8, "holdout": 16}
    objectives = [{"task": name} for name in tasks]
    path = write_study(tmp_path, study_dict(objectives=objectives, items=items))
    rows = [json.loads(line) for line in (tmp_path / "data" / "test.jsonl").open()]
    others = (row | {"query": f"not {row['query']}"} for row in rows[:40])  # no likeness repeats
    (tmp_path / "data" / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in others))
    task = yaml.safe_load((tmp_path / "tasks" / "tiny_choice.yaml").read_text())
    few = {"task": "few", "dataset_kwargs": {"data_files": {"test": "../data/few.jsonl"}}}
    (tmp_path / "tasks" / "few.yaml").write_text(yaml.safe_dump(task | few))
    assert expected in announcement(check_study(path))


def test_a_margin_may_be_given_later_but_clusters_may_not(tmp_path: Path):
    """No margin changes a trial's scores; clusters change which items are whose."""
    from search.commands import compare_study, run_study

    quiet = Console(file=StringIO())
    study = write_study(tmp_path)
    run_study(study, quiet)
    study.write_text(yaml.safe_dump(study_dict(compare={"margin": 0.3})))
    assert compare_study(study, quiet).verdicts.margin == 0.3
    named = {"task": "tiny_choice", "metric": "acc", "cluster": "query"}
    study.write_text(yaml.safe_dump(study_dict(objectives=[named])))
    with pytest.raises(
        ProtocolError, match=r'clusters: was not given, is {"tiny_choice": "query"}'
    ):
        compare_study(study, quiet)


def test_a_study_with_clusters_is_searched_and_compared_by_them(tmp_path: Path):
    from search.commands import compare_study, run_study

    quiet = Console(file=StringIO())
    path = write_study(tmp_path)
    for file in (tmp_path / "data").glob("*.jsonl"):
        rows = [json.loads(line) | {"unit": at // 5} for at, line in enumerate(file.open())]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = {"task": "tiny_choice", "metric": "acc", "cluster": "unit"}
    path.write_text(yaml.safe_dump(study_dict(objectives=[named])))
    checked = check_study(path)
    (task,) = checked.tasks
    units = [{d["unit"] for d in task.documents(role)} for role in Role]
    assert sum(map(len, units)) == len(set.union(*units))
    assert any("its 16 holdout items come from 4 clusters" in note for note in task.notes)
    run_study(path, quiet)
    found = compare_study(path, quiet).verdicts
    assert {c.gain.clusters for c in found.overall} == {4}


def test_discordances_are_measured_where_the_baselines_are_scored(tmp_path: Path):
    from search.commands import run_study
    from search.record import card_from_dict
    from search.study import open_study

    objectives = [{"task": "tiny_choice", "weight": 3.0}, {"task": "tiny_exact", "metric": "acc"}]
    # A list of 60 items leaves 36 to search.
    data = study_dict(objectives=objectives, items={"search": 36, "select": 8, "holdout": 16})
    path = write_study(tmp_path, data, spread=0.5)
    checked = check_study(path)
    assert discordance(checked) is None
    told = Console(file=StringIO(), width=120)
    print_outlook(told, checked)
    assert "These shares are assumed" in told.file.getvalue()  # type: ignore[attr-defined]
    run_study(path, Console(file=StringIO()))
    found = discordance(checked)
    assert found is not None
    other, best = found.pair
    assert other in ("plain average", "task arithmetic", "TIES")
    with open_study(checked) as study:  # a search that runs doesn't hinder a look
        cards = {n: card_from_dict(c) for n, c in study.user_attrs["baselines"].items()}
        assert discordance(checked) == found
    ours, theirs = (cards[name].items["tiny_choice"]["acc,none"] for name in found.pair)
    differ = sum(one != two for one, two in zip(ours, theirs, strict=True))
    assert found.shares[0] == pytest.approx(max(differ, 36 / 37) / 36)
    assert differ > 0
    (measured,) = reach(checked)
    assert measured.measured == (other, best)
    assert measured.discordance == pytest.approx((3 * found.shares[0] + found.shares[1]) / 4)
    assert measured.mean == pytest.approx(smallest_gain([16, 16], [3, 1], found.shares))
    told = Console(file=StringIO(), width=200)
    print_outlook(told, checked)
    text = told.file.getvalue()  # type: ignore[attr-defined]
    assert f"Measured on the search items, between {other} and {best}, the best parent" in text
    assert f"tiny_choice {found.shares[0]:.1%}" in text
