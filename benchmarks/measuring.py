"""How every benchmark measures and reports: in turns, medians with their spread, JSON with the machine's facts."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mixdq.workflow.doctor import machine_facts


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


def _repeats(thing: Callable[[], object], least_seconds: float) -> int:
    thing()
    return max(1, round(least_seconds / max(seconds_of(thing), 1e-9)))


def write_json(path: Path, rows: Sequence[Mapping[str, object]], **facts: object) -> None:
    """Write rows with the machine's facts, the number of threads and `facts`."""
    machine = {**machine_facts(), "threads": str(torch.get_num_threads())}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, **facts, "rows": list(rows)}, indent=1) + "\n", encoding="utf-8")
