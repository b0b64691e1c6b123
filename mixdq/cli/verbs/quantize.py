"""`mixdq quantize MODEL -o OUT`: everything, in one command."""

from mixdq.cli.options import (
    ActivationBits,
    ActivationScales,
    Address,
    BackendName,
    EngineName,
    GuidanceScale,
    Keep,
    LatencyMs,
    Model,
    Objective,
    Output,
    Program,
    Prompts,
    Seed,
    Size,
    Steps,
    WeightBits,
    WeightMib,
)
from mixdq.cli.screen import console, evaluation_table, started


def command(
    model: Model,
    output: Output,
    weight_bits: WeightBits = None,
    activation_bits: ActivationBits = None,
    weight_mib: WeightMib = None,
    latency_ms: LatencyMs = None,
    program: Program = None,
    objective: Objective = None,
    prompts: Prompts = None,
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    size: Size = None,
    seed: Seed = None,
    keep: Keep = None,
    backend: BackendName = None,
    activations: ActivationScales = None,
    engine: EngineName = None,
    address: Address = None,
) -> None:
    """Quantize MODEL; OUT/model is a plain diffusers folder, OUT/report.html the proof that its pictures are good."""
    from mixdq.workflow import steps as workflow
    from mixdq.workflow.settings import configured, with_budget, with_engine

    config = configured(
        output,
        model,
        prompts=prompts,
        steps=steps,
        guidance_scale=guidance_scale,
        size=size,
        seed=seed,
        keep=keep,
        backend=backend,
        activations=activations,
    )
    config = with_budget(
        config,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        weight_mib=weight_mib,
        latency_ms=latency_ms,
        program=program,
        objective=objective,
    )
    config = with_engine(config, engine=engine, address=address)
    with started(output, config) as session:
        evaluations, report = workflow.run(session)
    evaluation_table(evaluations)
    console.print(f"model:  {session.variant.model}\nreport: {report}")
