from dataclasses import replace
from pathlib import Path

import pytest

from mixdq.report.facts import ReportFacts
from mixdq.report.markdown import render_markdown


@pytest.fixture(scope="module")
def written(facts: ReportFacts, run_folder: Path) -> tuple[str, dict[str, bytes]]:
    return render_markdown(facts, run_folder)


def test_tables_keep_their_columns_whatever_the_prompt(written: tuple[str, dict[str, bytes]]) -> None:
    text, _ = written
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) >= 5
    for lines in tables:
        assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "<script>" not in text


def test_links_lead_to_pictures_and_plots(written: tuple[str, dict[str, bytes]], run_folder: Path) -> None:
    text, plots = written
    assert "![](images/mixed/000.png)" in text
    assert (run_folder / "images/mixed/000.png").exists()
    assert all(f"({path})" in text for path in plots)


def test_best_is_bold(written: tuple[str, dict[str, bytes]]) -> None:
    assert "**0.9000**" in written[0]


def test_bare_report_has_no_empty_sections(facts: ReportFacts, run_folder: Path) -> None:
    bare = replace(facts, variants=facts.variants[:1], sensitivity=None, receipts=(), candidates={}, warnings=())
    text, plots = render_markdown(bare, run_folder)
    assert "## Sensitivity" not in text
    assert "## Bits" not in text
    assert plots == {}
