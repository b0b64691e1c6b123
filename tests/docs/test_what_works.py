"""docs/what_works.md claims nothing that no test shows: every cell says yes, no, n/a or untested, and which test."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "what_works.md"
TEXT = PAGE.read_text(encoding="utf-8")

FAMILIES = {
    "SD": re.compile(r"\bsd\b|tiny_sd_pipeline"),
    "SDXL": re.compile(r"sdxl", re.IGNORECASE),
    "Flux": re.compile(r"flux", re.IGNORECASE),
    "SD3.5": re.compile(r"sd3", re.IGNORECASE),
}
"""The column -> how a test file names the family."""

TESTS = {
    label: ((PAGE.parent / path).resolve(), name)
    for label, path, name in re.findall(r'^\[([\w-]+)\]: (\S+) "(\w+)"$', TEXT, re.MULTILINE)
}
"""The label of a link -> the file and the name of a test."""

GENERAL = {"fly-static"}
"""What is refused whatever the family."""

_CELL = re.compile(r"\[(yes|no)\]\[([\w-]+)\]|(n/a)|(untested)")


class Cell(NamedTuple):
    use: str
    family: str
    text: str
    remark: str

    def __str__(self) -> str:
        return f"{self.use}, {self.family}"


def cells() -> list[Cell]:
    found = []
    for line in TEXT.splitlines():
        if not line.startswith("|") or line.startswith(("|---", "| use ")):
            continue
        use, *states, remark = (cell.strip() for cell in line.strip("|").split("|"))
        assert len(states) == len(FAMILIES), f"{use}: {len(states)} cells"
        found += [Cell(use, family, text, remark) for family, text in zip(FAMILIES, states, strict=True)]
    return found


CELLS = cells()


def test_there_is_a_table_of_many_uses_each_named_once() -> None:
    headers = {line for line in TEXT.splitlines() if line.startswith("| use ")}
    assert headers == {f"| use | {' | '.join(FAMILIES)} | remarks |"}
    uses = [cell.use for cell in CELLS]
    assert len(set(uses)) * len(FAMILIES) == len(uses) > 100


def trouble(cell: Cell) -> str | None:
    """Say what is wrong with a cell."""
    found = _CELL.fullmatch(cell.text)
    if not found:
        return f"{cell.text!r} is no [yes][test], [no][test], n/a or untested"
    state, label = found[1], found[2]
    if state != "yes" and not cell.remark:
        return f"{cell.text} without a reason"
    if label is None or label in GENERAL:
        return None
    if label not in TESTS:
        return f"no test is named {label}"
    path = TESTS[label][0]
    read = [path, *(folder / "conftest.py" for folder in path.parents if folder.is_relative_to(ROOT / "tests"))]
    names = any(FAMILIES[cell.family].search(file.read_text(encoding="utf-8")) for file in read if file.exists())
    return None if names else f"{path.name} knows no {cell.family}"


def test_every_cell_is_backed_by_a_test_of_its_family_or_says_why_not() -> None:
    wrong = [f"{cell}: {said}" for cell in CELLS if (said := trouble(cell))]
    assert not wrong, "\n".join(wrong)


def test_every_named_test_is_there() -> None:
    wrong = [f"{label}: {path} has no {name}" for label, (path, name) in TESTS.items() if name not in defined(path)]
    assert not wrong, "\n".join(wrong)


def defined(path: Path) -> set[str]:
    body = ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
    return {node.name for node in body if isinstance(node, ast.FunctionDef)}


def test_every_link_of_the_page_is_a_test_and_every_test_is_used() -> None:
    used = set(re.findall(r"\]\[([\w-]+)\]", TEXT))
    assert used == TESTS.keys()
