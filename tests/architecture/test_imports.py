"""Who may import whom: the table of docs/architecture.md, read from the sources without running them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "mixdq"

EVERYTHING = None
OPEN = {"types", "errors"}
MAY_IMPORT: dict[str, set[str] | None] = {
    "types": set(),
    "errors": set(),
    "config": set(),
    "quant": set(),
    "metrics": set(),
    "pipeline": set(),
    "store": set(),
    "report": set(),
    "allocation": set(),
    "runtime": {"quant"},
    "calibration": {"pipeline", "quant"},
    "sensitivity": {"pipeline", "quant", "metrics"},
    "selection": {"pipeline", "quant", "metrics"},
    "conversion": {"pipeline", "quant", "runtime"},
    "evaluation": {"pipeline", "metrics"},
    "testing": {"pipeline"},
    "workflow": EVERYTHING,
    "demo": EVERYTHING,
    "cli": EVERYTHING,
    "studio": EVERYTHING,
    "integrations": EVERYTHING,
    "__init__": EVERYTHING,
    "__main__": EVERYTHING,
}

# Library -> the places that may import it; "mixdq/testing.py" builds the tiny pipelines of the tests.
ONLY_IN = {
    "diffusers": ("pipeline/", "integrations/", "testing.py"),
    "triton": ("runtime/kernels/",),
    "ray": ("sensitivity/engines/ray.py",),
}
NEVER_IN = {"torch": ("allocation/", "report/", "errors.py", "config.py")}
NOWHERE = {"pickle", "yaml"}

SOURCES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and full module name of every import, wherever it stands in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.lineno, str(node.module)
            if node.module == "mixdq":
                yield from ((node.lineno, f"mixdq.{alias.name}") for alias in node.names)


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def wrong_rooms(path: Path) -> list[str]:
    room = room_of(path)
    allowed = MAY_IMPORT[room]
    if allowed is EVERYTHING:
        return []
    found = []
    for line, name in imported(path):
        parts = name.split(".")
        if parts[0] == "mixdq" and len(parts) > 1 and parts[1] not in OPEN | allowed | {room}:
            found.append(f"{path.relative_to(ROOT)}:{line}: {room} may not import {name}")
    return found


def test_every_room_is_in_the_table() -> None:
    assert {room_of(path) for path in SOURCES} <= MAY_IMPORT.keys()
    for allowed in MAY_IMPORT.values():
        assert (allowed or set()) <= MAY_IMPORT.keys()


@pytest.mark.parametrize("room", sorted({room_of(path) for path in SOURCES}))
def test_rooms_import_only_downhill(room) -> None:
    wrong = [line for path in SOURCES if room_of(path) == room for line in wrong_rooms(path)]
    assert not wrong, "\n".join(wrong)


def test_table_has_no_circle() -> None:
    lower = {room: allowed for room, allowed in MAY_IMPORT.items() if allowed is not EVERYTHING}
    while lower:
        free = [room for room, allowed in lower.items() if not allowed & lower.keys()]
        assert free, f"circle among {sorted(lower)}"
        for room in free:
            del lower[room]


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_libraries_stay_in_their_places(library) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in SOURCES
        for line, name in imported(path)
        if name.split(".")[0] == library and not path.relative_to(PACKAGE).as_posix().startswith(ONLY_IN[library])
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("library", sorted(NEVER_IN))
def test_rooms_without_tensors_do_not_import_them(library) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in SOURCES
        for line, name in imported(path)
        if name.split(".")[0] == library and path.relative_to(PACKAGE).as_posix().startswith(NEVER_IN[library])
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_pickles() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in SOURCES
        for line, name in imported(path)
        if name.split(".")[0] in NOWHERE
    ]
    assert not wrong, "\n".join(wrong)
