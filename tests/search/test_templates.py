"""A chat template that is asked for and isn't there is known before anything is built."""

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from tiny_study import study_dict, write_study

from evals.settings import Settings
from search.bench import check_study
from search.errors import StudyError
from search.lineup import CompareOptions, check_lineup

TEMPLATE = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}"
NONE = "evaluation.apply_chat_template: the tokenizer, that of 'base', has no chat template, "


@pytest.fixture
def folder(study_folder: Path, tmp_path: Path) -> Path:
    for part in ("models", "tasks", "data"):
        copytree(study_folder / part, tmp_path / part)
    return tmp_path


def study(folder: Path, wanted: Any = True, recipe: dict[str, Any] | None = None, **more) -> Path:
    evaluation = {"tasks": ["./tasks"], "apply_chat_template": wanted}
    whole = study_dict()["recipe"] | (recipe or {})
    return write_study(folder, study_dict(evaluation=evaluation, recipe=whole, **more))


def mistakes(folder: Path, *args: Any, **more: Any) -> list[str]:
    with pytest.raises(StudyError) as error:
        check_study(study(folder, *args, **more))
    return list(error.value.mistakes)


def speak(folder: Path, model: str, name: str = "chat_template") -> None:
    path = folder / "models" / model / f"{name}.jinja"
    path.parent.mkdir(exist_ok=True)
    path.write_text(TEMPLATE)


def test_a_study_without_a_template_is_refused_with_its_other_mistakes(folder: Path):
    found = mistakes(folder, items={"search": 900, "select": 8, "holdout": 8})
    assert len(found) == 2
    assert "too few" in found[0]
    assert found[1].startswith(NONE + "nor has any other parent; set it to false, or give")
    check_study(study(folder, wanted=False))


def test_a_template_counts_where_the_tokenizer_is_taken_from(folder: Path):
    speak(folder, "b")
    (told,) = mistakes(folder)
    assert told.startswith(NONE + "of the others 'b' has one (tokenizer_source takes a")
    for way in ({"chat_template": "auto"}, {"tokenizer_source": "b"}):
        assert check_study(study(folder, recipe=way)).files
    speak(folder, "base")
    check_study(study(folder))


def test_a_template_is_known_by_its_name(folder: Path):
    speak(folder, "base")
    speak(folder, "base", "additional_chat_templates/loud")
    check_study(study(folder, "loud"))
    (told,) = mistakes(folder, "loudly")
    assert "the tokenizer of 'base' has no template 'loudly'; name one that it has" in told
    assert told.endswith("'default', 'loud'")


def test_models_to_compare_are_refused_by_name(folder: Path):
    speak(folder, "a")
    models = [str(folder / "models" / name) for name in ("a", "b")]
    settings = Settings(apply_chat_template=True)
    options = CompareOptions(("tiny_choice",), include=(folder / "tasks",), settings=settings)
    with pytest.raises(StudyError) as error:
        check_lineup(models, options)
    (told,) = error.value.mistakes
    assert told.startswith("--apply-chat-template: the tokenizer, that of 'b', has no chat templ")
