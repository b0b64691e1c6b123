import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mixdq.errors import ArtifactFormatError
from mixdq.report.facts import ReportFacts
from mixdq.report.render import render


def test_report_is_written_whole_and_twice_the_same(facts: ReportFacts, tmp_path: Path) -> None:
    facts = replace(facts, sensitivity=None, variants=facts.variants[:2])
    out = tmp_path / "run"
    assert render(facts, out) == out / "report.html"
    first = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    render(facts, out)
    assert first == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {path.name for path in first} > {"report.html", "report.md", "size_ssim.svg"}


def test_nothing_is_written_where_a_picture_is_missing(facts: ReportFacts, tmp_path: Path) -> None:
    broken = replace(facts, variants=(replace(facts.reference, pictures=tmp_path / "nowhere"), *facts.variants[1:]))
    with pytest.raises(ArtifactFormatError):
        render(broken, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_killed_process_left_is_gone_after_the_next_report(facts, tmp_path, monkeypatch) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as killed:
        # A process killed while it waits for the disk removes nothing.
        killed.setattr(os, "fsync", _die)
        killed.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            render(facts, out)
    assert [path for path in out.rglob(".*") if path.is_file()]
    render(facts, out)
    assert not [path for path in out.rglob(".*") if path.is_file()]


def _die(handle: int) -> None:
    raise KeyboardInterrupt


def test_report_needs_no_torch() -> None:
    code = "import mixdq.report.render, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
