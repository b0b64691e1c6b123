"""What README.md and docs/*.md show is true: commands exist with their options, Python compiles, marked blocks run.

A block is run where the line above it says `<!-- test: run -->`: Python in a fresh folder, in this environment.
"""

import ast
import functools
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MODULE, COMMAND = PROJECT["project"]["scripts"]["mixdq"].split(":")
SHELLS = {"bash", "sh", "shell", "console"}

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_MARK = "<!-- test: run -->"


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str
    runs: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8") if page.exists() else ""
        for match in _FENCE.finditer(text):
            before = text[: match.start()].rstrip()
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(page.name, line, match[1], match[2], before.endswith(_MARK)))
    return found


def commands(block: Block) -> list[list[str]]:
    """The commands of a shell block, one list of words each; output lines of a console block are left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    prompted = any(line.startswith("$ ") for line in lines)
    if block.language == "console" or prompted:
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    pieces = [piece for line in lines for piece in re.split(r"&&|\|\||;|\|", line)]
    return [words for piece in pieces if (words := shlex.split(piece, comments=True))]


SHELL_COMMANDS = [(block, words) for block in blocks() if block.language in SHELLS for words in commands(block)]
# docs/architecture.md sketches the types in shorthand.
PYTHON = [block for block in blocks() if block.language == "python" and block.page != "architecture.md"]


@functools.cache
def help_of(verb: str) -> tuple[int, str]:
    words = ["mixdq", verb, "--help"] if verb else ["mixdq", "--help"]
    code = f"import sys; from {MODULE} import {COMMAND} as run; sys.argv = {words}; run()"
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout


def test_readme_shows_how_to_begin() -> None:
    typed = [words[:2] for block, words in SHELL_COMMANDS if block.page == "README.md"]
    assert ["make", "demo"] in typed
    assert ["make", "test"] in typed
    assert any(words[0] == "mixdq" for words in typed)
    assert any(block.page == "README.md" for block in PYTHON)


@pytest.mark.parametrize(("block", "words"), [pytest.param(b, w, id=f"{b} {' '.join(w)}") for b, w in SHELL_COMMANDS])
def test_shown_command_exists(block, words) -> None:
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for target in (word for word in words[1:] if "=" not in word):
            assert re.search(rf"^{re.escape(target)}\s*:", makefile, re.MULTILINE), f"{block}: no target {target}"
    elif words[0] == "mixdq":
        verb = next((word for word in words[1:] if not word.startswith("-")), "")
        code, text = help_of(verb)
        assert code == 0, f"{block}: no verb {verb!r}"
        for option in (word.split("=")[0] for word in words[1:] if re.match(r"-{1,2}[a-zA-Z]", word)):
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text + help_of("")[1]), f"{block}: no {option}"
    else:
        assert words[0] in {"git", "cd", "pip", "python", "python3", "ls", "cat", "open", "xdg-open"}, (
            f"{block}: {words[0]}?"
        )


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_shown_python_compiles(block) -> None:
    tree = ast.parse(block.text)
    assert tree.body, f"{block}: an empty block"


@pytest.mark.parametrize("block", [block for block in PYTHON if block.runs], ids=str)
def test_marked_python_runs(block, tmp_path) -> None:
    done = subprocess.run([sys.executable, "-c", block.text], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, f"{block}:\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page) -> None:
    assert page.exists(), f"{page.name} is missing"
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
