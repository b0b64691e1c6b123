"""Other quantizers, one file each; a package that is not installed is a `MissingError` with what to install."""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from benchmarks.case import MissingError


def versions(*packages: str) -> dict[str, str]:
    """Return package -> version; raise MissingError where one is not installed."""
    found, missing = {}, []
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        raise MissingError(f"not installed: {', '.join(missing)} (pip install 'mixdq[peers]')")
    return found


def installed(*packages: str) -> dict[str, str]:
    """Return package -> version of those that are installed."""
    found: dict[str, str] = {}
    for package in packages:
        with suppress(MissingError):
            found |= versions(package)
    return found
