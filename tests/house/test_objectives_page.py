"""Every example of docs/objectives.md is a study without mistakes, and its function works."""

import re
from pathlib import Path

import pytest
import yaml
from tiny_models import write_family
from tiny_study import study_dict
from transformers import AutoModelForCausalLM, AutoTokenizer

from search.config import KINDS, parse
from search.functions import load_scorer

PAGE = (Path(__file__).parents[2] / "docs/objectives.md").read_text("utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
(FUNCTION,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_example_has_no_mistake(text: str):
    mistakes: list[str] = []
    changes = yaml.safe_load(text)
    assert parse(study_dict(**changes), mistakes) is not None
    assert mistakes == []


def test_the_table_tells_every_kind_and_its_keys():
    rows = [line.split("|") for line in PAGE.splitlines() if line.startswith("| `")]
    told = {row[1].strip(" `"): set(re.findall(r"`(\w+)`", row[4])) for row in rows}
    assert told == {kind: set(keys) for kind, keys in KINDS.items()}


def test_the_example_of_a_function_works(tmp_path: Path):
    write_family(tmp_path / "models")
    (tmp_path / "scorer.py").write_text(FUNCTION)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "models/base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "models/base")
    scorer = load_scorer("./scorer.py:politeness", tmp_path)
    assert 0 < scorer.figure(model, tokenizer, 0) < 1
