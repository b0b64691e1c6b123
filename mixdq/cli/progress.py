"""A progress bar with the time left, on a terminal only; elsewhere a line now and then would only fill logs."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mixdq.types.progress import Progress as Report
from mixdq.types.progress import no_progress


@contextmanager
def progress_bar() -> Iterator[Report]:
    """Yield a function `report(done, total, what)` that draws one bar for each `what`."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield no_progress
        return
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    bars, tasks = Progress(*columns, console=console), {}

    def report(done: int, total: int, what: str) -> None:
        # Not before there is something to draw: a download comes first, and draws bars of its own.
        bars.start()
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done, total=total)

    try:
        yield report
    finally:
        bars.stop()
