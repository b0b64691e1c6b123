"""The general program: one option for every unit, any number of budgets, losses of single options and of pairs.

minimise  sum_u L[u, o] x[u, o] + sum_uv Q[u, o, v, p] x[u, o] x[v, p]
with      sum_o x[u, o] = 1,   sum_uo cost_k[u, o] x[u, o] <= limit_k for every budget k,   x binary

A unit is a layer, or one role of it. Units that no budget and no pair connects are programs of their own. In each, what
cannot be part of a best solution is left out before HiGHS is asked: an option that another beats in everything, and
what the linear program excludes (`relaxed`). The same arguments give the same solution.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from mixdq.allocation.exact import SPAN, solve_columns
from mixdq.allocation.highs import Floats, Row, best_columns
from mixdq.allocation.relaxed import Indices, least_cost
from mixdq.errors import InfeasibleBudgetError, NonFiniteError

Unit = TypeVar("Unit", bound=Hashable)
Option = TypeVar("Option", bound=Hashable)

Losses = Mapping[Unit, Mapping[Option, float]]
Reach = dict[str, tuple[float, float]]
PairLosses = Mapping[tuple[Unit, Unit], Mapping[tuple[Option, Option], float]]

SLACK = 1e-9
"""Share of itself by which a budget may be overstepped and still counts as met: the rounding of a float sum."""

_ROUNDING = 1e-10
"""HiGHS' absolute gap of 1e-6 in SPAN, and the rounding of sums, in shares of the losses."""


@dataclass(frozen=True, kw_only=True)
class Limit(Generic[Unit, Option]):
    """A budget: what options cost (a unit without costs costs nothing) and what all may cost together.

    `unit` of cost is one of the setting `name`, for error texts: mean bits of a budget that is counted in bits.
    """

    name: str
    costs: Mapping[Unit, Mapping[Option, float]]
    most: float
    unit: float = 1.0

    @property
    def reach(self) -> tuple[float, float]:
        """The least and the greatest that can be spent, in the setting's unit."""
        least = math.fsum(min(costs.values()) for costs in self.costs.values())
        greatest = math.fsum(max(costs.values()) for costs in self.costs.values())
        return least / self.unit, greatest / self.unit


@dataclass(frozen=True, kw_only=True)
class Chosen(Generic[Unit, Option]):
    """The option of every unit, their losses, what no assignment falls below, and what each budget has spent."""

    options: dict[Unit, Option]
    loss: float
    bound: float
    spent: dict[str, float]

    @property
    def gap(self) -> float:
        """By what share of its losses the solution may miss the best; 0 where it is proven to be the best."""
        missing = self.loss - self.bound
        return 0.0 if missing <= _ROUNDING * abs(self.loss) else missing / abs(self.loss)


def choose_options(
    losses: Losses[Unit, Option],
    limits: Sequence[Limit[Unit, Option]] = (),
    pairs: PairLosses[Unit, Option] | None = None,
    *,
    gap: float = 0.0,
) -> Chosen[Unit, Option]:
    """Return the options with the least sum of losses within every limit.

    Of options alike in loss and costs the first of its unit is taken. `pairs` holds what two options taken together
    add, of either sign; what is not named adds nothing. `gap` is the share of the losses by which the solution may miss
    the best: 0 is exact.

    Raises:
        InfeasibleBudgetError: a limit is out of reach, alone or together with the others; `reach` names all of them.
        NonFiniteError: a loss is NaN or infinite.
    """
    pairs = pairs or {}
    reach = {limit.name: limit.reach for limit in limits}
    _check(losses, limits, reach)
    # What cannot be overspent connects nothing.
    tight = [limit for limit in limits if limit.most < reach[limit.name][1] * limit.unit]
    options: dict[Unit, Option] = {}
    bound = 0.0
    for units in connected(losses, tight, pairs):
        tied = {both: terms for both, terms in pairs.items() if both[0] in units}
        lines = [limit for limit in tight if any(unit in limit.costs for unit in units)]
        solved = _solve({unit: losses[unit] for unit in units}, lines, tied, gap)
        if isinstance(solved, dict):
            raise _together(limits, reach | solved)
        options |= solved[0]
        bound += solved[1]
    loss = math.fsum(losses[unit][options[unit]] for unit in losses)
    loss += math.fsum(terms.get((options[u], options[v]), 0.0) for (u, v), terms in pairs.items())
    every = math.fsum(abs(value) for choices in losses.values() for value in choices.values())
    every += math.fsum(abs(value) for terms in pairs.values() for value in terms.values())
    if max(abs(loss), loss - bound) <= _ROUNDING * every:
        # Nothing is lost, of which no share can be missed.
        bound = loss
    spent = {
        limit.name: math.fsum(costs[options[unit]] for unit, costs in limit.costs.items()) / limit.unit
        for limit in limits
    }
    return Chosen(options={unit: options[unit] for unit in losses}, loss=loss, bound=min(bound, loss), spent=spent)


def _check(losses: Losses[Unit, Option], limits: Sequence[Limit[Unit, Option]], reach: Reach) -> None:
    for unit, choices in losses.items():
        for option, loss in choices.items():
            if not math.isfinite(loss):
                raise NonFiniteError(f"{unit}: the loss of {option} is {loss}; measure it again", where=str(unit))
    for limit in limits:
        least, greatest = reach[limit.name]
        asked = limit.most / limit.unit
        if not asked >= least * (1 - SLACK):
            raise InfeasibleBudgetError(
                f"{limit.name} = {asked:.10g} is out of reach: the choices give {least:.10g} to {greatest:.10g}. "
                "Raise the budget, offer smaller widths, or keep fewer layers.",
                least=least,
                greatest=greatest,
                reach=reach,
            )


def connected(
    losses: Losses[Unit, Option], limits: Sequence[Limit[Unit, Option]], pairs: PairLosses[Unit, Option]
) -> list[dict[Unit, None]]:
    """Return the units in groups that share no budget and no pair: each group is a program of its own."""
    group = {unit: {unit: None} for unit in losses}

    def join(units: Sequence[Unit]) -> None:
        for unit in units[1:]:
            into, other = group[units[0]], group[unit]
            if into is not other:
                into.update(other)
                group.update(dict.fromkeys(other, into))

    for limit in limits:
        join(list(limit.costs))
    for both in pairs:
        join(both)
    seen: dict[int, dict[Unit, None]] = {id(members): members for members in group.values()}
    # In the order of the units, whatever order they were joined in.
    return [{unit: None for unit in losses if unit in members} for members in seen.values()]


def _solve(
    losses: Losses[Unit, Option], limits: Sequence[Limit[Unit, Option]], pairs: PairLosses[Unit, Option], gap: float
) -> tuple[dict[Unit, Option], float] | Reach:
    """Return the best options of connected units and a bound; or, if no assignment is within, what budgets can be."""
    if not limits and not pairs:
        best = {unit: min(choices, key=choices.__getitem__) for unit, choices in losses.items()}
        return best, math.fsum(losses[unit][option] for unit, option in best.items())
    columns = [
        (owner, unit, option)
        for owner, unit in enumerate(losses)
        for option in (losses[unit] if pairs else _undominated(unit, losses[unit], limits))
    ]
    owners = np.array([owner for owner, _, _ in columns], dtype=np.intp)
    values = np.array([losses[unit][option] for _, unit, option in columns], dtype=np.float64)
    costs = np.array(
        [[limit.costs[unit][option] if unit in limit.costs else 0.0 for _, unit, option in columns] for limit in limits]
    ).reshape(len(limits), len(columns))
    most = np.array([limit.most + SLACK * abs(limit.most) for limit in limits])
    if pairs:
        where = {(unit, option): column for column, (_, unit, option) in enumerate(columns)}
        number = {unit: owner for owner, unit in enumerate(losses)}
        terms = {
            (number[u], number[v]): {(where[u, o], where[v, p]): value for (o, p), value in terms.items()}
            for (u, v), terms in pairs.items()
        }
        size = math.fsum(abs(v) for v in values) + math.fsum(abs(v) for t in pairs.values() for v in t.values())
        scale = SPAN / size if size > 0 else 1.0
        found = best_columns(
            values * scale,
            [int(owner) for owner in owners],
            [Row(costs=costs[k], upper=float(most[k])) for k in range(len(limits))],
            pairs={both: {key: value * scale for key, value in term.items()} for both, term in terms.items()},
            gap=gap,
        )
        result = None if found is None else (found.taken, found.bound / scale)
    else:
        result = solve_columns(values, owners, costs, most, gap)
    if result is None:
        return _reach(owners, costs, most, limits)
    taken, bound = result
    return {columns[column][1]: columns[column][2] for column in taken}, bound


def _undominated(unit: Unit, choices: Mapping[Option, float], limits: Sequence[Limit[Unit, Option]]) -> list[Option]:
    """Return the options that no other beats or equals in loss and every cost; of equal ones the first."""
    lines = [limit.costs[unit] for limit in limits if unit in limit.costs]
    points = {option: (loss, *(costs[option] for costs in lines)) for option, loss in choices.items()}
    listed = list(points)

    def beaten(index: int) -> bool:
        own = points[listed[index]]
        return any(
            all(a <= b for a, b in zip(points[other], own, strict=True)) and (points[other] != own or place < index)
            for place, other in enumerate(listed)
            if place != index
        )

    return [option for index, option in enumerate(listed) if not beaten(index)]


def _reach(owners: Indices, costs: Floats, most: Floats, limits: Sequence[Limit[Unit, Option]]) -> Reach:
    """Return the least and the greatest of each limit, the others met as far as fractions of options can tell."""
    found = {limit.name: limit.reach for limit in limits}
    for index, limit in enumerate(limits):
        least = least_cost(index, owners, costs, most)
        if least is not None:
            found[limit.name] = (least / limit.unit, found[limit.name][1])
    return found


def _together(limits: Sequence[Limit[Unit, Option]], reach: Reach) -> InfeasibleBudgetError:
    """Return the error of limits each of which is within reach alone, but not together."""
    asked = ", ".join(f"{limit.name} = {limit.most / limit.unit:.10g}" for limit in limits)
    needs = "; ".join(f"{name} {least:.10g} to {greatest:.10g}" for name, (least, greatest) in reach.items())
    first = next(iter(reach.values()))
    return InfeasibleBudgetError(
        f"{asked}: no assignment meets them together. With the others met, each can be: {needs}. Raise one of them.",
        least=first[0],
        greatest=first[1],
        reach=reach,
    )
