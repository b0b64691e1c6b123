"""Bytes: what this process holds and the most that it has held, and what saved weights take on disk."""

import resource
import sys
from pathlib import Path

from mixdq.errors import ArtifactFormatError

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def peak_resident_bytes() -> int:
    """Return the greatest resident memory of this process since it began, or since `reset_peak_resident`."""
    found = _status_bytes("VmHWM:")
    if found is not None:
        return found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, every other Unix KiB.
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int | None:
    """Return the resident memory of this process now; None where the system does not say (anything but Linux)."""
    return _status_bytes("VmRSS:")


def reset_peak_resident() -> bool:
    """Forget the peak so far and return True; return False where the system cannot (anything but Linux)."""
    try:
        _CLEAR_REFS.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def weight_bytes_on_disk(folder: Path) -> int:
    """Return the bytes of every safetensors file in `folder` and below: headers, scales and codes, all of it.

    Raises:
        ArtifactFormatError: there is none, or one is empty.
    """
    files = sorted(folder.rglob("*.safetensors"))
    sizes = {file: file.stat().st_size for file in files}
    empty = [str(file) for file, size in sizes.items() if size == 0]
    if empty:
        raise ArtifactFormatError(f"empty weight files: {', '.join(empty)}; save the model again")
    if not sizes:
        raise ArtifactFormatError(f"{folder}: no safetensors files; expected the folder of a saved model")
    return sum(sizes.values())


def _status_bytes(field: str) -> int | None:
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return None
