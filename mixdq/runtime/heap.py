"""Freed memory, given back to the system.

Large tensors that go while small ones around them stay leave holes, which the C library keeps for later. Where one
weight after another is replaced by a smaller one, the holes are soon most of the process.
"""

import ctypes
import functools
from collections.abc import Callable

WORTH_IT = 2**24
"""Bytes that are freed before any are given back, which takes milliseconds."""


class Heap:
    """The process's heap: counts what is freed in it, and gives back what is free when that has become much."""

    def __init__(self) -> None:
        self._freed = 0

    def freed(self, size: int) -> None:
        """Take note of `size` bytes that were freed, and give back what is free when `WORTH_IT` is reached."""
        self._freed += size
        if self._freed >= WORTH_IT:
            self.give_back()

    def give_back(self) -> None:
        """Give back what is free; nothing happens where there is no glibc."""
        self._freed = 0
        trim = _trim()
        if trim is not None:
            trim(0)


HEAP = Heap()
"""The one there is; its count decides when memory goes back, and no result."""


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int

    def call(kept: int) -> int:
        return int(trim(kept))

    return call
