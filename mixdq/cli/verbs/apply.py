"""`mixdq apply RUN`: the model, quantized by the chosen plan, as a diffusers folder.

`mixdq apply --plan PLAN MODEL`: another model of the same architecture, quantized by a plan that is there already, or
a model quantized to the same bits everywhere, such as `--plan "W8A8 float"`.
"""

from pathlib import Path
from typing import Annotated

import typer

from mixdq.cli.options import ActivationScales, BackendName, GuidanceScale, Prompts, Seed, Size, Steps
from mixdq.cli.screen import console, opened, started
from mixdq.types.plan import LayerBits
from mixdq.types.receipt import Receipt


def command(
    target: Annotated[str, typer.Argument(help="The run folder; with --plan a model.", metavar="RUN|MODEL")],
    plan: Annotated[
        str | None,
        typer.Option(
            help="Quantize MODEL by the plan.toml of another run, after a check; or to the same bits everywhere, such "
            'as "W4A8" or "W8A8 float".'
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="With --plan: the new run's folder (default MODEL-MixDQ).")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="With --plan: go on where the plan does not fit, or ruins the pictures.")
    ] = False,
    prompts: Prompts = None,
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    size: Size = None,
    seed: Seed = None,
    backend: BackendName = None,
    activations: ActivationScales = None,
) -> None:
    """Write model/ and receipt.json of a run; with --plan begin the run, and write transfer.json, the check, first."""
    if plan is None:
        given = (output, prompts, steps, guidance_scale, size, seed, backend, activations)
        if force or any(value is not None for value in given):
            raise typer.BadParameter("a run has its settings in config.toml; options go with --plan only")
        from mixdq.workflow import steps as workflow

        with opened(Path(target)) as session:
            receipt = workflow.apply(session)
        _say(receipt, session.variant.model)
        return

    from mixdq.store.plan_file import read_plan
    from mixdq.workflow.settings import configured
    from mixdq.workflow.source import settings_of
    from mixdq.workflow.transfer import apply_plan, write_named_plan

    named = _named(plan)
    if named is None:
        # A plan that cannot be read is refused before a folder is begun.
        read_plan(Path(plan))
    folder = output or Path(f"{Path(target).resolve().name.removesuffix('.safetensors')}-MixDQ")
    config = configured(
        folder,
        target,
        like=settings_of(Path(plan)) if named is None else None,
        prompts=prompts,
        steps=steps,
        guidance_scale=guidance_scale,
        size=size,
        seed=seed,
        backend=backend,
        activations=activations,
    )
    with started(folder, config) as session:
        path = Path(plan) if named is None else write_named_plan(session, named)
        check, receipt = apply_plan(session, path, force=force)
    console.print(check.text)
    _say(receipt, session.variant.model)


def _named(plan: str) -> LayerBits | None:
    """Return the bits that a plan is named by; None where it is a file."""
    if Path(plan).exists():
        return None
    try:
        return LayerBits.parse(plan)
    except ValueError:
        return None


def _say(receipt: Receipt, model: Path) -> None:
    before, after = receipt.bytes_before / 2**20, receipt.bytes_after / 2**20
    console.print(f"{before:.1f} MiB in 16 bits, {after:.1f} MiB now: {model}")
