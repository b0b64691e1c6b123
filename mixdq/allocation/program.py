"""The integer program: one width for each layer, the greatest sum of scores within a budget; solved to optimality.

maximise  sum_i sum_b S[i, b] c[i, b]   with   sum_b c[i, b] = 1,   sum_i sum_b cost[i, b] c[i, b] <= budget,   c binary

HiGHS does the work through `scipy.optimize.milp` with gap 0 (arXiv 2405.17873, integer programming). Scores need not
rise with the width, and are used as they are. What the scores and costs mean is the caller's affair.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mixdq.allocation.highs import Row, best_columns
from mixdq.errors import InfeasibleBudgetError, NonFiniteError

Scores = Mapping[str, Mapping[int, float]]
Costs = Mapping[str, Mapping[int, float]]

SLACK = 1e-9
"""Share of itself by which a budget may be overstepped and still counts as met: the rounding of a float sum."""

_OBJECTIVE_SPAN = 1e6


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The best assignment: layer -> bits in the order asked, the sum of its scores, its mean bits by size."""

    bits: dict[str, int]
    objective: float
    mean_bits: float


@dataclass(frozen=True, kw_only=True)
class CostSolution:
    """The best assignment: layer -> bits in the order asked, the sum of its scores, the sum of its costs."""

    bits: dict[str, int]
    objective: float
    cost: float


def solve(
    scores: Scores, sizes: Mapping[str, float], max_mean_bits: float, min_mean_bits: float | None = None
) -> Solution:
    """Return the assignment of bits with the greatest sum of scores among those within the mean bits.

    `scores` maps layer -> bits -> score (higher is better) and thereby names each layer's choices; `sizes` maps layer
    -> size in any unit, positive; means are weighted by it. A score of +inf (a width that changes nothing) counts as
    the greatest finite score of the problem, so that it never loses to another width of its layer. The result depends
    on nothing but the arguments, not even on the order of the mappings.

    Raises:
        InfeasibleBudgetError: no assignment has its mean bits within the limits; carries least and greatest mean bits.
        NonFiniteError: a score is NaN or -inf.
        ValueError: no layer, a layer without choices or without size, a size for an unknown layer, a limit that is NaN.

    >>> solve({"a": {4: 1.0, 8: 5.0}, "b": {4: 1.0, 8: 2.0}}, {"a": 1.0, "b": 1.0}, max_mean_bits=6.0)
    Solution(bits={'a': 8, 'b': 4}, objective=6.0, mean_bits=6.0)
    """
    if scores.keys() != sizes.keys():
        lone = sorted(scores.keys() ^ sizes.keys())
        raise ValueError(f"scores and sizes name different layers; only one of them has {lone[:5]}")
    for layer, size in sizes.items():
        if not (math.isfinite(size) and size > 0):
            raise ValueError(f"{layer}: size {size} is not a positive number")
    total = math.fsum(sizes.values())
    costs = {layer: {bits: sizes[layer] * bits for bits in choices} for layer, choices in scores.items()}
    least = None if min_mean_bits is None else min_mean_bits * total
    try:
        found = solve_costs(scores, costs, max_mean_bits * total, least)
    except InfeasibleBudgetError as error:
        lowest, highest = error.least / total, error.greatest / total
        asked = f"at most {max_mean_bits:g}" + (f", at least {min_mean_bits:g}" if min_mean_bits is not None else "")
        raise InfeasibleBudgetError(
            f"no assignment of bits has the mean asked for ({asked}); the choices give {lowest:.4f} to {highest:.4f}. "
            "Move the limits or offer other widths.",
            least=lowest,
            greatest=highest,
        ) from error
    return Solution(bits=found.bits, objective=found.objective, mean_bits=found.cost / total)


def solve_costs(scores: Scores, costs: Costs, most: float, least: float | None = None) -> CostSolution:
    """Return the assignment with the greatest sum of scores among those that cost `most` at most and `least` at least.

    As `solve`, with the cost of every width given apart: layer -> bits -> cost, positive.
    """
    values = _usable_scores(scores, costs)
    if math.isnan(most) or (least is not None and math.isnan(least)):
        raise ValueError("a limit is not a number")
    lowest = math.fsum(min(choices.values()) for choices in costs.values())
    highest = math.fsum(max(choices.values()) for choices in costs.values())
    upper = most + SLACK * abs(most)
    lower = None if least is None else least - SLACK * abs(least)
    bits = None
    if upper >= lowest and (lower is None or (lower <= highest and lower <= upper)):
        bits = _best(values, costs, min(upper, highest * (1 + SLACK)), lower)
    if bits is None:
        raise InfeasibleBudgetError(
            f"no assignment costs at most {most:g}"
            + (f" and at least {least:g}" if least is not None else "")
            + f"; the choices give {lowest:g} to {highest:g}",
            least=lowest,
            greatest=highest,
        )
    return CostSolution(
        bits={layer: bits[layer] for layer in scores},
        objective=math.fsum(values[layer][bits[layer]] for layer in scores),
        cost=math.fsum(costs[layer][bits[layer]] for layer in scores),
    )


def _usable_scores(scores: Scores, costs: Costs) -> dict[str, dict[int, float]]:
    """Return the scores with +inf replaced by the greatest finite score; refuse what cannot be solved."""
    if not scores:
        raise ValueError("no layers to assign bits to")
    for layer, choices in scores.items():
        if not choices:
            raise ValueError(f"{layer}: no choices of bits")
        if choices.keys() != costs[layer].keys():
            raise ValueError(f"{layer}: scores for {sorted(choices)} bits but costs for {sorted(costs[layer])}")
        for bits, cost in costs[layer].items():
            if not (math.isfinite(cost) and cost > 0):
                raise ValueError(f"{layer}: cost {cost} of {bits} bits is not a positive number")
        for bits, score in choices.items():
            if math.isnan(score) or score == -math.inf:
                raise NonFiniteError(f"{layer}: the score of {bits} bits is {score}; measure it again", where=layer)
    finite = [score for choices in scores.values() for score in choices.values() if score < math.inf]
    best = max(finite, default=0.0)
    return {layer: {bits: min(score, best) for bits, score in choices.items()} for layer, choices in scores.items()}


def _best(values: Scores, costs: Costs, upper: float, lower: float | None) -> dict[str, int] | None:
    """Return the best bits by HiGHS, or None where no assignment lies within the limits."""
    layers = sorted(values)
    columns = [(row, layer, bits) for row, layer in enumerate(layers) for bits in sorted(values[layer])]
    # A layer's least score is a constant of the problem, so only what a width gains over it enters.
    gains = np.array([values[layer][bits] - min(values[layer].values()) for _, layer, bits in columns])
    span = gains.max()
    objective = gains / span * _OBJECTIVE_SPAN if span > 0 else gains
    spent = np.array([costs[layer][bits] for _, layer, bits in columns], dtype=np.float64)
    found = best_columns(-objective, [row for row, _, _ in columns], [Row(costs=spent, upper=upper, lower=lower)])
    return None if found is None else {columns[i][1]: columns[i][2] for i in found.taken}
