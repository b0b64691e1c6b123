import itertools

import numpy as np
import pytest

from mixdq.allocation.exact import solve_columns


@pytest.mark.parametrize("core", [1, 120])
@pytest.mark.parametrize("seed", range(10))
def test_nothing_is_better_however_few_columns_are_asked_about_first(seed, core, monkeypatch) -> None:
    monkeypatch.setattr("mixdq.allocation.exact._CORE", core)
    rng = np.random.default_rng(seed)
    owners = np.repeat(np.arange(6), 3)
    losses = rng.lognormal(sigma=3.0, size=18) * (-1.0 if seed == 9 else 1.0)
    costs = rng.random((seed % 3 + 1, 18)) + 0.1
    limits = costs.mean(axis=1) * 6 * rng.uniform(0.6, 1.0)
    values = [
        losses[list(taken)].sum()
        for taken in itertools.product(*np.arange(18).reshape(6, 3).tolist())
        if (costs[:, list(taken)].sum(axis=1) <= limits).all()
    ]
    solved = solve_columns(losses, owners, costs, limits, 0.0)
    assert (solved is None) == (not values)
    if solved is not None:
        taken, bound = solved
        assert owners[taken].tolist() == list(range(6))
        assert (costs[:, taken].sum(axis=1) <= limits * (1 + 1e-9)).all()
        assert losses[taken].sum() == pytest.approx(min(values), rel=1e-9)
        assert bound == pytest.approx(min(values), rel=1e-9)


def test_a_gap_that_is_allowed_is_not_exceeded() -> None:
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(200), 3)
    losses, costs = rng.lognormal(sigma=2.0, size=600), rng.random((2, 600))
    taken, bound = solve_columns(losses, owners, costs, costs.mean(axis=1) * 180, 1e-2)
    value = losses[taken].sum()
    assert bound <= value <= bound + 1e-2 * value
