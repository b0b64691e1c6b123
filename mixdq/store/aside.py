"""Files that cannot be gone on with: kept under another name, so that nothing is lost."""

import logging
from pathlib import Path

log = logging.getLogger(__name__)


def aside(path: Path) -> Path:
    """Rename a file that cannot be gone on with, so that nothing is lost, and return its new name."""
    number = 1
    while (kept := path.with_name(f"{path.stem}.old{number}{path.suffix}")).exists():
        number += 1
    path.rename(kept)
    log.warning("%s cannot be gone on with; kept as %s", path, kept.name)
    return kept
