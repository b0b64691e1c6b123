"""`mixdq sensitivity RUN`: what each layer costs at each width."""

from mixdq.cli.options import Address, EngineName, RunArgument
from mixdq.cli.screen import console, opened


def command(run: RunArgument, engine: EngineName = None, address: Address = None) -> None:
    """Write sensitivity.csv of a run, row by row; an interrupted run goes on where it stopped, by any engine."""
    from mixdq.workflow import steps
    from mixdq.workflow.settings import with_engine

    with opened(run) as session:
        session.config = with_engine(session.config, engine=engine, address=address)
        table = steps.measure(session)
        # Kept once it has been found to work.
        session.change(session.config)
    console.print(f"{len(table.scores)} scores: {session.paths.sensitivity}")
