"""How long a picture takes: the median of some runs after a warm-up."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

LEAST_SECONDS = 0.5
"""How long is timed in all, for a neighbour's burst spoils several calls of a small model."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds for one picture of each timed run, in order; warm-up runs are left out."""

    seconds_per_picture: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median, in seconds a picture."""
        return statistics.median(self.seconds_per_picture)


def time_pictures(
    make: Callable[[], object],
    *,
    pictures: int,
    repeats: int = 3,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Return the time of calls of `make`, each making `pictures` pictures, after `warm_up` calls.

    There are at least `repeats` of them, and as many more as it takes to fill `LEAST_SECONDS`. A GPU, where torch has
    one, is waited for before the clock is read.
    """
    if pictures < 1 or repeats < 1 or warm_up < 0:
        raise ValueError(f"pictures = {pictures}, repeats = {repeats}, warm_up = {warm_up}: nothing to time")
    for _ in range(warm_up):
        make()
    seconds: list[float] = []
    while len(seconds) < repeats or sum(seconds) * pictures < LEAST_SECONDS:
        wait_for_device()
        start = clock()
        make()
        wait_for_device()
        seconds.append((clock() - start) / pictures)
    return Timing(seconds_per_picture=tuple(seconds))


def wait_for_device() -> None:
    """Return when a GPU, where torch has one in use, has done all it was given."""
    if device_in_use():
        torch.cuda.synchronize()


def device_in_use() -> bool:
    """Return whether there is a GPU that torch has used."""
    return torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
