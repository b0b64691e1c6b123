import ctypes
import itertools
import os
import sys

import numpy as np
import pytest

from mixdq.allocation.highs import Row, _silent_output, best_columns, scaled_row


def brute(objective, owners, rows, pairs=None):
    """The least objective over every assignment, or None."""
    columns = [[c for c, owner in enumerate(owners) if owner == o] for o in range(max(owners) + 1)]
    best = None
    for taken in itertools.product(*columns):
        if any(sum(row.costs[list(taken)]) > row.upper for row in rows):
            continue
        value = sum(objective[list(taken)])
        value += sum(q for terms in (pairs or {}).values() for (a, b), q in terms.items() if {a, b} <= set(taken))
        best = value if best is None else min(best, value)
    return best


@pytest.mark.parametrize("seed", range(12))
def test_every_row_is_met_and_nothing_is_better(seed) -> None:
    rng = np.random.default_rng(seed)
    owners = sorted([*range(4), *rng.integers(0, 4, size=8).tolist()])
    objective = rng.normal(size=12) * 1e6
    costs = rng.integers(1, 50, size=(2, 12)).astype(float) if seed % 2 else rng.random((2, 12))
    rows = [Row(costs=line, upper=float(line.mean() * rng.uniform(2.0, 5.0))) for line in costs]
    found = best_columns(objective, owners, rows)
    expected = brute(objective, owners, rows)
    assert (found is None) == (expected is None)
    if found is not None:
        assert [owners[column] for column in found.taken] == [0, 1, 2, 3]
        assert all(sum(row.costs[found.taken]) <= row.upper + 1e-9 for row in rows)
        assert sum(objective[found.taken]) == pytest.approx(expected, rel=1e-12)
        assert found.bound == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_pair_terms_of_either_sign_are_exact(seed) -> None:
    rng = np.random.default_rng(seed)
    owners = [owner for owner in range(5) for _ in range(3)]
    objective = rng.random(15) * 1e6
    pairs = {
        (u, v): {(3 * u + a, 3 * v + b): rng.normal() * 1e6 for a in range(3) for b in range(3) if rng.random() < 0.7}
        for u, v in ((0, 1), (1, 2), (0, 2), (3, 4))
    }
    rows = [Row(costs=rng.integers(1, 9, size=15).astype(float), upper=22.0)]
    found = best_columns(objective, owners, rows, pairs=pairs)
    expected = brute(objective, owners, rows, pairs)
    assert (found is None) == (expected is None)
    if found is not None:
        value = sum(objective[found.taken])
        value += sum(q for terms in pairs.values() for (a, b), q in terms.items() if {a, b} <= set(found.taken))
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-3)
        assert found.bound == pytest.approx(expected, rel=1e-9, abs=1e-3)


def test_gap_is_proven() -> None:
    rng = np.random.default_rng(0)
    owners = [owner for owner in range(40) for _ in range(3)]
    objective = rng.random(120) * 1e6
    row = Row(costs=1.0 / objective, upper=float((1.0 / objective).reshape(40, 3).min(axis=1).sum() * 2))
    loose, exact = best_columns(objective, owners, [row], gap=0.05), best_columns(objective, owners, [row])
    assert loose is not None
    assert exact is not None
    best = objective[exact.taken].sum()
    assert loose.bound <= best * (1 + 1e-9)
    assert best <= objective[loose.taken].sum() <= loose.bound * 1.06


def test_whole_costs_are_limited_between_two_whole_numbers() -> None:
    row = scaled_row(Row(costs=np.array([30.0, 60.0, 0.0]), upper=90.0, lower=31.0))
    assert (row.costs.tolist(), row.upper, row.lower) == ([1.0, 2.0, 0.0], 3.5, 1.5)


def test_nothing_is_printed_and_what_was_before_and_after_it_is(capfd) -> None:
    rng = np.random.default_rng(3)
    sys.stdout.write("before ")
    with _silent_output():
        os.write(1, b"a note")
        ctypes.CDLL(None).puts(b"a buffered one")
    best_columns(rng.random(8), [0, 0, 1, 1, 2, 2, 3, 3], [])
    sys.stdout.write("after\n")
    assert capfd.readouterr().out == "before after\n"
