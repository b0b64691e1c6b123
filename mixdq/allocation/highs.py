"""HiGHS, asked so that its tolerances decide nothing: one column taken of every owner, rows met to the last unit.

HiGHS stops at an absolute gap of 1e-6 and meets rows within 1e-6. Whoever asks scales the objective to make the first
negligible; rows are scaled here, and a solution that oversteps one all the same is forbidden and asked for again.
"""

import ctypes
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

Floats = NDArray[np.float64]
PairTerms = Mapping[tuple[int, int], Mapping[tuple[int, int], float]]
"""(owner, owner) -> (column, column) -> what is added where both columns are taken; an owner's columns are its own."""

_OPTIMAL, _INFEASIBLE = 0, 2
_WHOLE_LIMIT = 2**50
_STEP = 2e-6


@dataclass(frozen=True, kw_only=True)
class Row:
    """A limit on the sum of the costs of the columns taken."""

    costs: Floats
    upper: float
    lower: float | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """The columns taken, one of each owner in order, and a value that no assignment falls below."""

    taken: list[int]
    bound: float


def best_columns(
    objective: Floats, owners: Sequence[int], rows: Sequence[Row], *, pairs: PairTerms | None = None, gap: float = 0.0
) -> Found | None:
    """Return the assignment with the least sum of `objective` within the rows, or None where there is none.

    Column i belongs to owner `owners[i]`; owners are 0 .. n - 1. `gap` is the proven share of the value by which it may
    miss the least. The same arguments give the same columns.
    """
    columns, count = len(objective), max(owners) + 1
    ones = _rows_of(owners, range(columns), count)
    scaled = [scaled_row(row) for row in rows]
    extra, links = _linked(pairs or {}, owners)
    costs = np.concatenate([objective, extra])
    wide = (0, len(extra))
    while True:
        limits = [
            LinearConstraint(np.pad(row.costs, wide)[None, :], -np.inf if row.lower is None else row.lower, row.upper)
            for row in scaled
        ]
        with _silent_output():
            result = milp(
                costs,
                integrality=np.concatenate([np.ones(columns, dtype=np.int64), np.zeros(len(extra), dtype=np.int64)]),
                bounds=Bounds(0, 1),
                constraints=[LinearConstraint(_widened(ones, len(extra)), 1, 1), *limits, *links],
                options={"mip_rel_gap": gap},
            )
        if result.status == _INFEASIBLE:
            return None
        if result.status != _OPTIMAL:
            raise RuntimeError(f"HiGHS ended with status {result.status}: {result.message}")
        assert result.x is not None
        taken = [int(column) for column in np.flatnonzero(result.x[:columns] > 0.5)]
        assert len(taken) == count
        overstepped = [(i, spent) for i, row in enumerate(scaled) if (spent := math.fsum(row.costs[taken])) > row.upper]
        if not overstepped:
            bound = result.mip_dual_bound
            return Found(taken=taken, bound=float(result.fun if bound is None else bound))
        for index, spent in overstepped:
            # Overstepped within HiGHS' tolerance: forbid that cost and everything above.
            scaled[index] = replace(scaled[index], upper=spent - _STEP)


def scaled_row(row: Row) -> Row:
    """Return the row in units that HiGHS' absolute tolerance cannot blur.

    Whole costs are divided by their common divisor and limited half a unit off the last whole number allowed, which
    makes the row exact; others are taken in units of the least.
    """
    costs, upper, lower = row.costs, row.upper, row.lower
    if all(cost == int(cost) for cost in costs) and float(np.abs(costs).sum()) < _WHOLE_LIMIT:
        unit = math.gcd(*(int(cost) for cost in costs)) or 1
        whole = np.array([int(cost) // unit for cost in costs], dtype=np.float64)
        low = None if lower is None else math.ceil(lower / unit) - 0.5
        return Row(costs=whole, upper=math.floor(upper / unit) + 0.5, lower=low)
    unit_cost = float(costs[costs > 0].min())
    return Row(costs=costs / unit_cost, upper=upper / unit_cost, lower=None if lower is None else lower / unit_cost)


def _linked(pairs: PairTerms, owners: Sequence[int]) -> tuple[Floats, list[LinearConstraint]]:
    """Return the values of one more column for every two columns of a pair of owners, and what ties them together.

    y[a, b] = x[a] x[b] for the columns a and b of two owners, without a product: sum_b y[a, b] = x[a] and
    sum_a y[a, b] = x[b], y >= 0. With binary x this is exact, and tight enough that few branches are needed.
    """
    members: dict[int, list[int]] = {}
    for column, owner in enumerate(owners):
        members.setdefault(owner, []).append(column)
    values: list[float] = []
    entries: list[tuple[int, int, float]] = []
    count = 0
    for (first, second), terms in pairs.items():
        made = {}
        for a in members[first]:
            for b in members[second]:
                made[a, b] = len(owners) + len(values)
                values.append(terms.get((a, b), 0.0))
        for a in members[first]:
            entries += [(count, made[a, b], 1.0) for b in members[second]] + [(count, a, -1.0)]
            count += 1
        for b in members[second]:
            entries += [(count, made[a, b], 1.0) for a in members[first]] + [(count, b, -1.0)]
            count += 1
    if not entries:
        return np.zeros(0), []
    tie = csr_array(
        ([value for _, _, value in entries], ([row for row, _, _ in entries], [column for _, column, _ in entries])),
        shape=(count, len(owners) + len(values)),
    )
    return np.array(values), [LinearConstraint(tie, 0, 0)]


def _rows_of(rows: Sequence[int], columns: Sequence[int], count: int) -> csr_array:
    return csr_array((np.ones(len(rows)), (list(rows), list(columns))), shape=(count, len(rows)))


def _widened(matrix: csr_array, more: int) -> csr_array:
    return csr_array((matrix.data, matrix.indices, matrix.indptr), shape=(matrix.shape[0], matrix.shape[1] + more))


@contextmanager
def _silent_output() -> Iterator[None]:
    """Let the process write nothing to its standard output: some versions of HiGHS leave notes to themselves there."""
    try:
        kept = os.dup(1)
    except OSError:  # there is none
        yield
        return
    sys.stdout.flush()
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 1)
    try:
        yield
    finally:
        # No such handle on Windows.
        with suppress(TypeError):
            ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
