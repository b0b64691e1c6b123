"""`mixdq report RUN`: report.html and report.md from what is on file. Needs no model and no torch."""

from mixdq.cli.options import RunArgument
from mixdq.cli.screen import console, opened


def command(run: RunArgument) -> None:
    """Write report.html and report.md of a run."""
    from mixdq.workflow import reporting

    with opened(run) as session:
        path = reporting.report(session)
    console.print(f"report: {path}")
