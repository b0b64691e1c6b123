"""A budget and the scores in, a handful of plans out: one for each content-to-quality ratio that is worth a look.

The budget T (mean bits) is split between the groups by r = size(content) / size(quality) and k = bits(content) /
bits(quality), where sizes and means are of the free layers, what is kept or protected at 16 bits being paid before:

B_quality = T (1 + r) / (k r + 1),   B_content = k B_quality     (arXiv 2405.17873, integer programming)

Where one group is at its greatest width, the other gets what is left. Which plan is best is decided on pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from mixdq.allocation.objective import METRIC_OF, Objective, layer_scores
from mixdq.allocation.plans import mean_bits
from mixdq.allocation.problem import (
    Cost,
    Part,
    Problem,
    activation_bits_cost,
    build_problem,
    check_feasible,
    weight_bits_cost,
    weight_bytes_cost,
)
from mixdq.allocation.program import CostSolution, solve_costs
from mixdq.allocation.protect import protected_layers
from mixdq.errors import ConfigError, InfeasibleBudgetError
from mixdq.types.layers import Group, LayerTable
from mixdq.types.plan import FLOAT_BITS, BitPlan, Budget, LayerBits, SolverFacts
from mixdq.types.scores import Role, SensitivityTable

MAX_PLANS = 12
"""Plans by default: each is scored on pictures afterwards."""

ACTIVATION_RATIOS = 3
"""Ratios tried for activations where weights have a choice too."""

WINDOW = 0.0025
"""Share of its budget that a group may leave unspent, lest score noise give bits away: 0.02 of 8 bits, as published."""


@dataclass(frozen=True, kw_only=True)
class _Half:
    """One role's bits for every layer; the ratio k (None without a split) and the objective of each part."""

    bits: Mapping[str, int]
    ratio: float | None
    objectives: Mapping[str, float]


def allocate(
    table: LayerTable,
    sensitivity: SensitivityTable,
    budget: Budget,
    *,
    objective: Objective = "linear",
    metric_of: Mapping[Group, str] = METRIC_OF,
    ratios: Sequence[float] | None = None,
    activation_ratios: Sequence[float] | None = None,
    max_plans: int = MAX_PLANS,
    symmetric: bool = True,
    name_prefix: str = "plan",
    origin: Mapping[str, str] | None = None,
) -> list[BitPlan]:
    """Return the optimal plans of the sweep, named "<name_prefix>-01" and on; the same inputs give the same plans.

    Every plan meets the budget, layers kept and protected at 16 bits counted. Weights and activations are swept apart
    over `ratios` and `activation_ratios`, by default evenly over all that the widths allow, from quality at its most
    to content at its most; the plans are all pairs, duplicates removed, at most `max_plans` with default ratios.
    Ratios out of reach are skipped. Where both groups have one metric in `metric_of`, each role is a single program
    over all layers, and nothing is swept. Mean bits of 16 or more leave that role in floating point everywhere.
    `symmetric` is how weights will be quantized: a budget in bytes pays for zero points where they have some.

    Raises:
        InfeasibleBudgetError: the cheapest widths exceed the budget, or no ratio asked for is within reach.
        PlanError: scores are missing, or are of another model.
        ConfigError: `keep` names a layer that the model does not have.
        NonFiniteError: a score is -inf.
    """
    unknown = sorted(set(budget.keep) - {layer.name for layer in table})
    if unknown:
        raise ConfigError(f"keep: {table.model!r} has no layer {unknown[0]!r} ({len(unknown)} such names)")
    weight_problem = _weight_problem(table, sensitivity, budget, objective, metric_of, symmetric)
    activation_problem = _activation_problem(table, sensitivity, budget, objective, metric_of)
    activations = _sweep(activation_problem, "activation", activation_ratios, min(ACTIVATION_RATIOS, max_plans))
    weights = _sweep(weight_problem, "weight", ratios, max(1, max_plans // len(activations)))
    if len(weights) == 1:
        activations = _sweep(activation_problem, "activation", activation_ratios, max_plans)
    plans: list[BitPlan] = []
    for weight in weights:
        for activation in activations:
            name = f"{name_prefix}-{len(plans) + 1:02d}"
            plans.append(_plan(name, table, budget, objective, weight, activation, origin or {}))
    return plans


def default_ratios(problem: Problem, count: int) -> list[float]:
    """Return `count` ratios k, evenly from quality at its most to content at its most; fewer where they coincide."""
    content, quality = problem.parts["content"], problem.parts["quality"]
    most_quality = min(quality.greatest, problem.limit - content.least)
    least_quality = min(max(quality.least, problem.limit - content.greatest), most_quality)
    low = _ratio(problem, min(problem.limit - most_quality, content.greatest), most_quality)
    high = _ratio(problem, min(problem.limit - least_quality, content.greatest), least_quality)
    if count == 1:
        return [low + (high - low) / 2]
    return sorted({low + (high - low) * i / (count - 1) for i in range(count)})


def _weight_problem(
    table: LayerTable,
    sensitivity: SensitivityTable,
    budget: Budget,
    objective: Objective,
    metric_of: Mapping[Group, str],
    symmetric: bool,
) -> Problem:
    fixed = dict.fromkeys(budget.keep, FLOAT_BITS)
    cost: Cost = weight_bits_cost
    if budget.weight_bits is not None:
        limit = budget.weight_bits * sum(layer.weight_numel for layer in table)
        if budget.weight_bits >= FLOAT_BITS:
            fixed = {layer.name: FLOAT_BITS for layer in table}
    else:
        assert budget.weight_bytes is not None
        cost, limit = partial(weight_bytes_cost, symmetric=symmetric), float(budget.weight_bytes)
    widths = {layer.name: budget.weight_choices[layer.group] for layer in table if layer.name not in fixed}
    scores = layer_scores(table, sensitivity, "weight", widths, metric_of, objective, lone_widths=False)
    problem = build_problem(
        table, scores, fixed, limit, cost, lambda layer: layer.weight_numel, joint=len(set(metric_of.values())) == 1
    )
    in_bits = budget.weight_bits is not None
    setting = "weight_bits" if in_bits else "weight_bytes"
    check_feasible(problem, setting=setting, per_size=in_bits, choices=budget.weight_choices)
    return problem


def _activation_problem(
    table: LayerTable,
    sensitivity: SensitivityTable,
    budget: Budget,
    objective: Objective,
    metric_of: Mapping[Group, str],
) -> Problem:
    fixed = dict.fromkeys(budget.keep, FLOAT_BITS)
    choices = budget.activation_choices
    if budget.activation_bits >= FLOAT_BITS:
        fixed = {layer.name: FLOAT_BITS for layer in table}
    groups = {layer.name: layer.group for layer in table if layer.name not in fixed}
    widths = {name: choices[group] for name, group in groups.items()}
    scores = layer_scores(
        table, sensitivity, "activation", widths, metric_of, objective, lone_widths=budget.protect > 0
    )
    fixed |= dict.fromkeys(protected_layers(groups, scores, choices, budget.protect), FLOAT_BITS)
    problem = build_problem(
        table,
        scores,
        fixed,
        budget.activation_bits * sum(layer.input_numel for layer in table),
        activation_bits_cost,
        lambda layer: layer.input_numel,
        joint=len(set(metric_of.values())) == 1,
    )
    check_feasible(problem, setting="activation_bits", per_size=True, choices=choices)
    return problem


def _sweep(problem: Problem, role: Role, ratios: Sequence[float] | None, count: int) -> list[_Half]:
    """Return one solution a ratio, duplicates removed; the first of equal ones is kept."""
    halves: list[_Half] = []
    if set(problem.parts) != {"content", "quality"}:
        splits = [dict.fromkeys(problem.parts, problem.limit)]
    else:
        chosen = default_ratios(problem, count) if ratios is None else sorted(ratios)
        splits = [split for ratio in chosen if (split := _split(problem, ratio)) is not None]
        if not splits:
            allowed = default_ratios(problem, 2)
            raise InfeasibleBudgetError(
                f"no {role} ratio of {chosen} is within reach: this budget and these widths allow {allowed[0]:.3f} "
                f"to {allowed[-1]:.3f}. Leave the ratios out, or choose among those.",
                least=allowed[0],
                greatest=allowed[-1],
            )
    for split in splits:
        found = {label: _spend(problem.parts[label], most) for label, most in split.items()}
        bits = dict(problem.fixed)
        for solution in found.values():
            bits |= solution.bits
        if all(bits != half.bits for half in halves):
            ratio = _ratio(problem, split["content"], split["quality"]) if len(split) == 2 else None
            values = {f"{role}_{label}": solution.objective for label, solution in found.items()}
            halves.append(_Half(bits=bits, ratio=ratio, objectives=values))
    return halves


def _split(problem: Problem, ratio: float) -> dict[str, float] | None:
    """Return what each group may cost at this ratio, or None where a group cannot live on it."""
    if not ratio > 0:
        raise ConfigError(f"ratio {ratio}: expected a positive number, bits of content over bits of quality")
    content, quality = problem.parts["content"], problem.parts["quality"]
    r = content.size / quality.size
    # B_quality = T (1 + r) / (k r + 1), times the size of the group; the clips pass on what a group cannot use.
    for_quality = min(problem.limit / (ratio * r + 1.0), quality.greatest)
    for_content = min(problem.limit - for_quality, content.greatest)
    for_quality = min(problem.limit - for_content, quality.greatest)
    tolerance = 1e-9 * problem.limit
    if for_quality < quality.least - tolerance or for_content < content.least - tolerance:
        return None
    return {"content": max(for_content, content.least), "quality": max(for_quality, quality.least)}


def _spend(part: Part, most: float) -> CostSolution:
    """Return the best solution that leaves at most `WINDOW` unspent; the best of all where widths are too coarse."""
    try:
        return solve_costs(part.scores, part.costs, most, min(most, part.greatest) * (1.0 - WINDOW))
    except InfeasibleBudgetError:
        return solve_costs(part.scores, part.costs, most)


def _ratio(problem: Problem, for_content: float, for_quality: float) -> float:
    return (for_content / problem.parts["content"].size) / (for_quality / problem.parts["quality"].size)


def _plan(
    name: str,
    table: LayerTable,
    budget: Budget,
    objective: Objective,
    weight: _Half,
    activation: _Half,
    origin: Mapping[str, str],
) -> BitPlan:
    layers = {
        layer.name: LayerBits(weight=weight.bits[layer.name], activation=activation.bits[layer.name]) for layer in table
    }
    bare = BitPlan(name=name, layers=layers)
    values = {**weight.objectives, **activation.objectives}
    if activation.ratio is not None:
        values["activation_ratio"] = activation.ratio
    values["weight_mean_bits"], values["activation_mean_bits"] = mean_bits(bare, table)
    facts = SolverFacts(
        solver="HiGHS, scipy.optimize.milp", objective=objective, values=values, content_quality_ratio=weight.ratio
    )
    return BitPlan(name=name, layers=layers, budget=budget, solver=facts, origin={"model": table.digest, **origin})
