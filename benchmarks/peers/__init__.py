"""Other quantizers, one file each; a package that is not installed is a `MissingError` with what to install."""

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
