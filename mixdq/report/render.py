"""The report on disk: report.html, report.md and the plots that the latter links to."""

import logging
import os
import tempfile
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
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
