"""The tools of the house, as tests: one command checks everything."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "format", "--check", "."),
        ("ruff", "check", "."),
        ("lint-imports",),
        ("pyright", "--pythonpath", sys.executable),
    ],
    ids=" ".join,
)
def test_tool_is_content(command):
    tool, *arguments = command
    done = subprocess.run(
        [BIN / tool, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_weights_are_tracked():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    tracked = listed.stdout.splitlines()
    assert not [name for name in tracked if name.endswith((".safetensors", ".gguf", ".bin", ".pt"))]
