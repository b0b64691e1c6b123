"""Which candidates are in memory together, and their calls in turns."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.candidates import CANDIDATES
from benchmarks.case import Case, MissingError
from benchmarks.workers import Ready, Turn, Worker


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of a candidate in one group.

    Attributes:
        seconds: of every call but the first.
        others: the median share of the machine's time that went to anything else while it was called.
        times_as_fast: against the candidate that the group shares with the others, by medians.
    """

    name: str
    group: int
    first_call: float
    weight_bytes: int
    peak_bytes: int
    seconds: tuple[float, ...]
    others: float | None
    times_as_fast: float | None

    @property
    def median(self) -> float:
        """The median of all calls but the first."""
        return statistics.median(self.seconds)


def groups(names: Sequence[str], against: str, case: Case, limit: float | None) -> list[list[str]]:
    """Return the candidates in groups that fit in `limit` bytes by estimate, `against` the first of each.

    Each joins the first group that has room. One that fits beside nothing is a group by itself. `limit` None is no
    limit.
    """
    if limit is None or fits(names, case, limit):
        return [list(names)] if names else []
    shared = [against] if against in names else []
    made: list[list[str]] = []
    for name in (one for one in names if one not in shared):
        for group in made:
            if fits([*group, name], case, limit):
                group.append(name)
                break
        else:
            made.append([*shared, name] if fits([*shared, name], case, limit) else [name])
    measured = {name for group in made for name in group}
    return made if measured.issuperset(shared) else [shared, *made]


def fits(names: Iterable[str], case: Case, limit: float) -> bool:
    """Return whether candidates that are loaded one after the other stay below `limit` bytes, by estimate."""
    held = 0.0
    for name in names:
        if held + CANDIDATES[name].bytes_loading(case) > limit:
            return False
        held += CANDIDATES[name].bytes_held(case)
    return True


def measure(
    names: Sequence[str], case: Case, logs: Path, *, runs: int, group: int, against: str, at_once: bool = False
) -> tuple[list[Row], dict[str, str]]:
    """Load the candidates one after the other, call each once a turn, and return rows, and reasons of those without.

    With `at_once` all load at the same time, which takes the more memory and makes first calls slow.
    """
    running: dict[str, Worker] = {}
    reasons: dict[str, str] = {}
    ready: dict[str, Ready] = {}
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    try:
        if at_once:
            running = {name: Worker(name, case, logs) for name in names}
        for name in names:
            if name not in running:
                running[name] = Worker(name, case, logs)
            try:
                ready[name] = running[name].ready()
            except MissingError as reason:
                reasons[name] = str(reason)
                running.pop(name).stop()
        for _ in range(runs):
            for name, worker in list(running.items()):
                try:
                    turns[name].append(worker.turn())
                except MissingError as reason:
                    reasons[name] = str(reason)
                    running.pop(name).stop()
        done = list(running)
    finally:
        for worker in running.values():
            worker.stop()
    medians = {name: statistics.median(turn.seconds for turn in turns[name]) for name in done}
    rows = [
        _row(name, group, ready[name], turns[name], medians[against] / medians[name] if against in medians else None)
        for name in done
    ]
    return rows, reasons


def _row(name: str, group: int, ready: Ready, turns: Sequence[Turn], times_as_fast: float | None) -> Row:
    others = [turn.others for turn in turns if turn.others is not None]
    return Row(
        name=name,
        group=group,
        first_call=ready.first_call,
        weight_bytes=ready.weight_bytes,
        peak_bytes=turns[-1].peak_bytes,
        seconds=tuple(turn.seconds for turn in turns),
        others=statistics.median(others) if others else None,
        times_as_fast=times_as_fast,
    )
