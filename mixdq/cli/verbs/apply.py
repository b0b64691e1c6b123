"""`mixdq apply RUN`: the model, quantized by the chosen plan, as a diffusers folder.

`mixdq apply --plan PLAN MODEL`: another model of the same architecture, quantized by a plan that is there already.
"""

from pathlib import Path
from typing import Annotated

import typer

from mixdq.cli.options import ActivationScales, BackendName, GuidanceScale, Prompts, Seed, Size, Steps
from mixdq.cli.screen import console, opened, started
from mixdq.types.receipt import Receipt


def command(
    target: Annotated[str, typer.Argument(help="The run folder; with --plan a model.", metavar="RUN|MODEL")],
    plan: Annotated[
        Path | None, typer.Option(help="The plan.toml of another run: quantize MODEL by it, after a check.")
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
    from mixdq.workflow.transfer import apply_plan

    # A plan that cannot be read is refused before a folder is begun.
    read_plan(plan)
    folder = output or Path(f"{Path(target).resolve().name.removesuffix('.safetensors')}-MixDQ")
    config = configured(
        folder,
        target,
        like=settings_of(plan),
        prompts=prompts,
        steps=steps,
        guidance_scale=guidance_scale,
        size=size,
        seed=seed,
        backend=backend,
        activations=activations,
    )
    with started(folder, config) as session:
        check, receipt = apply_plan(session, plan, force=force)
    console.print(check.text)
    _say(receipt, session.variant.model)


def _say(receipt: Receipt, model: Path) -> None:
    before, after = receipt.bytes_before / 2**20, receipt.bytes_after / 2**20
    console.print(f"{before:.1f} MiB in 16 bits, {after:.1f} MiB now: {model}")
