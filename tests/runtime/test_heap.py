import ctypes
from pathlib import Path

import pytest
import torch

from mixdq.runtime.heap import WORTH_IT, Heap

STATUS = Path("/proc/self/status")


def resident() -> int:
    return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith("VmRSS:"))


@pytest.mark.skipif(not STATUS.exists(), reason="this system does not say what is resident")
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="no glibc")
def test_holes_between_small_things_that_stay_are_given_back_once_they_are_many() -> None:
    # Below the size that the C library maps by itself.
    large, small = [], []
    for _ in range(2**10):
        large.append(torch.ones(2**12))
        small.append(torch.ones(2**6))
    full, size = resident(), sum(one.nbytes for one in large)
    large.clear()
    heap = Heap()
    heap.freed(WORTH_IT - 1)
    kept = resident()
    heap.freed(1)
    assert resident() < full - size // 2
    assert resident() <= kept
    assert all(bool((one == 1.0).all()) for one in small)
