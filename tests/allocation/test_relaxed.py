import itertools

import numpy as np
import pytest

from mixdq.allocation.relaxed import least_cost, relax


def instance(seed: int):
    rng = np.random.default_rng(seed)
    owners = np.repeat(np.arange(5), 3)
    losses, costs = rng.random(15), rng.random((2, 15)) + 0.1
    limits = costs.mean(axis=1) * 5 * rng.uniform(0.7, 1.1, size=2)
    values = {
        taken: losses[list(taken)].sum()
        for taken in itertools.product(*np.arange(15).reshape(5, 3).tolist())
        if (costs[:, list(taken)].sum(axis=1) <= limits).all()
    }
    return owners, losses, costs, limits, values


@pytest.mark.parametrize("seed", range(20))
def test_bound_excess_and_rounding_hold_for_every_assignment(seed) -> None:
    owners, losses, costs, limits, values = instance(seed)
    relaxed = relax(losses, owners, costs, limits)
    if relaxed is None:
        assert not values
        return
    for taken, value in values.items():
        assert value >= relaxed.bound - 1e-9
        assert value >= relaxed.bound + relaxed.excess[list(taken)].max() - 1e-9
    if relaxed.taken is not None:
        assert owners[relaxed.taken].tolist() == [0, 1, 2, 3, 4]
        assert (costs[:, relaxed.taken].sum(axis=1) <= limits * (1 + 1e-9)).all()
        assert losses[relaxed.taken].sum() >= min(values.values()) - 1e-9


@pytest.mark.parametrize("seed", range(8))
def test_least_of_one_budget_beside_the_other_is_a_bound(seed) -> None:
    owners, _, costs, limits, values = instance(seed)
    least = least_cost(0, owners, costs, limits)
    assert least is not None
    assert all(costs[0, list(taken)].sum() >= least - 1e-9 for taken in values)
    assert least_cost(0, owners, costs[:1], limits[:1]) is None
