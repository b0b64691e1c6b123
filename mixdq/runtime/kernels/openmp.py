"""The OpenMP runtimes of this process: whose threads share the kernels' work.

torch brings one. Threads of a second one would wait for work by spinning beside those of the first, on the same cores.
On Linux torch's is libgomp, gcc's; what gcc makes is linked against that very file, under whatever name torch ships it.
What clang makes needs libomp, a second one: so gcc is looked for first. Apple's clang has no OpenMP: one thread there.
"""

import re
from pathlib import Path

import torch

MAPS = Path("/proc/self/maps")
_NAME = re.compile(r"lib(g|i)?omp\d?[-.].*so.*|lib(g|i)?omp\d?\.so.*")


def runtimes() -> tuple[Path, ...]:
    """Return the files of the runtimes loaded so far, torch's own first; none where the system does not say."""
    try:
        lines = MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    paths = {Path(fields[5]) for fields in (line.split(maxsplit=5) for line in lines) if len(fields) == 6}
    found = sorted(path for path in paths if _NAME.fullmatch(path.name))
    site = Path(torch.__file__).parent.parent
    return tuple(sorted(found, key=lambda path: not path.is_relative_to(site)))


def options() -> list[str]:
    """Return the linker's options that bind to torch's runtime, if it is one the compiler's code can call."""
    # What the code does not need, such as libgomp where it was made for libomp, is left out.
    return ["-Wl,--as-needed", *map(str, runtimes()[:1])] if runtimes() else []
