"""The public functions of `mixdq`: every step by itself, and `quantize` for all of them.

A model is a folder, a hub id or a loaded pipeline. Prompts default to those of the package. Nothing is written but by
`quantize` with `output`; the command line keeps a run folder instead.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import torch
from torch import Tensor

from mixdq.allocation import sweep
from mixdq.calibration import collect
from mixdq.config import RunConfig, build_config
from mixdq.evaluation.compare import Comparison, compare
from mixdq.metrics.base import METRICS, Metric
from mixdq.pipeline import generate as drawing
from mixdq.pipeline.family import Pipeline, find_family
from mixdq.pipeline.generate import GenerationSpec
from mixdq.pipeline.layers import list_layers
from mixdq.pipeline.load import load_pipeline
from mixdq.runtime.select import AUTO
from mixdq.selection import choose as selection
from mixdq.sensitivity import measure as sensitivity
from mixdq.types.layers import LayerTable
from mixdq.types.plan import Activations, BitPlan, Budget
from mixdq.types.progress import Progress, no_progress
from mixdq.types.scores import SensitivityTable
from mixdq.types.tensors import CalibrationRecord
from mixdq.workflow.denoiser import quantize_denoiser
from mixdq.workflow.session import Session
from mixdq.workflow.settings import calibration_prompts, device_of, dtype_of, sensitivity_prompts

Model: TypeAlias = str | Path | Pipeline


def quantize(
    model: Model,
    *,
    weight_bits: float = 4.0,
    activation_bits: float = 8.0,
    prompts: str | Path | None = None,
    steps: int = 1,
    guidance_scale: float = 0.0,
    size: int | None = None,
    seed: int = 0,
    backend: str | None = None,
    activations: Activations = "static",
    method: str = "hybrid",
    checkpointing: bool = False,
    output: str | Path | None = None,
    progress: Progress = no_progress,
) -> Pipeline:
    """Return the pipeline with its denoiser quantized within the budget; all steps of the method are done.

    A pipeline that is handed over loaded is changed in place and returned. `prompts` is a UTF-8 file, one a line.
    `activations` are "static", scaled as calibrated, or "dynamic", scaled at run time. `method` and `checkpointing` say
    how sensitivities are found, as in `SensitivityConfig`.
    With `output` the folder holds everything that `mixdq quantize` writes, report included, an interrupted call goes
    on from there, and `output/model` is the saved pipeline.

    Raises:
        MixDQError: the model is not known, the budget out of reach, or a setting wrong; see `mixdq.errors`.
    """
    loaded = model if isinstance(model, Pipeline) else None
    path = str(model) if loaded is None else str(loaded.config.get("_name_or_path") or type(loaded).__name__)
    config = build_config(
        {
            "model": {"path": path},
            "generation": {
                "steps": steps,
                "guidance_scale": guidance_scale,
                "height": size,
                "width": size,
                "seed": seed,
            },
            "calibration": {"prompts": None if prompts is None else str(prompts)},
            "sensitivity": {"method": method, "checkpointing": checkpointing},
            "allocation": {"weight_bits": float(weight_bits), "activation_bits": float(activation_bits)},
            "conversion": {"activations": activations} | ({} if backend is None else {"backend": backend}),
        },
        "quantize",
    )
    if output is not None:
        return _run(Path(output), config, loaded, progress, report=True)
    with TemporaryDirectory(prefix="mixdq-") as folder:
        return _run(Path(folder), config, loaded, progress, report=False)


def _run(folder: Path, config: RunConfig, loaded: Pipeline | None, progress: Progress, *, report: bool) -> Pipeline:
    from mixdq.workflow import steps

    session = Session.start(folder, config, pipe=loaded, progress=progress)
    if report:
        steps.run(session)
        if loaded is None:
            return load_pipeline(session.variant.model, dtype=dtype_of(config), device=device_of(config))
        if session.converted:
            return loaded
    steps.check_backend(session)
    plan, record = steps.choose(session), steps.calibrate(session)
    pipe = session.pipe
    session.release()
    return apply(pipe, plan, record, steps.inspect(session), **config.conversion.model_dump(), progress=progress)


def inspect(model: Model, *, spec: GenerationSpec | None = None) -> LayerTable:
    """Return the quantizable layers of a model, found by one call of its denoiser at the size of `spec`."""
    pipe = load_pipeline(model)
    return list_layers(pipe, find_family(pipe), spec or GenerationSpec(), model=_name(model))


def calibrate(
    model: Model,
    prompts: Sequence[str] | None = None,
    *,
    table: LayerTable | None = None,
    spec: GenerationSpec | None = None,
    estimator: str = "moving_average",
    progress: Progress = no_progress,
) -> CalibrationRecord:
    """Return activation ranges and BOS rows of a model on `prompts`."""
    pipe = load_pipeline(model)
    return collect.calibrate(
        pipe,
        find_family(pipe),
        table or inspect(pipe, spec=spec),
        prompts or calibration_prompts(_plain(model)),
        spec or GenerationSpec(),
        estimator=estimator,
        progress=progress,
    )


def measure(
    model: Model,
    record: CalibrationRecord,
    prompts: Sequence[str] | None = None,
    *,
    table: LayerTable | None = None,
    spec: GenerationSpec | None = None,
    activations: Activations = "static",
    method: str = "hybrid",
    checkpointing: bool = False,
    progress: Progress = no_progress,
) -> SensitivityTable:
    """Return what each layer costs at each width: SSIM of content layers, SQNR of the others.

    `activations` are those that `apply` will be told; `method` is "exact", "sketch" or "hybrid", and `checkpointing`
    saves its backward passes memory at the cost of time, as in `SensitivityConfig`.
    """
    pipe = load_pipeline(model)
    return sensitivity.measure(
        pipe,
        find_family(pipe),
        table or inspect(pipe, spec=spec),
        record,
        prompts or sensitivity_prompts(_plain(model)),
        spec or GenerationSpec(),
        activations=activations,
        method=method,
        checkpointing=checkpointing,
        progress=progress,
    )


def allocate(
    table: LayerTable,
    scores: SensitivityTable,
    *,
    weight_bits: float = 4.0,
    activation_bits: float = 8.0,
    budget: Budget | None = None,
) -> list[BitPlan]:
    """Return the optimal plans within a budget, one for each content-to-quality ratio that is worth a look."""
    return sweep.allocate(table, scores, budget or Budget(weight_bits=weight_bits, activation_bits=activation_bits))


def choose(
    model: Model,
    record: CalibrationRecord,
    plans: Sequence[BitPlan],
    prompts: Sequence[str] | None = None,
    *,
    table: LayerTable | None = None,
    spec: GenerationSpec | None = None,
    metric: str | Metric = "ssim",
    activations: Activations = "static",
    progress: Progress = no_progress,
) -> BitPlan:
    """Return the plan whose pictures are nearest to the floating-point model's; `activations` as in `measure`."""
    pipe = load_pipeline(model)
    best, _ = selection.choose(
        pipe,
        find_family(pipe),
        table or inspect(pipe, spec=spec),
        record,
        plans,
        prompts or sensitivity_prompts(_plain(model)),
        spec or GenerationSpec(),
        metric=metric,
        activations=activations,
        progress=progress,
    )
    return best


def apply(
    model: Model,
    plan: BitPlan,
    record: CalibrationRecord,
    table: LayerTable | None = None,
    *,
    backend: str = AUTO,
    symmetric: bool = True,
    rounding: str = "nearest",
    activations: Activations = "static",
    progress: Progress = no_progress,
) -> Pipeline:
    """Return the pipeline with its denoiser quantized by `plan`; a loaded pipeline is changed in place.

    `save_pretrained` then writes an ordinary diffusers folder.
    """
    pipe = load_pipeline(model)
    quantize_denoiser(
        find_family(pipe).denoiser(pipe),
        plan,
        table or inspect(pipe),
        record,
        backend=backend,
        symmetric=symmetric,
        rounding=rounding,
        activations=activations,
        progress=progress,
    )
    return pipe


def generate(
    model: Model,
    prompts: Sequence[str],
    *,
    steps: int = 1,
    guidance_scale: float = 0.0,
    size: int | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Tensor:
    """Return one picture a prompt, [prompts, 3, height, width] in 0..1; picture i depends on the seed and i alone."""
    spec = GenerationSpec(steps=steps, guidance_scale=guidance_scale, height=size, width=size, seed=seed)
    pipe = load_pipeline(model)
    with torch.no_grad():
        return drawing.generate(pipe, prompts, spec, progress=progress)


def evaluate(
    reference: Tensor, candidate: Tensor, prompts: Sequence[str], metrics: Sequence[Metric] | None = None
) -> Comparison:
    """Return how the pictures `candidate` fare against `reference` [N, 3, H, W]: SSIM and PSNR, or other `metrics`."""
    return compare(reference, candidate, prompts, metrics or [METRICS["ssim"], METRICS["psnr"]])


def _name(model: Model) -> str:
    return str(model.config.get("_name_or_path", "")) if isinstance(model, Pipeline) else str(model)


def _plain(model: Model) -> RunConfig:
    return build_config({"model": {"path": _name(model) or "pipeline"}})
