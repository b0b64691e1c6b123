"""What sensitivity analysis measures: one `Score` for each layer, role and width."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mixdq.types.layers import Group
from mixdq.types.plan import check_bits

Role = Literal["weight", "activation"]
ROLES: tuple[Role, ...] = ("weight", "activation")

ScoreKey = tuple[str, Role, int, str]
"""What names a score: layer, role, bits, metric."""

VectorKey = tuple[str, int, int]
"""What names a vector of a sketch on one part of the recorded run: metric, part, number."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """The quality left when one layer's weight or input alone is quantized; higher is better.

    `metric` names what was measured ("sqnr" in dB, "ssim"); `value` may be +inf (identical), never NaN. `stderr` is the
    standard error of an estimate, in the metric's unit; None where it was measured exactly.
    """

    layer: str
    role: Role
    num_bits: int
    metric: str
    value: float
    stderr: float | None = None

    def __post_init__(self) -> None:
        check_bits(self.num_bits)
        if math.isnan(self.value):
            raise ValueError(f"{self.layer}: the {self.metric} of {self.role} at {self.num_bits} bits is not a number")
        if self.stderr is not None and not 0.0 <= self.stderr < math.inf:
            raise ValueError(f"{self.layer}: a standard error is a number from 0 up, not {self.stderr}")

    @property
    def key(self) -> ScoreKey:
        """What names it among all scores of a model."""
        return (self.layer, self.role, self.num_bits, self.metric)


@dataclass(frozen=True, kw_only=True)
class SensitivityTable:
    """All scores of one model; `origin` maps what they were made from to digests."""

    scores: tuple[Score, ...]
    origin: Mapping[str, str]

    def by_layer(self, role: Role, metric: str) -> dict[str, dict[int, float]]:
        """Return layer -> bits -> value for one role and metric, in table order."""
        out: dict[str, dict[int, float]] = {}
        for score in self.scores:
            if score.role == role and score.metric == metric:
                out.setdefault(score.layer, {})[score.num_bits] = score.value
        return out


@dataclass(frozen=True, kw_only=True)
class ErrorModel:
    """How the losses of single layers add up to the error e = 1 - SSIM of a picture: e / (1 - e) = sum weight * loss.

    Attributes:
        weights: of each group and role; a loss is 1 - SSIM of content layers, 10^(-SQNR/10) of quality layers.
        plans: how many whole plans were measured to find them.
        correlation: Spearman's, between measured errors and those foretold for plans left out of the fit.
    """

    weights: Mapping[Group, Mapping[Role, float]]
    plans: int
    correlation: float

    def __post_init__(self) -> None:
        for group, roles in self.weights.items():
            for role, weight in roles.items():
                if not (math.isfinite(weight) and weight > 0):
                    raise ValueError(f"{group} {role}: weight {weight} is not a positive number")
