"""`mixdq generate MODEL PROMPT...`: pictures, with any model folder."""

from pathlib import Path
from typing import Annotated

import typer

from mixdq.cli.options import GuidanceScale, Model, Prompts, Seed, Size, Steps
from mixdq.cli.progress import progress_bar
from mixdq.cli.screen import console


def command(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder for the pictures; made if absent.")],
    prompt: Annotated[list[str] | None, typer.Argument(help="What to draw; several make several pictures.")] = None,
    prompts: Prompts = None,
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    size: Size = None,
    seed: Seed = None,
) -> None:
    """Write one PNG a prompt; MODEL may be a floating-point or a quantized folder."""
    from mixdq.errors import PromptError
    from mixdq.pipeline.prompts import read_prompts
    from mixdq.workflow import api
    from mixdq.workflow.pictures import write_pictures

    lines = [*(prompt or []), *(read_prompts(prompts) if prompts else ())]
    if not lines:
        raise PromptError("nothing to draw: give a prompt, or a file of them with --prompts")
    with progress_bar() as progress:
        pictures = api.generate(
            model,
            lines,
            steps=1 if steps is None else steps,
            guidance_scale=0.0 if guidance_scale is None else guidance_scale,
            size=size,
            seed=0 if seed is None else seed,
            progress=progress,
        )
    for line, path in zip(lines, write_pictures(output, pictures), strict=True):
        console.print(f"{path}  {line}")
