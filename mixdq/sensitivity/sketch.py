"""Scores of all layers and widths at once from a few backward passes, each with its standard error.

To first order, an error dW of a weight (or q(x) - x of an input) moves the model's result by J dW. For random v with
E[v v^T] = H the mean of <v, J dW>^2 over vectors is an unbiased estimate of the loss (J dW)^T H (J dW), and one
backward pass of <v, f> gives these products for every layer and width (`probe`), picture by picture. H is the metric's:

    sqnr   signs on the denoiser's output, H = 1 / |f|^2: the noise-to-signal ratio; every recorded call by itself
    ssim   `metrics.ssim_form` on the pictures, back through the decoder and every step: 1 - SSIM to second order

What first order leaves out: the layer's error may be too large for it (2 bits, say), and clipped pixels count nothing.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence, Set

import numpy as np

from mixdq.errors import ConfigError
from mixdq.sensitivity.desk import Desk, Slice
from mixdq.sensitivity.engines.base import Team
from mixdq.sensitivity.losses import Losses
from mixdq.sensitivity.products import SKETCHED
from mixdq.sensitivity.resume import VectorSink
from mixdq.sensitivity.trials import Trial
from mixdq.types.progress import Progress, no_progress
from mixdq.types.scores import Score, ScoreKey

log = logging.getLogger(__name__)

TOLERANCE = 0.25
VECTORS_A_ROUND, MOST_VECTORS = 4, 32


def sketch(
    desk: Desk,
    team: Team,
    known: VectorSink,
    *,
    done: Set[ScoreKey] = frozenset(),
    tolerance: float = TOLERANCE,
    progress: Progress = no_progress,
) -> Iterator[Score]:
    """Yield the score of each trial that is sketched at `desk`, metric by metric, with its standard error.

    Vectors are added until the median trial's loss is known up to a share `tolerance` of itself (one standard error),
    or there are `MOST_VECTORS`; of a tolerance that these do not reach the log warns. Those in `known` are not made
    again, and new ones go there slice by slice. A trial that no gradient reaches, or whose rounding changes nothing, is
    scored exactly; the log says how many. Scores in `done` are left out, and not measured.

    Raises what `Desk.products` and `Desk.score` raise.
    """
    losses = {metric: Losses(trials, metric) for metric, trials in desk.sketched.items()}
    while left := [metric for metric, one in losses.items() if one.vectors < _wanted(desk, one, tolerance)]:
        rounds = {metric: range(losses[metric].vectors, losses[metric].vectors + VECTORS_A_ROUND) for metric in left}
        total = sum(desk.parts(metric) * _wanted(desk, one, tolerance) for metric, one in losses.items())
        made = sum(desk.parts(metric) * one.vectors for metric, one in losses.items())
        slices = _slices(desk, rounds, known, team.workers)
        made += sum(desk.parts(metric) * VECTORS_A_ROUND for metric in left) - sum(len(one.numbers) for one in slices)
        progress(made, total, "sketch")
        for one, products in zip(slices, team.map(Desk.products, slices), strict=True):
            known.update(
                {(one.metric, one.part, number): row for number, row in zip(one.numbers, products, strict=True)}
            )
            made += len(one.numbers)
            progress(made, total, "sketch")
        for metric, numbers in rounds.items():
            parts = range(desk.parts(metric))
            losses[metric].add(
                np.stack([np.concatenate([known[metric, part, number] for part in parts]) for number in numbers])
            )
    if losses:
        made = sum(desk.parts(metric) * one.vectors for metric, one in losses.items())
        progress(made, made, "sketch")
    for metric, found in losses.items():
        if found.error > tolerance:
            log.warning(
                "%s: after %d vectors, the most there are, the median loss is known to %.2g of itself, not to "
                "tolerance = %g; more prompts make it better",
                metric,
                found.vectors,
                found.error,
                tolerance,
            )
    yield from _scores(desk, team, losses, done, progress)


def check_sketched(trials: Sequence[Trial]) -> None:
    """Raise ConfigError where a metric of the trials can be measured exactly only."""
    strange = sorted({metric for trial in trials for metric in trial.metrics} - set(SKETCHED))
    if strange:
        raise ConfigError(
            f"metric {', '.join(strange)} can be measured exactly only: set sensitivity.method = 'exact'. "
            f"Sketched are {' and '.join(SKETCHED)}"
        )


def _wanted(desk: Desk, losses: Losses, tolerance: float) -> int:
    """Return about how many vectors will do; no more than there are where these do."""
    if losses.vectors:
        times = losses.error / tolerance
        if times <= 1.0:
            return losses.vectors
        needed = losses.vectors * times * times
    else:
        # The square of a normal variable has a variance of twice its mean squared.
        needed = 2.0 / len(desk.scorer.trace.pictures) / tolerance / tolerance
    rounds = max(math.ceil(min(needed, MOST_VECTORS) / VECTORS_A_ROUND), losses.vectors // VECTORS_A_ROUND + 1)
    return min(rounds * VECTORS_A_ROUND, MOST_VECTORS)


def _slices(desk: Desk, rounds: Mapping[str, range], known: VectorSink, workers: int) -> list[Slice]:
    """Return the vectors that are not known: a round of a part together, or in pieces until every worker has one."""
    parts = [(metric, part) for metric in rounds for part in range(desk.parts(metric))]
    size = math.ceil(VECTORS_A_ROUND / math.ceil(workers / len(parts)))
    slices = []
    for metric, part in parts:
        missing = tuple(number for number in rounds[metric] if (metric, part, number) not in known)
        slices += [
            Slice(metric=metric, part=part, numbers=missing[first : first + size])
            for first in range(0, len(missing), size)
        ]
    return slices


def _scores(
    desk: Desk, team: Team, losses: Mapping[str, Losses], done: Set[ScoreKey], progress: Progress
) -> Iterator[Score]:
    """Yield the scores that are not done, those that no vector tells of measured."""
    left = [
        (trial, score)
        for metric, trials in desk.sketched.items()
        for trial, score in zip(trials, losses[metric].scores(), strict=True)
        if trial.keys[0] not in done
    ]
    unknown = [trial for trial, score in left if score is None]
    if unknown:
        log.warning("gradients tell nothing of %d of %d trials: these are measured exactly", len(unknown), len(left))
        progress(0, len(unknown), "not sketched")
    measured = enumerate(team.map(Desk.score, unknown), start=1)
    for _, score in left:
        if score is not None:
            yield score
            continue
        number, (exact,) = next(measured)
        yield exact
        progress(number, len(unknown), "not sketched")
