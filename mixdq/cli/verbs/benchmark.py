"""`mixdq benchmark RUN`: seconds and memory, floating point against quantized; or milliseconds of every layer."""

from typing import Annotated

import typer
from rich.table import Table

from mixdq.cli.options import RunArgument
from mixdq.cli.screen import console, opened

Layers = Annotated[
    bool, typer.Option("--layers", help="Time every layer at every pair of widths instead, for --latency-ms.")
]

Tune = Annotated[bool, typer.Option("--tune", help="On a GPU: first find the fastest tiles of its kernels.")]

Graphs = Annotated[
    bool, typer.Option("--cuda-graphs", help="On a GPU: launch each denoiser as one graph, as use_cuda_graphs does.")
]


def command(run: RunArgument, layers: Layers = False, tune: Tune = False, cuda_graphs: Graphs = False) -> None:
    """Write benchmark.json of a run: each model in a process of its own; or, of single layers, latency.json."""
    from mixdq.workflow import benchmark, steps

    if layers:
        if cuda_graphs:
            raise typer.BadParameter("--layers has the whole call as a graph on a GPU anyway: leave out --cuda-graphs")
        with opened(run) as session:
            latency = steps.time_layers(session, tune=tune)
        console.print(f"{len(latency.layers)} layers, {latency.rest:.2f} ms between them: {run / 'latency.json'}")
        return
    with opened(run) as session:
        costs = benchmark.benchmark(session, tune=tune, graphs=cuda_graphs)
    rows = Table("model", "s / picture", "first picture s", "loading s", "peak MiB")
    for name, cost in costs.items():
        peak = "-" if cost.peak_memory is None else f"{cost.peak_memory / 2**20:.0f}"
        rows.add_row(name, f"{cost.seconds:.3f}", f"{cost.first_seconds:.3f}", f"{cost.load_seconds:.2f}", peak)
    console.print(rows)
    console.print(f"numbers: {session.paths.benchmark}")
