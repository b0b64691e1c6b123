"""What the processor has that integer kernels live on, as far as the system says."""

import platform
import sys
from pathlib import Path

FEATURES = {
    "x86_64": {
        "sse2": "SSE2",
        "avx2": "AVX2",
        "avx_vnni": "AVX-VNNI",
        "avx512bw": "AVX512",
        "avx512_vnni": "AVX512-VNNI",
        "avx512_bf16": "AVX512-BF16",
        "amx_int8": "AMX-INT8",
        "amx_bf16": "AMX-BF16",
    },
    "aarch64": {"asimd": "NEON", "asimddp": "dot products", "i8mm": "I8MM", "bf16": "BF16"},
}
"""Machine -> flag of /proc/cpuinfo -> the feature's name."""
UNUSED = ("AMX-INT8", "AMX-BF16", "AVX512-BF16", "BF16")
"""Features that none of our kernels uses, where they would do for products."""

CPUINFO = Path("/proc/cpuinfo")


def features() -> tuple[str, ...] | None:
    """Return the names of the features that are there, the plainest first; None where the system does not say."""
    known = FEATURES.get(platform.machine())
    line = identity().get("flags") or identity().get("Features")
    if known is None or line is None:
        return None
    flags = set(line.split())
    return tuple(name for flag, name in known.items() if flag in flags)


def description() -> str:
    """Return the features in one line, apart those that our kernels leave alone; "unknown" where nobody says."""
    found = features()
    if found is None:
        return "unknown"
    used, unused = ([name for name in found if (name in UNUSED) is left] for left in (False, True))
    left_alone = f" (there too, but not used by our kernels: {', '.join(unused)})" if unused else ""
    return (", ".join(used) or "none that our kernels know") + left_alone


def identity() -> dict[str, str]:
    """Return what /proc/cpuinfo says of the first processor, name -> value; empty where there is no such file."""
    if sys.platform != "linux":
        return {}
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}
