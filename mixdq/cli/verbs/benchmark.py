"""`mixdq benchmark RUN`: seconds and memory, floating point against quantized."""

from typing import Annotated

import typer
from rich.table import Table

from mixdq.cli.options import RunArgument
from mixdq.cli.screen import console, opened


def command(
    run: RunArgument,
    tune: Annotated[bool, typer.Option("--tune", help="on a GPU: first find the fastest tiles of its kernels")] = False,
) -> None:
    """Write benchmark.json of a run: each model in a process of its own."""
    from mixdq.workflow import benchmark

    with opened(run) as session:
        costs = benchmark.benchmark(session, tune=tune)
    rows = Table("model", "s / picture", "first picture s", "loading s", "peak MiB")
    for name, cost in costs.items():
        peak = "-" if cost.peak_memory is None else f"{cost.peak_memory / 2**20:.0f}"
        rows.add_row(name, f"{cost.seconds:.3f}", f"{cost.first_seconds:.3f}", f"{cost.load_seconds:.2f}", peak)
    console.print(rows)
    console.print(f"numbers: {session.paths.benchmark}")
