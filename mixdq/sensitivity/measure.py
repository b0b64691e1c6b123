"""Sensitivity analysis: every layer, alone, at every candidate width (arXiv 2405.17873, metric decoupling).

Rows stay as measured: near the noise floor they are not monotone in bits, and nothing here repairs them.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence, Set
from types import MappingProxyType

from mixdq.errors import ConfigError, NonFiniteError
from mixdq.metrics.base import METRICS
from mixdq.pipeline.family import ModelFamily, Pipeline
from mixdq.pipeline.generate import GenerationSpec
from mixdq.pipeline.trace import Trace, record_calls
from mixdq.sensitivity.desk import Desk
from mixdq.sensitivity.engines.base import Engine, Team
from mixdq.sensitivity.engines.local import run_local
from mixdq.sensitivity.resume import MemorySink, Sink, VectorSink
from mixdq.sensitivity.scorer import TrialScorer
from mixdq.sensitivity.sketch import TOLERANCE, check_sketched, sketch
from mixdq.sensitivity.state import EXACT_SHARE, exact_count, is_complete, known_table, measured, next_of
from mixdq.sensitivity.trials import Trial, by_metric, list_trials, without
from mixdq.types.layers import Group, LayerTable
from mixdq.types.plan import ACTIVATION_CHOICES, WEIGHT_CHOICES, Activations
from mixdq.types.progress import Progress, no_progress
from mixdq.types.scores import ScoreKey, SensitivityTable
from mixdq.types.tensors import CalibrationRecord

log = logging.getLogger(__name__)

METRIC_OF: Mapping[Group, tuple[str, ...]] = MappingProxyType({"content": ("ssim",), "quality": ("sqnr",)})
METHODS = ("exact", "sketch", "hybrid")


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
    method: str = "exact",
    tolerance: float = TOLERANCE,
    exact_share: float = EXACT_SHARE,
    checkpointing: bool = False,
    resume: Sink | None = None,
    vectors: Callable[[], VectorSink] | None = None,
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
        engine: who does the work, from `mixdq.sensitivity.engines.find_engine`; the scores do not depend on it.
        method: one of `METHODS`.
        tolerance: of sketched scores; see `sketch`.
        exact_share: how many of the trials "hybrid" measures exactly, at most.
        checkpointing: whether backward passes save memory at the cost of time; see `pipeline.gradient`.
        resume: scores measured before with the same settings, and where each new one goes as soon as it is known; its
            origin becomes the table's. Only the scores asked for are returned, whatever else it holds.
        vectors: opens what a sketch found before of the same trials, where each new slice of it goes too: estimates are
            scores only when the last vector is known. Not asked where nothing is to be sketched.
        progress: told after each slice of a sketch, and after each trial measured.

    Raises:
        ConfigError: no metric or method has that name, a metric cannot be sketched, or the window is wider than the
            pictures.
        UnsupportedModelError: the model cannot be differentiated, or there is no memory for it.
        CalibrationError: the record is not of this model.
        NonFiniteError: a trial gives NaN, and the layer is named; or the floating-point model does, or its denoiser
            gives zeros alone.
    """
    if method not in METHODS:
        raise ConfigError(f"method = {method!r}: expected one of {', '.join(METHODS)}")
    unknown = {metric for metrics in metric_of.values() for metric in metrics} - METRICS.keys()
    if unknown:
        raise ConfigError(f"metric {', '.join(sorted(unknown))}: expected one of {', '.join(sorted(METRICS))}")
    trials = list_trials(table, weight_bits, activation_bits, metric_of)
    if method != "exact":
        check_sketched(trials)
    sink: Sink = resume if resume is not None else MemorySink({"model": table.digest, "prompts": _digest(prompts)})
    if is_complete(trials, table, sink, method=method, exact_share=exact_share):
        progress(len(trials), len(trials), "sensitivity")
        return known_table(trials, sink)
    trace = record_calls(pipe, family, prompts, spec, batch_size=batch_size)
    _check_comparable(trace, {metric for trial in trials for metric in trial.metrics}, ssim_window)
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

    missing = {
        metric: of_metric
        for metric, of_metric in by_metric(trials).items()
        if method != "exact" and not sink.done >= {key for trial in of_metric for key in trial.keys}
    }
    desk = Desk(scorer, missing, checkpointing=checkpointing)
    with engine(desk) as team:
        if method == "exact":
            left = without(trials, sink.done)
            known = len(trials) - len(left)
            _run(team, left, sink, known, len(trials), progress)
            log.info("measured %d trials on %d layers (%d were known)", len(trials), len(table), known)
            return known_table(trials, sink)
        kept: VectorSink = vectors() if vectors is not None and missing else {}
        for score in sketch(desk, team, kept, done=sink.done, tolerance=tolerance, progress=progress):
            sink.append(score)
        count = exact_count(trials, method, exact_share)
        while chosen := next_of(trials, table, sink, count):
            _run(team, without(chosen, _exact(sink)), sink, measured(trials, sink), count, progress)
    left = without(trials, _exact(sink))
    log.info("scored %d trials on %d layers, %d of them exactly", len(trials), len(table), len(trials) - len(left))
    return known_table(trials, sink)


def _run(team: Team, trials: Sequence[Trial], sink: Sink, done: int, total: int, progress: Progress) -> None:
    """Score trials exactly and keep the scores."""
    progress(done, total, "sensitivity")
    for number, scores in enumerate(team.map(Desk.score, trials), start=done + 1):
        for score in scores:
            sink.append(score)
            log.debug("%s %s %d: %s %.6g", score.layer, score.role, score.num_bits, score.metric, score.value)
        progress(number, total, "sensitivity")


def _exact(sink: Sink) -> set[ScoreKey]:
    """Return what is known exactly."""
    return {score.key for score in sink.table.scores if score.stderr is None}


def _check_comparable(trace: Trace, metrics: Set[str], ssim_window: int) -> None:
    """Return if the metrics can compare something with what was recorded; said before anything is measured."""
    height, width = trace.pictures.shape[-2:]
    if "ssim" in metrics and ssim_window > min(height, width):
        raise ConfigError(
            f"sensitivity.ssim_window = {ssim_window}: the pictures are {width} x {height} pixels; "
            f"expected an odd number from 3 to {min(height, width)}"
        )
    for number, call in enumerate(trace.calls if "sqnr" in metrics else ()):
        told = call.output.flatten(1).any(1).tolist()
        if not all(told):
            where = f"row {told.index(False)} of denoiser call {number}"
            text = "the model gives zeros alone, to which no noise has a ratio. Are its last layer's weights zero?"
            raise NonFiniteError(f"{where}: {text}", where=where)


def _digest(prompts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()
