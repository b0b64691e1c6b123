"""`mixdq --help`, `mixdq allocate` and `mixdq report` need no model, and start without torch."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
MODULE, COMMAND = PROJECT["project"]["scripts"]["mixdq"].split(":")

START = """
import sys
from {module} import {command} as run
sys.argv = ["mixdq", *{args!r}]
try:
    run()
except SystemExit as end:
    code = end.code
else:
    code = 0
print("\\nHEAVY", *({{"torch", "diffusers", "transformers"}} & set(sys.modules)))
sys.exit(code)
"""

IMPORT = """
import sys, importlib, pkgutil
import {room}
for module in pkgutil.walk_packages({room}.__path__, "{room}."):
    importlib.import_module(module.name)
print("\\nHEAVY", *({{"torch", "diffusers", "transformers"}} & set(sys.modules)))
"""


def heavy(code: str) -> tuple[int, list[str], str]:
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    last = done.stdout.splitlines()[-1] if done.stdout else ""
    assert last.startswith("HEAVY"), done.stdout + done.stderr
    return done.returncode, last.split()[1:], done.stdout


@pytest.mark.parametrize("args", [["--help"], ["allocate", "--help"], ["report", "--help"]], ids=" ".join)
def test_help_starts_without_torch(args) -> None:
    code, loaded, out = heavy(START.format(args=args, module=MODULE, command=COMMAND))
    assert code == 0
    assert "Usage" in out
    assert loaded == []


@pytest.mark.parametrize("verb", ["allocate", "report"])
def test_verb_runs_without_torch_until_it_finds_no_run(tmp_path, verb) -> None:
    # A folder without a run is a mistake of the user's, found by code that the real work goes through too.
    code, loaded, _ = heavy(START.format(args=[verb, str(tmp_path / "nowhere")], module=MODULE, command=COMMAND))
    assert code == 1
    assert loaded == []


@pytest.mark.parametrize("room", ["mixdq.allocation", "mixdq.report", "mixdq.cli"])
def test_whole_room_imports_without_torch(room) -> None:
    _, loaded, _ = heavy(IMPORT.format(room=room))
    assert loaded == []


def test_files_of_plans_and_tables_are_read_without_torch() -> None:
    code = "import sys, mixdq.store.plan_file, mixdq.store.table_file, mixdq.config\n"
    assert heavy(code + "print('HEAVY', *({'torch'} & set(sys.modules)))")[1] == []
