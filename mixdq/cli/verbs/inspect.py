"""`mixdq inspect MODEL -o RUN`: what a model is made of; begins a run folder."""

from rich.table import Table

from mixdq.cli.options import GuidanceScale, Keep, Model, Output, Prompts, Seed, Size, Steps
from mixdq.cli.screen import console, started


def command(
    model: Model,
    output: Output,
    prompts: Prompts = None,
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    size: Size = None,
    seed: Seed = None,
    keep: Keep = None,
) -> None:
    """Write config.toml and layers.json of a run."""
    from mixdq.workflow import steps as workflow
    from mixdq.workflow.settings import configured

    config = configured(
        output,
        model,
        prompts=prompts,
        steps=steps,
        guidance_scale=guidance_scale,
        size=size,
        seed=seed,
        keep=keep,
        backend=None,
    )
    with started(output, config, everything=False) as session:
        table = workflow.inspect(session)
    rows = Table("group", "layers", "with BOS", "joined", "weights (M)", "GMAC a picture and step")
    for group in ("content", "quality"):
        layers = [layer for layer in table if layer.group == group]
        rows.add_row(
            group,
            str(len(layers)),
            str(sum(layer.bos for layer in layers)),
            str(sum(bool(layer.input_splits) for layer in layers)),
            f"{sum(layer.weight_numel for layer in layers) / 1e6:.2f}",
            f"{sum(layer.macs for layer in layers) / 1e9:.2f}",
        )
    console.print(rows)
    console.print(f"{len(table)} layers of family {table.family}: {session.paths.layers}")
