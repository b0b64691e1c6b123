"""Files stay short, and every source has its test."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 300
CHECKED = ("mixdq", "tests", "recipes", "benchmarks", "examples", "comfyui")

SHARED = {"types", "cli/verbs"}
"""Folders of small files alike, whose tests may stand together in any file of the mirrored folder."""


def sources(folder: str) -> list[Path]:
    """Python files of a folder, without hidden ones (caches)."""
    return sorted(
        path
        for path in (ROOT / folder).rglob("*.py")
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    )


def is_trivial(path: Path) -> bool:
    """Say whether a file only documents, imports, names constants and states protocols: nothing that could be wrong."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return False
        if isinstance(node, ast.ClassDef) and not any("Protocol" in ast.unparse(base) for base in node.bases):
            return False
    return True


def test_of(source: Path) -> Path:
    """The test of mixdq/a/b.py is tests/a/test_b.py; of a package's own code tests/a/test_init.py."""
    inside = source.relative_to(ROOT / "mixdq")
    stem = "init" if inside.stem == "__init__" else inside.stem
    return ROOT / "tests" / inside.parent / f"test_{stem}.py"


test_of.__test__ = False


@pytest.mark.parametrize("folder", CHECKED)
def test_files_are_short(folder) -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources(folder)}
    long = [f"{path.relative_to(ROOT)}: {lines} lines" for path, lines in lengths.items() if lines > MAX_LINES]
    assert not long, f"over {MAX_LINES} lines, so a second idea in the file:\n" + "\n".join(long)


def test_every_source_has_its_test() -> None:
    missing = []
    for source in sources("mixdq"):
        inside = source.relative_to(ROOT / "mixdq")
        shared = ROOT / "tests" / inside.parent
        # tests/architecture/test_public_names.py is the test of the package's own names.
        if inside.as_posix() == "__init__.py" or is_trivial(source) or test_of(source).exists():
            continue
        if inside.parent.as_posix() not in SHARED or not list(shared.glob("test_*.py")):
            missing.append(f"{test_of(source).relative_to(ROOT)} for {source.relative_to(ROOT)}")
    assert not missing, "\n".join(missing)


def test_every_package_says_what_is_there() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in sources("mixdq")
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent, "no module docstring:\n" + "\n".join(silent)


def test_every_test_file_asserts_something() -> None:
    empty = []
    for path in sources("tests"):
        if path.name.startswith("test_"):
            functions = [
                n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef)
            ]
            if not any(function.name.startswith("test_") for function in functions):
                empty.append(str(path.relative_to(ROOT)))
    assert not empty, "no test in:\n" + "\n".join(empty)
