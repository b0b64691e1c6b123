"""`mixdq choose RUN`: the plan whose pictures are best."""

from mixdq.cli.options import RunArgument
from mixdq.cli.screen import console, opened


def command(run: RunArgument) -> None:
    """Write plan.toml of a run."""
    from mixdq.workflow import steps

    with opened(run) as session:
        plan = steps.choose(session)
    console.print(f"{plan.name}: {session.paths.plan}")
