"""`mixdq run CONFIG`: all steps, as a config.toml says."""

from pathlib import Path
from typing import Annotated

import typer

from mixdq.cli.options import Address, EngineName
from mixdq.cli.screen import console, evaluation_table, started


def command(
    config: Annotated[Path, typer.Argument(help="A config.toml.", metavar="CONFIG")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The run folder (default: the config's own folder).")
    ] = None,
    engine: EngineName = None,
    address: Address = None,
) -> None:
    """Do all steps; those that are done and up to date are not done again."""
    from mixdq.config import load_config
    from mixdq.workflow import steps
    from mixdq.workflow.settings import with_engine

    settings = with_engine(load_config(config), engine=engine, address=address)
    with started(output or config.parent, settings) as session:
        evaluations, report = steps.run(session)
    evaluation_table(evaluations)
    console.print(f"model:  {session.variant.model}\nreport: {report}")
