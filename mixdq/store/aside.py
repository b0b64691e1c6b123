"""Files that cannot be gone on with: kept under another name, so that nothing is lost."""

import logging
import re
from itertools import count
from pathlib import Path

log = logging.getLogger(__name__)


def aside(path: Path) -> Path:
    """Rename a file that cannot be gone on with, so that nothing is lost, and return its new name."""
    kept = name_aside(path)
    path.rename(kept)
    log.warning("%s cannot be gone on with; kept as %s", path, kept.name)
    return kept


def name_aside(path: Path) -> Path:
    """Return the first name that is free for a file to be kept under.

    >>> name_aside(Path("nowhere/a.csv")).name
    'a.old1.csv'
    """
    names = (path.with_name(f"{path.stem}.old{number}{path.suffix}") for number in count(1))
    return next(name for name in names if not name.exists())


def kept_aside(path: Path) -> list[Path]:
    """Return the files that have been kept of those that were called `path`, by number; some may have been removed."""
    numbered = re.compile(rf"{re.escape(path.stem)}\.old(\d+){re.escape(path.suffix)}")
    found = {int(match[1]): other for other in path.parent.glob("*.old*") if (match := numbered.fullmatch(other.name))}
    return [found[number] for number in sorted(found)]
