"""`mixdq fit RUN`: how the losses of layers add up to the error of a picture, found on whole plans."""

from mixdq.cli.options import RunArgument
from mixdq.cli.screen import console, opened


def command(run: RunArgument) -> None:
    """Write objective.json of a run, plan by plan; `mixdq allocate RUN --objective calibrated` then uses it."""
    from mixdq.workflow import steps

    with opened(run) as session:
        model = steps.fit(session)
    for group, roles in model.weights.items():
        for role, weight in roles.items():
            console.print(f"{group} {role}: weight {weight:.3f}")
    console.print(f"Spearman on plans left out: {model.correlation:.3f} ({model.plans} plans)")
