"""`mixdq demo`: the whole job on the embedded model."""

from pathlib import Path
from typing import Annotated

import typer

from mixdq.cli.progress import progress_bar
from mixdq.cli.screen import console, evaluation_table


def command(
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder for everything.")] = Path("mixdq-demo"),
    ablation: Annotated[
        bool, typer.Option("--ablation", help="Add the paper's ablation: no BOS rows, one metric.")
    ] = False,
) -> None:
    """Quantize the embedded model in several ways; write the pictures, summary.json and report.html."""
    from mixdq.demo.run import run_demo

    with progress_bar() as progress:
        result = run_demo(output, ablation=ablation, progress=progress)
    evaluation_table(result.evaluations)
    console.print(f"numbers: {result.summary}\nreport:  {result.report}")
