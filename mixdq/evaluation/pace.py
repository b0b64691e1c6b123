"""How fast the machine is just now: a product of matrices, always the same, timed beside what is to be timed.

Clocks rise and fall with heat and with neighbours, by more than two widths of a layer differ in. What is measured
within minutes can be compared all the same, each call beside the pace it was made at.
"""

import statistics
import time
from collections.abc import Callable

import torch

from mixdq.evaluation.timing import wait_for_device

SIDE = 1024
LEAST_SECONDS = 0.05
FIRST_LOOKS = 5


class Pace:
    """The machine's pace, look by look; `unit` is the pace of the first ones, in seconds."""

    def __init__(self, device: str | torch.device = "cpu", *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._matrix = torch.ones(SIDE, SIDE, device=device)
        self._count = 1
        self._product()
        self._count = max(1, round(LEAST_SECONDS / max(self._product(), 1e-6)))
        self._looks = [self._product() for _ in range(FIRST_LOOKS)]
        self.unit = statistics.median(self._looks)

    def time(self, call: Callable[[], object]) -> tuple[float, float]:
        """Return the seconds of `call`, and the pace beside it as a share of `unit`: 2 is half as fast as at first."""
        before = self._look()
        wait_for_device()
        started = self.clock()
        call()
        wait_for_device()
        seconds = self.clock() - started
        return seconds, (before + self._look()) / (2.0 * self.unit)

    @property
    def typical(self) -> float:
        """The median of all looks, as a share of `unit`."""
        return statistics.median(self._looks) / self.unit

    def _look(self) -> float:
        self._looks.append(self._product())
        return self._looks[-1]

    def _product(self) -> float:
        wait_for_device()
        started = self.clock()
        for _ in range(self._count):
            self._matrix @ self._matrix
        wait_for_device()
        return self.clock() - started
