"""Sensitivity analysis: every layer, alone, at every candidate width (arXiv 2405.17873, metric decoupling).

Rows stay as measured: near the noise floor they are not monotone in bits, and nothing here repairs them.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from types import MappingProxyType

from mixdq.pipeline.family import ModelFamily, Pipeline
from mixdq.pipeline.generate import GenerationSpec
from mixdq.pipeline.trace import record_calls
from mixdq.sensitivity.engines.base import Engine
from mixdq.sensitivity.engines.local import run_local
from mixdq.sensitivity.resume import MemorySink, Sink
from mixdq.sensitivity.trial import Trial, TrialScorer, list_trials
from mixdq.types.layers import Group, LayerTable
from mixdq.types.plan import ACTIVATION_CHOICES, WEIGHT_CHOICES, Activations
from mixdq.types.progress import Progress, no_progress
from mixdq.types.scores import ScoreKey, SensitivityTable
from mixdq.types.tensors import CalibrationRecord

log = logging.getLogger(__name__)

METRIC_OF: Mapping[Group, tuple[str, ...]] = MappingProxyType({"content": ("ssim",), "quality": ("sqnr",)})


def measure(
    pipe: Pipeline,
    family: ModelFamily,
    table: LayerTable,
    record: CalibrationRecord,
    prompts: Sequence[str],
    spec: GenerationSpec,
    *,
    weight_bits: Mapping[Group, Sequence[int]] = WEIGHT_CHOICES,
    activation_bits: Mapping[Group, Sequence[int]] = ACTIVATION_CHOICES,
    metric_of: Mapping[Group, Sequence[str]] = METRIC_OF,
    ssim_window: int = 11,
    symmetric: bool = True,
    rounding: str = "nearest",
    activations: Activations = "static",
    batch_size: int = 8,
    engine: Engine = run_local,
    resume: Sink | None = None,
    progress: Progress = no_progress,
) -> SensitivityTable:
    """Return the score of every layer of `table`, weight and input, at every width of its group.

    Args:
        pipe, family, table, record, prompts, spec: the model, what calibration learned, and the run to replay.
        weight_bits, activation_bits: candidate widths of each group.
        metric_of: the metrics of each group; several give several rows. As published, SSIM of the pictures for content
            and SQNR of the denoiser's outputs for quality.
        ssim_window: pixels on a side of SSIM's neighbourhood.
        symmetric, rounding: how weights are quantized.
        activations: whether inputs are scaled as calibrated or at run time.
        batch_size: prompts in one denoiser call; pictures differ by float rounding from one batch size to another.
        engine: who runs the trials, from `mixdq.sensitivity.engines.find_engine`; the scores do not depend on it.
        resume: scores measured before with the same settings, and where each new one goes as soon as it is known; its
            origin becomes the table's. Only the scores asked for are returned, whatever else it holds.
        progress: told after each trial.

    Raises:
        ConfigError: no metric has that name.
        CalibrationError: the record is not of this model.
        NonFiniteError: a trial gives NaN, and the layer is named; or the floating-point model does.
    """
    trials = list_trials(table, weight_bits, activation_bits, metric_of)
    sink: Sink = resume if resume is not None else MemorySink({"model": table.digest, "prompts": _digest(prompts)})
    left = _without(trials, sink.done)
    progress(len(trials) - len(left), len(trials), "sensitivity")
    if left:
        trace = record_calls(pipe, family, prompts, spec, batch_size=batch_size)
        scorer = TrialScorer(
            pipe=pipe,
            denoiser=family.denoiser(pipe),
            layers={layer.name: layer for layer in table},
            record=record,
            trace=trace,
            ssim_window=ssim_window,
            symmetric=symmetric,
            rounding=rounding,
            activations=activations,
        )
        for done, scores in enumerate(engine(left, scorer), start=len(trials) - len(left) + 1):
            for score in scores:
                sink.append(score)
                log.debug("%s %s %d: %s %.6g", score.layer, score.role, score.num_bits, score.metric, score.value)
            progress(done, len(trials), "sensitivity")
    log.info("measured %d trials on %d layers (%d were known)", len(trials), len(table), len(trials) - len(left))
    scores_of = {score.key: score for score in sink.table.scores}
    return SensitivityTable(
        scores=tuple(scores_of[key] for trial in trials for key in trial.keys), origin=sink.table.origin
    )


def _without(trials: Sequence[Trial], done: Set[ScoreKey]) -> list[Trial]:
    """Return the trials with the metrics that are not known yet; those with none left out."""
    left = []
    for trial in trials:
        metrics = tuple(metric for metric, key in zip(trial.metrics, trial.keys, strict=True) if key not in done)
        if metrics:
            left.append(replace(trial, metrics=metrics))
    return left


def _digest(prompts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()
