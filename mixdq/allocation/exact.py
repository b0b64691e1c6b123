"""One column for every owner within several limits, the sum of losses least, proven: HiGHS on few columns.

The linear program gives a bound, a good assignment and what every column costs at least (`relaxed`). What costs more
than the gap between the two cannot be part of anything better. HiGHS is asked about the cheapest columns first: its
answer narrows the gap, and as a rule nothing outside can be better then. SDXL's 794 layers under two budgets at once,
which HiGHS alone does not finish in minutes, take a second or two.
"""

import math

import numpy as np

from mixdq.allocation.highs import Floats, Row, best_columns
from mixdq.allocation.relaxed import Indices, relax

SPAN = 1e6
"""What objectives are scaled to: HiGHS stops at an absolute gap of 1e-6."""

SLACK = 1e-9

_CORE = 120
"""Columns beyond one an owner that are asked about first."""


def solve_columns(
    losses: Floats, owners: Indices, costs: Floats, most: Floats, gap: float
) -> tuple[list[int], float] | None:
    """Return the columns of the best assignment and its bound, from as few columns as can be proven enough."""
    relaxed = relax(losses, owners, costs, most)
    if relaxed is None:
        return None
    taken, size = relaxed.taken, _CORE
    order = np.sort(relaxed.excess)
    while True:
        best = math.inf if taken is None else math.fsum(losses[taken])
        tolerance = gap * abs(best) if taken is not None else 0.0
        if taken is not None and best - relaxed.bound <= tolerance:
            return [int(column) for column in taken], relaxed.bound
        # What is above this cannot be part of anything better than what is known.
        proven = (best - relaxed.bound) * (1 + SLACK)
        wanted = float(order[min(len(order), int(owners[-1]) + 1 + size) - 1])
        reach = min(wanted, proven)
        kept = np.flatnonzero(relaxed.excess <= reach)
        if taken is not None:
            kept = np.union1d(kept, taken)
        found = _asked(losses, owners, costs, most, kept, gap)
        outside = np.setdiff1d(np.arange(len(losses)), kept)
        beyond = relaxed.bound + float(relaxed.excess[outside].min()) if len(outside) else math.inf
        if found is not None:
            taken, inner = found
            best = math.fsum(losses[taken])
            if beyond >= best - gap * abs(best) or reach == proven:
                return [int(column) for column in taken], min(inner, beyond, best)
        elif not len(outside):
            return None
        size *= 4


def _asked(
    losses: Floats, owners: Indices, costs: Floats, most: Floats, kept: Indices, gap: float
) -> tuple[Indices, float] | None:
    """Return HiGHS' answer for the columns `kept`, those of owners without a choice paid in advance."""
    counts = np.bincount(owners[kept])
    lone = kept[counts[owners[kept]] == 1]
    free = kept[counts[owners[kept]] > 1]
    paid, rest = math.fsum(losses[lone]), most - costs[:, lone].sum(axis=1)
    if not len(free):
        return (np.sort(lone), paid) if (rest >= 0).all() else None
    values = losses[free].copy()
    numbers = np.unique(owners[free], return_inverse=True)[1]
    # The constant goes to the first owner, so that HiGHS' relative gap is one of the whole.
    values[numbers == 0] += paid
    scale = SPAN / (float(np.abs(values).max()) or 1.0)
    rows = [Row(costs=costs[k, free], upper=float(rest[k])) for k in range(len(most))]
    found = best_columns(values * scale, [int(number) for number in numbers], rows, gap=gap)
    if found is None:
        return None
    return np.sort(np.concatenate([lone, free[found.taken]])), found.bound / scale
