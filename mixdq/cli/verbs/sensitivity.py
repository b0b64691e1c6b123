"""`mixdq sensitivity RUN`: what each layer costs at each width."""

from mixdq.cli.options import RunArgument
from mixdq.cli.screen import console, opened


def command(run: RunArgument) -> None:
    """Write sensitivity.csv of a run, row by row; an interrupted run goes on where it stopped."""
    from mixdq.workflow import steps

    with opened(run) as session:
        table = steps.measure(session)
    console.print(f"{len(table.scores)} scores: {session.paths.sensitivity}")
