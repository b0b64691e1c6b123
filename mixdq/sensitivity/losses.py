"""Losses of many trials by one metric, from signed products: a vector more, and all are better known.

The score of a trial is the mean over samples that the exact metric is, each sample's loss estimated by itself.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mixdq.sensitivity.resume import Floats
from mixdq.sensitivity.trials import Trial
from mixdq.types.scores import Score

_DECIBEL = 10.0 / math.log(10.0)


class Losses:
    """Estimates of the losses of trials by one metric, better with every vector."""

    def __init__(self, trials: Sequence[Trial], metric: str) -> None:
        self._trials, self._metric = trials, metric
        self._squares: list[Tensor] = []

    @property
    def vectors(self) -> int:
        """How many there have been."""
        return len(self._squares)

    def add(self, products: Floats) -> None:
        """Add vectors: their products, [vectors, samples, trials]."""
        self._squares += list(torch.square(torch.tensor(products, dtype=torch.float64)))

    @property
    def error(self) -> float:
        """The standard error of the median trial's loss, as a share of the loss."""
        power, error = self._moments()
        known = (power > 0).all(0)
        shares = (error.square().sum(0).sqrt() / power.sum(0))[known]
        return float(shares.median()) if len(shares) else 0.0

    def scores(self) -> list[Score | None]:
        """Return the trials' scores in order; None where a loss is zero as far as gradients tell."""
        power, error = self._moments()
        if self._metric == "sqnr":
            # The mean of n squares of a normal variable is n times chi-squared: its logarithm is too low on average.
            half = torch.tensor(self.vectors / 2.0, dtype=torch.float64)
            values = -_DECIBEL * (power.log().mean(0) + half.log() - half.digamma())
            errors = _DECIBEL * (error / power).square().sum(0).sqrt() / len(power)
        else:
            # Errors unlike the picture give 1 / (1 + loss) in every window, which is 1 - loss while it is small.
            values = (1.0 / (1.0 + power)).mean(0)
            errors = (error / (1.0 + power).square()).square().sum(0).sqrt() / len(power)
        known = (power > 0).all(0).tolist()
        return [
            Score(
                layer=trial.layer,
                role=trial.role,
                num_bits=trial.num_bits,
                metric=self._metric,
                value=value,
                stderr=stderr,
            )
            if usable
            else None
            for trial, value, stderr, usable in zip(self._trials, values.tolist(), errors.tolist(), known, strict=True)
        ]

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Return each sample's mean square and its standard error, [samples, trials]."""
        squares = torch.stack(self._squares)
        return squares.mean(0), squares.std(0) / len(squares) ** 0.5
