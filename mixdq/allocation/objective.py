"""What the program maximises: measured scores as they are, or the losses they stand for.

The scale matters: a sum of dB rewards small layers logarithmically, a sum of SSIM is nearly linear. So the choice has
a name, and the pictures judge it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from mixdq.errors import PlanError
from mixdq.types.layers import Group, LayerTable
from mixdq.types.plan import FLOAT_BITS
from mixdq.types.scores import Role, SensitivityTable

Objective = Literal["raw", "linear"]

METRIC_OF: Mapping[Group, str] = {"content": "ssim", "quality": "sqnr"}
"""Which metric judges which group (arXiv 2405.17873, metric decoupling)."""

# What a layer left in floating point scores: nothing is lost.
_PERFECT = {"ssim": 1.0}

_LOSSES: Mapping[str, Callable[[float], float]] = {
    "sqnr": lambda decibel: 10.0 ** (-decibel / 10.0),  # noise power for a signal of power 1
    "ssim": lambda ssim: 1.0 - ssim,
}


def layer_scores(
    table: LayerTable,
    sensitivity: SensitivityTable,
    role: Role,
    widths: Mapping[str, Sequence[int]],
    metric_of: Mapping[Group, str],
    objective: Objective,
    *,
    lone_widths: bool,
) -> dict[str, dict[int, float]]:
    """Return layer -> bits -> score for the widths asked, in the objective's scale; higher is better.

    "raw" takes scores as measured, as published; "linear" the loss they stand for, negated: -10^(-SQNR/10) and
    -(1 - SSIM), which add up as the noise does. Sixteen bits score as lossless without having been measured.
    Where a layer has but one width, its score decides nothing, and counts 0 if missing, unless `lone_widths` says that
    it is needed all the same.

    Raises:
        PlanError: scores are missing, or are for layers that the table does not have.
        ValueError: the objective is unknown, or not defined for a metric.
    """
    if objective not in ("raw", "linear"):
        raise ValueError(f"objective {objective!r}: expected raw or linear")
    measured = {metric: sensitivity.by_layer(role, metric) for metric in set(metric_of.values())}
    strangers = {score.layer for score in sensitivity.scores} - {layer.name for layer in table}
    wrong = [f"{name}: scored, but not in the model" for name in sorted(strangers)]
    out: dict[str, dict[int, float]] = {}
    for layer in table:
        metric = metric_of[layer.group]
        found = measured[metric].get(layer.name, {})
        for bits in widths.get(layer.name, ()):
            if len(widths[layer.name]) == 1 and bits not in found and not lone_widths:
                out[layer.name] = {bits: 0.0}
                continue
            if bits == FLOAT_BITS:
                value = _PERFECT.get(metric, float("inf"))
            elif bits in found:
                value = found[bits]
            else:
                wrong.append(f"{layer.name}: no {metric} of its {role} at {bits} bits")
                continue
            out.setdefault(layer.name, {})[bits] = value if objective == "raw" else -_loss(metric, value)
    if wrong:
        raise PlanError(
            f"the sensitivity table does not fit {table.model!r}: {len(wrong)} disagreements, the first {wrong[0]}. "
            "Measure (or continue to measure) the sensitivity of this model at these widths.",
            disagreements=wrong,
        )
    return out


def _loss(metric: str, value: float) -> float:
    if metric not in _LOSSES:
        raise ValueError(f"the linear objective knows {' and '.join(_LOSSES)}, not {metric}; use raw")
    return _LOSSES[metric](value)
