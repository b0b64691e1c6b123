"""Options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="A diffusers folder, hub id, or .safetensors checkpoint.", metavar="MODEL")]
RunArgument = Annotated[Path, typer.Argument(help="The run folder.", metavar="RUN")]
Output = Annotated[Path, typer.Option("-o", "--output", help="The run folder; made if absent.")]
WeightBits = Annotated[float | None, typer.Option(help="Greatest mean bits of a weight (default 4).")]
WeightMib = Annotated[float | None, typer.Option(help="Greatest size of all packed weights in MiB, instead of bits.")]
LatencyMs = Annotated[
    float | None, typer.Option(help="Greatest milliseconds of one denoiser call, as `benchmark --layers` measured.")
]
Program = Annotated[
    str | None, typer.Option(help="split: four programs and a sweep, as published (default); joint: one for all.")
]
Objective = Annotated[
    str | None, typer.Option(help="raw (as published), linear (default), or calibrated (joint; see mixdq fit).")
]
ActivationBits = Annotated[float | None, typer.Option(help="Greatest mean bits of an activation (default 8).")]
Prompts = Annotated[Path | None, typer.Option(help="A UTF-8 file of prompts, one a line.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps (default 1).")]
GuidanceScale = Annotated[float | None, typer.Option(help="Classifier-free guidance (default 0: none).")]
Size = Annotated[int | None, typer.Option(help="Height and width of the pictures in pixels (default: the model's).")]
Seed = Annotated[int | None, typer.Option(help="Chooses noise and order (default 0).")]
Keep = Annotated[list[str] | None, typer.Option(help="Layers left in floating point: a name pattern, repeatable.")]
ActivationScales = Annotated[
    str | None,
    typer.Option("--activations", help="static: scaled as calibrated (default); dynamic: at run time, each row."),
]
BackendName = Annotated[str | None, typer.Option("--backend", help="auto, or the name of one (see mixdq doctor).")]
EngineName = Annotated[str | None, typer.Option("--engine", help="Who measures: local (default), or ray: a cluster.")]
Address = Annotated[str | None, typer.Option(help="The Ray cluster, host:port or auto (default: one is started here).")]
