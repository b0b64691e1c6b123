"""`mixdq evaluate RUN`: the quantized model's pictures against the floating-point model's."""

from mixdq.cli.options import RunArgument
from mixdq.cli.screen import evaluation_table, opened


def command(run: RunArgument) -> None:
    """Write images/ and evaluation.json of a run."""
    from mixdq.workflow import steps

    with opened(run) as session:
        evaluations = steps.evaluate(session)
    evaluation_table(evaluations)
