"""The linear program behind a program: a bound from below, a good assignment, and columns that no better one can hold.

With multipliers m >= 0 of the budgets every column has the price loss + m . cost, and no assignment costs less than the
sum of each owner's least price - m . limits (Lagrange). An assignment that takes a column pays at least what that
column's price is above its owner's least more: where that is more than the gap still open, the column can be left out.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_array

from mixdq.allocation.highs import Floats

Indices = NDArray[np.intp]

_INFEASIBLE = 2


@dataclass(frozen=True, kw_only=True)
class Relaxed:
    """What the linear program says.

    Attributes:
        bound: no assignment's losses are less.
        excess: of every column, by how much at least an assignment that takes it is above the bound.
        taken: an assignment within the limits, one column of every owner; None where rounding found none.
    """

    bound: float
    excess: Floats
    taken: Indices | None


def relax(losses: Floats, owners: Indices, costs: Floats, limits: Floats) -> Relaxed | None:
    """Return the relaxation of a program of [columns] losses and [budgets, columns] costs; None where it has no answer.

    Owners are 0 .. n - 1, their columns beside one another.
    """
    # Budgets in shares of their limits, losses in shares of the greatest: the linear program's tolerances are absolute.
    shares = costs / limits[:, None]
    span = float(np.abs(losses).max()) or 1.0
    count = int(owners[-1]) + 1
    # scipy's stubs do not know that it takes sparse equations.
    ones: Any = csr_array((np.ones(len(owners)), (owners, np.arange(len(owners)))), shape=(count, len(owners)))
    found = linprog(
        losses / span, A_ub=shares, b_ub=np.ones(len(limits)), A_eq=ones, b_eq=np.ones(count), method="highs-ds"
    )
    if found.status == _INFEASIBLE:
        return None
    if found.status != 0:
        raise RuntimeError(f"HiGHS ended with status {found.status}: {found.message}")
    assert found.x is not None
    multipliers = np.maximum(-found.ineqlin.marginals, 0.0) * span
    prices = losses + multipliers @ shares
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    cheapest = np.minimum.reduceat(prices, starts)
    excess = prices - cheapest[owners]
    rounded = np.array(
        [start + int(np.argmax(part)) for start, part in zip(starts, np.split(found.x, starts[1:]), strict=True)]
    )
    return Relaxed(
        bound=float(cheapest.sum() - multipliers.sum()),
        excess=excess,
        taken=improved(rounded, losses, owners, shares, excess, starts),
    )


def least_cost(index: int, owners: Indices, costs: Floats, limits: Floats) -> float | None:
    """Return the least that budget `index` can be with the other budgets met, fractions of columns allowed."""
    others = np.arange(len(limits)) != index
    found = relax(costs[index], owners, costs[others], limits[others]) if others.any() else None
    return None if found is None else found.bound


def improved(
    taken: Indices, losses: Floats, owners: Indices, shares: Floats, excess: Floats, starts: Indices
) -> Indices | None:
    """Return an assignment within the limits near `taken`: repaired where it oversteps, then bettered one by one.

    `shares` [budgets, columns] are costs over limits. None where repair ends without one.
    """
    taken = taken.copy()
    for _ in range(2 * len(taken)):
        spent = shares[:, taken].sum(axis=1)
        over = np.maximum(spent - 1.0, 0.0)
        if not over.any():
            break
        # What each column in the place of its owner's present one would leave overstepped, and what it would cost.
        left = np.maximum(spent[:, None] + shares - shares[:, taken][:, owners] - 1.0, 0.0).sum(axis=0)
        saved = over.sum() - left
        ratio = np.where(saved > 0, (excess - excess[taken][owners] + 1e-300) / np.maximum(saved, 1e-300), np.inf)
        best = int(np.argmin(ratio))
        if not np.isfinite(ratio[best]):
            return None
        taken[owners[best]] = best
    else:
        return None
    while True:
        room = 1.0 - shares[:, taken].sum(axis=1)
        gain = losses[taken][owners] - losses
        fits = ((shares - shares[:, taken][:, owners]) <= room[:, None]).all(axis=0)
        best = int(np.argmax(np.where(fits, gain, -np.inf)))
        if gain[best] <= 0:
            return taken
        taken[owners[best]] = best
