"""`mixdq calibrate RUN`: activation ranges and BOS rows."""

from mixdq.cli.options import RunArgument
from mixdq.cli.screen import console, opened


def command(run: RunArgument) -> None:
    """Write calibration.safetensors of a run."""
    from mixdq.workflow import steps

    with opened(run) as session:
        record = steps.calibrate(session)
    rows = f", {len(record.bos_outputs)} BOS rows" if record.bos_outputs else ""
    console.print(f"{len(record.ranges)} layers calibrated{rows}: {session.paths.calibration}")
