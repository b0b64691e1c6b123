"""The choice among the plans of a sweep, by the pictures that each makes (arXiv 2405.17873, integer programming)."""

import logging
from collections.abc import Iterator, Sequence

from mixdq.errors import ConfigError, NonFiniteError
from mixdq.metrics.base import METRICS, Metric
from mixdq.pipeline.family import ModelFamily, Pipeline
from mixdq.pipeline.generate import GenerationSpec
from mixdq.pipeline.trace import record_calls, regenerate
from mixdq.quant.simulate_plan import simulated_plan
from mixdq.types.layers import LayerTable
from mixdq.types.plan import Activations, BitPlan
from mixdq.types.progress import Progress, no_progress
from mixdq.types.tensors import CalibrationRecord

log = logging.getLogger(__name__)


def choose(
    pipe: Pipeline,
    family: ModelFamily,
    table: LayerTable,
    record: CalibrationRecord,
    plans: Sequence[BitPlan],
    prompts: Sequence[str],
    spec: GenerationSpec,
    *,
    metric: str | Metric = "ssim",
    symmetric: bool = True,
    rounding: str = "nearest",
    activations: Activations = "static",
    batch_size: int = 8,
    progress: Progress = no_progress,
) -> tuple[BitPlan, list[tuple[str, float]]]:
    """Return the best plan, and every plan's name and score in the order given.

    Each plan is simulated whole, all layers at once, and its pictures are compared with the floating-point model's.
    Of equal scores the earlier plan wins. `metric` is a name of `METRICS` or a metric built around a model.

    Raises:
        ConfigError: no metric has that name, or there is no plan.
        CalibrationError: the record is not of this model.
        NonFiniteError: a plan's pictures hold NaN, and the plan is named; or the floating-point model's do.
    """
    if isinstance(metric, str) and metric not in METRICS:
        raise ConfigError(f"metric = {metric!r}: expected one of {', '.join(sorted(METRICS))}")
    if not plans:
        raise ConfigError("no plan to choose from; allocate first")
    judge = METRICS[metric] if isinstance(metric, str) else metric
    scores: list[tuple[str, float]] = []
    progress(0, len(plans), "choice")
    for pair in score_plans(
        pipe,
        family,
        table,
        record,
        plans,
        prompts,
        spec,
        judge=judge,
        symmetric=symmetric,
        rounding=rounding,
        activations=activations,
        batch_size=batch_size,
    ):
        scores.append(pair)
        progress(len(scores), len(plans), "choice")
    sign = 1.0 if judge.higher_is_better else -1.0
    # max keeps the first of equals.
    best = max(range(len(plans)), key=lambda index: sign * scores[index][1])
    log.info("chose plan %s of %d: %s %.6g", plans[best].name, len(plans), judge.name, scores[best][1])
    return plans[best], scores


def score_plans(
    pipe: Pipeline,
    family: ModelFamily,
    table: LayerTable,
    record: CalibrationRecord,
    plans: Sequence[BitPlan],
    prompts: Sequence[str],
    spec: GenerationSpec,
    *,
    judge: Metric,
    symmetric: bool = True,
    rounding: str = "nearest",
    activations: Activations = "static",
    batch_size: int = 8,
) -> Iterator[tuple[str, float]]:
    """Yield each plan's name and score, in order, as soon as it is known; arguments and errors as of `choose`."""
    denoiser = family.denoiser(pipe)
    trace = record_calls(pipe, family, prompts, spec, batch_size=batch_size)
    for plan in plans:
        with simulated_plan(
            denoiser, table, plan.layers, record, symmetric=symmetric, rounding=rounding, activations=activations
        ):
            pictures = regenerate(pipe, trace)
        try:
            score = judge(trace.pictures, pictures, prompts)
        except NonFiniteError as error:
            raise NonFiniteError(f"plan {plan.name}: its pictures hold NaN or infinity", where=plan.name) from error
        log.debug("plan %s: %s %.6g", plan.name, judge.name, score)
        yield plan.name, score
