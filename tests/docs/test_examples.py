"""The examples are settings and code that work."""

import ast
from pathlib import Path

import pytest

from mixdq.config import load_config

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_example_settings_are_valid(path: Path) -> None:
    assert load_config(path).model.path


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example_code_compiles(path: Path) -> None:
    ast.parse(path.read_text(encoding="utf-8"))
