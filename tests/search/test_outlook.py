"""What a study will do and show, before anything is spent."""

import json
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from tiny_study import study_dict, write_study

from evals.items import Role
from evals.power import smallest_gain
from search.bench import check_study
from search.errors import ProtocolError
from search.outlook import print_outlook, reach


def test_reach_is_the_power_of_the_holdout(tmp_path: Path):
    objectives = [{"task": "tiny_choice", "weight": 3.0}, {"task": "tiny_exact", "metric": "acc"}]
    checked = check_study(write_study(tmp_path, study_dict(objectives=objectives)))
    low, middle, high = reach(checked)
    assert [found.discordance for found in (low, middle, high)] == [0.05, 0.10, 0.20]
    assert middle.mean == pytest.approx(smallest_gain([16, 16], [3, 1], 0.10))
    assert middle.tasks == pytest.approx([smallest_gain([16], [1], 0.10)] * 2)
    assert smallest_gain([high.needed] * 2, [3, 1], 0.20) <= 0.02


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
    with pytest.raises(ProtocolError, match=r'clusters: was null, is {"tiny_choice": "query"}'):
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
