"""The command: help, exit codes, one message and no traceback."""

import re
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tiny_study import study_dict
from typer.testing import CliRunner

from search import cli

Run = Callable[..., tuple[int, str, str]]
COMMANDS = ("quickstart", "new", "check", "run", "compare", "export", "dashboard", "merge")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `outcross` in this process: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["outcross", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def write(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump(study_dict(**changes), sort_keys=False))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str):
    shown = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "120"})
    assert shown.exit_code == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.output)
    assert f"outcross {command}" in text
    assert "--verbose" in text


def test_help_shows_what_is_in_brackets():
    shown = CliRunner().invoke(cli.app, ["dashboard", "--help"], env={"COLUMNS": "120"})
    assert "Needs outcross[dashboard]." in re.sub(r"\x1b\[[0-9;]*m", "", shown.output)


def test_help_lists_every_command_and_where_to_start():
    shown = CliRunner().invoke(cli.app, ["--help"]).output
    for command in COMMANDS:
        assert command in shown
    assert {c.callback.__name__ for c in cli.app.registered_commands} == set(COMMANDS)
    assert "outcross quickstart" in shown


def test_no_arguments_show_the_help(run: Run):
    code, out, err = run()
    assert "quickstart" in out + err
    assert code in (0, 2)


def test_an_unknown_option_is_a_usage_error(run: Run):
    code, _, err = run("run", "--nonsense", "study.yaml")
    assert code == 2
    assert "--nonsense" in err


@pytest.mark.parametrize("command", ["check", "run", "compare"])
def test_a_missing_study_file(run: Run, command: str, tmp_path: Path):
    path = tmp_path / "nowhere.yaml"
    assert run(command, path) == (2, "", f"outcross: {path}: there is no such file\n")


def test_mistakes_in_the_study_are_listed(run: Run, study_folder: Path):
    path = write(study_folder / "bad.yaml", device="gpu", search={"trails": 1})
    code, out, err = run("run", path)
    assert (code, out) == (2, "")
    assert err.startswith(f"outcross: {path}: 2 mistakes\n  - search.trails: unknown key;")
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [("compare",), ("export",)])
def test_nothing_has_been_run_yet(
    run: Run, study_folder: Path, tmp_path: Path, arguments: tuple[str, ...]
):
    path = write(study_folder / "unrun.yaml", name="unrun")
    more = (tmp_path / "out",) if arguments == ("export",) else ()
    code, out, err = run(*arguments, path, *more)
    assert (code, out) == (3, "")
    last = err.splitlines()[-1]
    assert last == "outcross: study 'unrun' has not been run yet; run it first"
    assert not (study_folder / "runs").exists()


def test_check_tells_what_a_study_will_do(run: Run, study_folder: Path):
    path = write(study_folder / "checked.yaml", name="checked")
    code, out, err = run("check", path)
    assert (code, err) == (0, "")
    for text in ("a.weight", "0 to 1.5", "tiny_choice", "80% power", "memory", "15.7"):
        assert text in out
    assert out.endswith(f"No mistake found. Next: outcross run {path}\n")
    assert not (study_folder / "runs").exists()


def test_a_quiet_check_gives_the_smallest_gains(run: Run, study_folder: Path):
    path = write(study_folder / "checked.yaml", name="checked")
    code, out, _ = run("check", path, "-q")
    assert code == 0
    rows = [line.split("\t") for line in out.splitlines()]
    assert [row[0] for row in rows] == ["0.05", "0.1", "0.2"]
    assert float(rows[1][1]) == pytest.approx(2.8016 * (0.1 / 16) ** 0.5, rel=1e-3)
    assert int(rows[1][2]) == pytest.approx(1962, abs=1)


def test_check_lists_mistakes(run: Run, study_folder: Path):
    objective = {"task": "tiny_choice", "cluster": "passage"}
    path = write(study_folder / "bad.yaml", objectives=[objective])
    code, out, err = run("check", path)
    assert (code, out) == (2, "")
    assert "objectives[0]: task 'tiny_choice': its documents have no field 'passage'" in err


@pytest.fixture(scope="module")
def ran(study_folder: Path) -> Path:
    """A study that has been run, in a folder of its own; its file is to be copied, not changed."""
    from rich.console import Console

    from search.commands import run_study

    search = {"sampler": "random", "trials": 2, "finalists": 1}
    path = write(study_folder / "ran.yaml", name="ran", storage="ran", search=search)
    run_study(path, Console(file=StringIO()))
    return path


def changed(ran: Path, name: str, **changes: object) -> Path:
    """A copy of a study file with other keys, over the same storage."""
    data = yaml.safe_load(ran.read_text())
    path = ran.with_name(f"{name}.yaml")
    path.write_text(yaml.safe_dump({**data, **changes}))
    return path


def differences(text: str) -> list[str]:
    """What differs, without how many there are and what to do about it."""
    told = text.partition("conditions: ")[2]
    listed = [line.removeprefix("  - ") for line in told.splitlines() if line.startswith("  - ")]
    return [one for one in listed or [told.partition("; ")[0]] if not one.startswith("prompts.")]


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_check_finds_no_mistake_in_a_study_that_can_go_on(run: Run, ran: Path):
    before = held(ran.parent / "ran")
    search = {"sampler": "tpe", "trials": 9}
    objectives = [{**one, "weight": 7.0} for one in study_dict()["objectives"]]
    for path in (ran, changed(ran, "more", search=search, objectives=objectives)):
        code, out, err = run("check", path)
        assert (code, err) == (0, "")
        assert "No mistake found" in out
    assert held(ran.parent / "ran") == before


@pytest.mark.parametrize(
    "change",
    [
        {"items": {"search": 16, "select": 8, "holdout": 16, "seed": 5}},
        {"search": {"sampler": "random", "trials": 2, "racing": "always"}},
        {
            "search": {"sampler": "random", "trials": 2, "goal": "pareto"},
            "objectives": [{"task": "tiny_choice"}, {"task": "tiny_exact", "metric": "acc"}],
        },
        {"dtype": "bfloat16"},
    ],
    ids=["items", "rungs", "goal", "dtype"],
)
def test_check_refuses_other_conditions_as_run_does(run: Run, ran: Path, change: dict[str, object]):
    before = held(ran.parent / "ran")
    path = changed(ran, "other", **change)
    code, out, err = run("check", path)
    assert code == 2
    assert "No mistake found" not in out
    assert held(ran.parent / "ran") == before
    refused, _, told = run("run", path)
    assert refused == 2
    assert "was made under other conditions" in err
    assert differences(err) == differences(told) != []


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("foo://me:secret@x", "storage: x can't be opened: Can't load plugin"),
        ("study.yaml/runs", "study.yaml is no folder; give another place, or put this one right"),
        (
            "postgresql+psycopg://me:secret@127.0.0.1:1/db",
            "storage: 127.0.0.1:1/db can't be opened",
        ),
    ],
    ids=["unknown", "folder", "unreachable"],
)
def test_check_refuses_a_storage_that_cannot_be(
    run: Run, study_folder: Path, place: str, told: str
):
    before = sorted(study_folder.iterdir())
    path = write(study_folder / "placed.yaml", name="placed", storage=place)
    codes = []
    for command in ("check", "run"):
        code, out, err = run(command, path)
        assert told in err
        assert "secret" not in err
        assert "No mistake found" not in out
        codes.append(code)
    assert codes == [2, 2]
    assert sorted(study_folder.iterdir()) == sorted({*before, path})


def test_time_that_is_over_before_a_first_score_is_said_so(
    run: Run, study_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    from search.searching import _Search

    path = write(study_folder / "late.yaml", name="late", storage="late")
    with monkeypatch.context() as patch:
        patch.setattr(_Search, "halted", True)
        code, _, err = run("run", path, "--time", "1s", "-q")
    told = "the time was over before a first candidate was scored; the same command goes on"
    assert code == 3
    assert err.splitlines()[-1] == f"outcross: {told} where it stopped"
    assert run("run", path, "--trials", "1", "-q")[0] == 0


def test_a_run_of_which_no_trial_can_be_scored_says_why(
    run: Run, study_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    import search.evaluators
    from search.trial import Outcome

    usual = search.evaluators.score_job

    def failing(job, bench):
        return Outcome(None, "NaN", 0.0) if bench.norms else usual(job, bench)

    path = write(study_folder / "failing.yaml", name="failing", storage="failing")
    monkeypatch.setattr(search.evaluators, "score_job", failing)
    monkeypatch.setattr("search.searching.known_names", lambda _: {})  # these need no scoring
    code, _, err = run("run", path, "--trials", "2", "-q")
    assert code == 3
    last = err.splitlines()[-1]
    assert last == "outcross: none of 2 trials could be scored; the last one: NaN"


def lined_up(study_folder: Path) -> tuple[object, ...]:
    models = (study_folder / "models" / name for name in ("base", "a", "b"))
    folder = study_folder / "tasks"
    return (*models, "--tasks", "tiny_choice:acc,tiny_exact:acc", "--include", folder)


def test_models_are_compared_without_a_study(run: Run, study_folder: Path, recipe: Path):
    arguments = ("--items", 40, "--device", "cpu", "--batch-size", 16)
    code, out, err = run("compare", recipe, *lined_up(study_folder), *arguments)
    assert (code, err) == (0, "")
    for text in ("80 items", "against", "not enough items", "recipe.yaml", "The probability that"):
        assert text in out


def test_a_quiet_comparison_is_one_line_a_pair(run: Run, study_folder: Path):
    quiet = ("--reference", "b", "--reference", "base", "-q", "--margin", "0.9")
    code, out, _ = run("compare", *lined_up(study_folder), *quiet)
    assert code == 0
    rows = [line.split("\t") for line in out.splitlines()]
    assert [row[:2] for row in rows] == [["a", "b"], ["a", "base"]]
    for row in rows:
        gain, low, high, p = map(float, row[2:6])
        assert low <= gain <= high
        assert 0 <= p <= 1
        assert row[6:] == ["equivalent", ""]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--reference", "c"), "--reference: 'c' is none of the models; "),
        (("--dtype", "int8"), "--dtype: 'int8' is unknown"),
        (("--device", "gpu"), "device: 'gpu' is unknown"),
        (("--items", 500), "too few for search 500, select 0, holdout 0; lower them with --items"),
        (("--include", "nowhere"), "--include: nowhere is no folder"),
        (("--tasks", "tiny_choice:f1"), "task 'tiny_choice': has no metric 'f1'"),
        (("--tasks", "tiny_choice,tiny_choice:acc"), "--tasks: a task is listed twice"),
        (("--tasks", ","), "--tasks: no task is named"),
    ],
)
def test_a_mistake_in_a_comparison(
    run: Run, study_folder: Path, more: tuple[object, ...], message: str
):
    code, out, err = run("compare", *lined_up(study_folder), *more)
    assert (code, out) == (2, "")
    assert err.startswith("outcross: outcross compare: ")
    assert message in err


def test_models_need_tasks_and_a_study_none(run: Run, study_folder: Path):
    models = [study_folder / "models" / name for name in ("base", "a")]
    message = "outcross: outcross compare: give --tasks for a list of models, or one study file\n"
    assert run("compare", *models) == (2, "", message)
    assert run("compare", models[0]) == (2, "", message)
    study = write(study_folder / "unrun.yaml", name="unrun")
    code, _, err = run("compare", study, "--items", 5, "--apply-chat-template")
    assert code == 2
    assert "--items, --apply-chat-template: needs --tasks and a list of models" in err
    code, _, err = run("compare", *lined_up(study_folder)[2:])
    assert code == 2
    assert "two models or more are needed to compare, got 1" in err


def test_a_model_listed_twice_is_a_mistake(run: Run, study_folder: Path):
    same = study_folder / "models" / "a"
    code, _, err = run("compare", same, *lined_up(study_folder))
    assert code == 2
    assert f"'{same}' is listed twice" in err


def test_a_recipe_of_several_documents_is_to_be_merged_first(
    run: Run, study_folder: Path, recipe: Path
):
    documents = [yaml.safe_load(recipe.read_text()) | {"name": "first"}]
    second = {"merge_method": "passthrough", "models": [{"model": "first"}]}
    recipe.write_text(yaml.safe_dump_all([*documents, second]))
    code, _, err = run("compare", recipe, *lined_up(study_folder))
    assert code == 2
    assert "has several documents; write it with 'outcross merge' and compare the folder" in err


def test_a_dry_run_shows_the_plan_and_writes_nothing(run: Run, recipe: Path, tmp_path: Path):
    code, out, err = run("merge", recipe, tmp_path / "out", "--dry-run")
    assert (code, err) == (0, "")
    assert out.startswith("result:\n  method          linear\n  models ")
    assert "30 tensors, 3 layers, " in out
    assert "largest tensor  lm_head.weight (104, 32) float32\n" in out
    assert " of model files are mapped" in out
    assert '"out"' not in out
    assert not (tmp_path / "out").exists()


def test_a_verbose_dry_run_shows_every_tensor(run: Run, recipe: Path):
    _, out, _ = run("merge", recipe, "--dry-run", "-v")
    assert '"out": "model.layers.2.mlp.up_proj.weight"' in out


def test_a_dry_run_needs_no_folder(run: Run, recipe: Path):
    assert run("merge", recipe, "--dry-run")[0] == 0


def test_merge_without_a_folder_is_a_mistake(run: Run, recipe: Path):
    code, _, err = run("merge", recipe)
    assert code == 2
    assert err == "outcross: outcross merge: give the folder to write to, or --dry-run\n"


def test_merge_writes_a_model_with_its_recipe(run: Run, recipe: Path, tmp_path: Path):
    code, out, _ = run("merge", recipe, tmp_path / "out")
    assert code == 0
    assert out.endswith(f"Wrote {tmp_path / 'out'}.\n")
    assert (tmp_path / "out/model.safetensors").is_file()
    assert (tmp_path / "out/recipe.yaml").read_text() == recipe.read_text()


def test_merge_does_not_write_over_a_folder(run: Run, recipe: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("x")
    code, _, err = run("merge", recipe, tmp_path / "out")
    assert code == 2
    assert str(tmp_path / "out") in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_method": "linnear"}, "'linnear' is unknown; did you mean 'linear'?"),
        ({"tokenizer_source": "base"}, "recipe.tokenizer.source: 'base' needs base_model"),
        ({"models": [{"model": "./nowhere"}]}, "'./nowhere': there is no such folder"),
        ({"parameters": {"wieght": 1}}, "no parameter 'wieght'; did you mean 'weight'?"),
        ({"parameters": {"weight": {"range": [0, 1]}}}, "unknown key 'range'"),
    ],
)
def test_a_mistake_in_a_recipe(run: Run, recipe: Path, change: dict[str, object], message: str):
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | change))
    code, _, err = run("merge", recipe, "--dry-run")
    assert code == 2
    assert err.startswith(f"outcross: {recipe}: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_quiet_export_prints_the_folder(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("search.commands.export_study", lambda *_: None)
    assert run("export", "study.yaml", "out", "-q") == (0, "out\n", "")


def test_an_unknown_device_is_a_mistake(run: Run, recipe: Path, tmp_path: Path):
    assert run("merge", recipe, tmp_path / "out", "--device", "gpu")[0] == 2


def test_an_unexpected_error_is_one_line_with_its_type(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("search.commands.check_study", broken)
    code, _, err = run("run", tmp_path / "study.yaml")
    assert code == 1
    assert err == (
        "outcross: division by zero (ZeroDivisionError; run again with -v for the traceback)\n"
    )


def test_verbose_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("search.commands.check_study", broken)
    monkeypatch.setattr(sys, "argv", ["outcross", "run", str(tmp_path / "study.yaml"), "-v"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_an_interrupt_is_no_traceback(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("search.commands.check_study", interrupted)
    code, _, err = run("run", tmp_path / "study.yaml")
    assert code == 130
    assert "Traceback" not in err


def test_another_distribution_with_our_names_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    providers = {"search": ["outcross", "search-engine"], "evals": ["outcross"]}
    monkeypatch.setattr("search.clash.packages_distributions", lambda: providers)
    code, _, err = run("run", tmp_path / "study.yaml")
    assert code == 2
    assert err.startswith("outcross: the package 'search' is also provided by search-engine; ")


@pytest.mark.parametrize(("options", "end"), [((), ""), (("--trial", "7"), " --trial 7")])
def test_what_was_compared_is_what_is_to_be_written(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: tuple[str, ...],
    end: str,
):
    claim = SimpleNamespace(verdicts=SimpleNamespace(overall=()))
    monkeypatch.setattr("search.commands.compare_study", lambda *_, **__: claim)  # pyright: ignore
    study = write(tmp_path / "study.yaml")
    code, out, _ = run("compare", study, *options)
    assert (code, out) == (0, f"Write it with: outcross export {study} out/{end}\n")


def test_help_does_not_wait_for_torch():
    code = "import sys, search.cli; sys.exit(bool({'torch', 'optuna', 'lm_eval'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_installed_command():
    command = Path(sys.executable).with_name("outcross")
    ended = subprocess.run(
        [command, "run", "--nonsense"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "--nonsense" in ended.stderr
    assert "Traceback" not in ended.stderr
