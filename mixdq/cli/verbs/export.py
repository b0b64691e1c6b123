"""`mixdq export MODEL -o FILE`: a quantized UNet as one file in ComfyUI's own format."""

from pathlib import Path
from typing import Annotated

import typer

from mixdq.cli.screen import console

Saved = Annotated[Path, typer.Argument(help="The folder of a quantized pipeline, such as RUN/model.", metavar="MODEL")]
File = Annotated[Path, typer.Option("-o", "--output", help="The .safetensors file to be written.")]


def command(model: Saved, output: File) -> None:
    """Write the UNet of a quantized pipeline as a checkpoint that ComfyUI opens without any node of ours.

    Linear layers stay integers of 8 bits there; convolutions, which ComfyUI has no integers for, become float16. What
    each layer became is listed.
    """
    from mixdq.integrations.comfyui import export_comfyui

    console.print(str(export_comfyui(model, output)), markup=False, highlight=False)
