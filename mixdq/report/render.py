"""The report on disk: report.html, report.md and the plots that the latter links to."""

import logging
import os
from pathlib import Path

from mixdq.report.facts import ReportFacts
from mixdq.report.html import render_html
from mixdq.report.markdown import render_markdown

log = logging.getLogger(__name__)


def render(facts: ReportFacts, out: Path) -> Path:
    """Write report.html, report.md and plots/*.svg into the folder `out`, and return the path of report.html.

    Everything is made before anything is written, and each file appears whole or not at all.

    Raises:
        ArtifactFormatError: a picture is missing or unreadable.
        OSError: the folder cannot be written.
    """
    page = render_html(facts)
    text, plots = render_markdown(facts, out)
    files = {**plots, "report.md": text.encode(), "report.html": page.encode()}
    for path, data in files.items():
        _write(out / path, data)
    log.info("report: %s, %.1f MiB", out / "report.html", len(files["report.html"]) / 2**20)
    return out / "report.html"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Always the same name: what a killed process left is overwritten by the next report, not added to.
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
