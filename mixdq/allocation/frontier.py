"""The whole trade in one run: the least loss for every budget, from the least possible to where no more helps."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mixdq.allocation.choices import Chosen, choose_options, connected
from mixdq.allocation.joint import JointProgram, Unit
from mixdq.errors import ConfigError
from mixdq.types.plan import BitPlan

log = logging.getLogger(__name__)

FRONTIER_GAP = 1e-3
"""Proven share of the losses by which a point may miss the best."""

SETTINGS = ("weight_bits", "weight_bytes", "latency_ms")
"""Budgets that a frontier can run along; the first that a budget names is taken."""


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """The best plans along one budget, the others as they are, cheapest first.

    Attributes:
        setting: the budget that varies.
        least: what no plan is below, the other budgets met.
        greatest: above it nothing is gained.
        plans: budget -> best plan; a dearer one never loses more.
    """

    setting: str
    least: float
    greatest: float
    plans: Mapping[float, BitPlan]


def find_frontier(program: JointProgram, points: int, *, origin: Mapping[str, str] | None = None) -> Frontier:
    """Return the best plans at `points` budgets, evenly from the least that is possible to the most that helps.

    Where these are the same, as with one candidate width, one plan is all there is.

    Raises:
        ConfigError: the budget names nothing that a frontier could run along, or fewer than two points are asked for.
        InfeasibleBudgetError: the budgets that do not vary are out of reach.
    """
    names = [name for name in SETTINGS if name in program.limits]
    if not names or points < 2:
        raise ConfigError(
            f"a frontier of {points} points: expected two or more, along a budget below 16 bits "
            f"({', '.join(SETTINGS)}; this one has {', '.join(program.limits) or 'none'})"
        )
    limit = program.limits[names[0]]
    apart, varying = _split(program, limit.name)
    settled = apart.solve(gap=FRONTIER_GAP)
    others = [other for name, other in varying.limits.items() if name != limit.name]
    least = choose_options(limit.costs, others).loss
    best = choose_options(varying.losses, others, varying.pairs, gap=FRONTIER_GAP)
    greatest = sum(costs[best.options[unit]] for unit, costs in limit.costs.items())
    if greatest <= least:
        log.warning("no more helps than the least %s that is possible: the frontier is one point", limit.name)
        points = 1
    plans: dict[float, BitPlan] = {}
    known = None
    for number in range(points):
        most = least + (greatest - least) * number / max(points - 1, 1)
        found = replace(varying, limits={**varying.limits, limit.name: replace(limit, most=most)}).solve(
            gap=FRONTIER_GAP
        )
        if known is not None and known.loss < found.loss:
            # Both are within the gap, and what was affordable before is so now.
            found = replace(known, bound=min(known.loss, found.bound))
        known = found
        whole = Chosen(
            options=settled.options | found.options,
            loss=settled.loss + found.loss,
            bound=settled.bound + found.bound,
            spent=settled.spent | found.spent,
        )
        plans[most / limit.unit] = program.plan(whole, f"frontier-{number + 1:03d}", origin or {})
    return Frontier(setting=limit.name, least=least / limit.unit, greatest=greatest / limit.unit, plans=plans)


def _split(program: JointProgram, setting: str) -> tuple[JointProgram, JointProgram]:
    """Return the part of a program that does not feel one of its limits, and the part that does."""
    limits = list(program.limits.values())
    feeling: set[Unit] = set()
    for units in connected(program.losses, limits, program.pairs):
        if any(unit in program.limits[setting].costs for unit in units):
            feeling |= units.keys()

    def part(units: set[Unit]) -> JointProgram:
        return replace(
            program,
            losses={unit: options for unit, options in program.losses.items() if unit in units},
            limits={name: limit for name, limit in program.limits.items() if limit.costs.keys() <= units},
            pairs={both: terms for both, terms in program.pairs.items() if both[0] in units},
        )

    return part(program.losses.keys() - feeling), part(feeling)
