"""How every benchmark measures and reports: in turns, medians with their spread, JSON with the machine's facts."""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from mixdq.workflow.doctor import machine_facts

SECONDS_TO_TELL = 0.5
"""The system counts busy time in hundredths of a second: what is shorter tells too little."""
PAGE_WIDTH = 160
_SYSTEM_TIMES, _MEMORY = Path("/proc/stat"), Path("/proc/meminfo")


@dataclass(frozen=True)
class Timing:
    """Seconds of one thing: the median, and the fastest and slowest run."""

    median: float
    fastest: float
    slowest: float


def in_turns(things: Mapping[str, Callable[[], object]], *, runs: int, least_seconds: float = 0.0) -> dict[str, Timing]:
    """Time each of `things` `runs` times, one after the other in every round, after a warm-up round.

    What takes less than `least_seconds` is repeated until it takes as long, and the time is of one repetition.
    """
    seconds: dict[str, list[float]] = {name: [] for name in things}
    repeats = {name: _repeats(thing, least_seconds) for name, thing in things.items()}
    for _ in range(runs):
        for name, thing in things.items():
            started = time.perf_counter()
            for _ in range(repeats[name]):
                thing()
            seconds[name].append((time.perf_counter() - started) / repeats[name])
    return {name: Timing(statistics.median(all_), min(all_), max(all_)) for name, all_ in seconds.items()}


def seconds_of(thing: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    started = time.perf_counter()
    thing()
    return time.perf_counter() - started


def machine_busy_seconds() -> float | None:
    """Return the seconds that all processors together have been busy since the machine began; None if not on Linux."""
    if not _SYSTEM_TIMES.exists():
        return None
    user, nice, system, _idle, _waiting, interrupts, soft, stolen, *_ = map(
        int, _SYSTEM_TIMES.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


def free_bytes() -> int | None:
    """Return the memory that new processes can have without any swapping; None if not on Linux."""
    if not _MEMORY.exists():
        return None
    lines = dict(line.split(":", 1) for line in _MEMORY.read_text(encoding="ascii").splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def console() -> Console:
    """Return where tables go: the terminal, or where there is none a page that is wide enough."""
    return Console(width=None if sys.stdout.isatty() else PAGE_WIDTH)


def count(text: str) -> int:
    """Return a number of times as the command line gives it, at least one."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return number


def _repeats(thing: Callable[[], object], least_seconds: float) -> int:
    thing()
    return max(1, round(least_seconds / max(seconds_of(thing), 1e-9)))


def write_json(path: Path, rows: Sequence[Mapping[str, object]], **facts: object) -> None:
    """Write rows with the machine's facts, the number of threads and `facts`."""
    machine = {**machine_facts(), "threads": str(torch.get_num_threads())}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, **facts, "rows": list(rows)}, indent=1) + "\n", encoding="utf-8")
