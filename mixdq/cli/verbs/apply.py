"""`mixdq apply RUN`: the model, quantized by the chosen plan, as a diffusers folder."""

from mixdq.cli.options import RunArgument
from mixdq.cli.screen import console, opened


def command(run: RunArgument) -> None:
    """Write model/ and receipt.json of a run."""
    from mixdq.workflow import steps

    with opened(run) as session:
        receipt = steps.apply(session)
    before, after = receipt.bytes_before / 2**20, receipt.bytes_after / 2**20
    console.print(f"{before:.1f} MiB in 16 bits, {after:.1f} MiB now: {session.variant.model}")
