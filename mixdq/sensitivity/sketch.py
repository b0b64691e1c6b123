"""Scores of all layers and widths at once from a few backward passes, each with its standard error.

To first order, an error dW of a weight (or q(x) - x of an input) moves the model's result by J dW. For random v with
E[v v^T] = H the mean of <v, J dW>^2 over vectors is an unbiased estimate of the loss (J dW)^T H (J dW), and one
backward pass of <v, f> gives these products for every layer and width (`probe`), picture by picture. H is the metric's:

    sqnr   signs on the denoiser's output, H = 1 / |f|^2: the noise-to-signal ratio; every recorded call by itself
    ssim   `metrics.ssim_form` on the pictures, back through the decoder and every step: 1 - SSIM to second order

What first order leaves out: the layer's error may be too large for it (2 bits, say), and clipped pixels count nothing.
"""

from collections.abc import Sequence

from mixdq.errors import ConfigError
from mixdq.sensitivity.losses import SKETCHED, Losses
from mixdq.sensitivity.trial import Trial, TrialScorer
from mixdq.types.progress import Progress, no_progress
from mixdq.types.scores import Score

TOLERANCE = 0.25
VECTORS_A_ROUND, MOST_VECTORS = 4, 32


def sketch(
    trials: Sequence[Trial],
    scorer: TrialScorer,
    *,
    tolerance: float = TOLERANCE,
    checkpointing: bool = False,
    progress: Progress = no_progress,
) -> list[Score]:
    """Return the score of each trial, with its standard error; the model is the same before and after.

    All trials have one metric, the same. Vectors are added until the median trial's loss is known up to a share
    `tolerance` of itself (one standard error), or there are `MOST_VECTORS`. A trial that no gradient reaches, or whose
    rounding changes nothing, is scored by `scorer`, exactly.

    Raises:
        ConfigError: the metric cannot be sketched.
        UnsupportedModelError: the denoiser or the decoder cannot be differentiated, or there is no memory for it.
        NonFiniteError: a gradient holds NaN or infinity; names the layer.
    """
    check_sketched(trials)
    (metric,) = {metric for trial in trials for metric in trial.metrics}
    losses = Losses(trials, scorer, metric, checkpointing=checkpointing)
    while losses.vectors < MOST_VECTORS and (not losses.vectors or losses.error > tolerance):
        progress(losses.vectors, MOST_VECTORS, f"sketching {metric}")
        losses.add(VECTORS_A_ROUND)
    progress(MOST_VECTORS, MOST_VECTORS, f"sketching {metric}")
    return [score or scorer(trial)[0] for trial, score in zip(trials, losses.scores(), strict=True)]


def check_sketched(trials: Sequence[Trial]) -> None:
    """Raise ConfigError where a metric of the trials can be measured exactly only."""
    strange = sorted({metric for trial in trials for metric in trial.metrics} - set(SKETCHED))
    if strange:
        raise ConfigError(
            f"metric {', '.join(strange)} can be measured exactly only: set sensitivity.method = 'exact'. "
            f"Sketched are {' and '.join(SKETCHED)}"
        )
