import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixdq.allocation.choices import Limit, choose_options
from mixdq.errors import InfeasibleBudgetError, NonFiniteError

NUMBERS = st.floats(0.001, 1000.0)


@st.composite
def programs(draw, pairs: bool = False):
    """Some units of some options, up to three budgets that need not touch every unit, and pair terms."""
    units = {f"u{i}": [2, 4, 8][: draw(st.integers(1, 3))] for i in range(draw(st.integers(1, 5)))}
    losses = {unit: {o: draw(NUMBERS) for o in options} for unit, options in units.items()}
    limits = []
    for k in range(draw(st.integers(0, 3))):
        touched = [unit for unit in units if draw(st.booleans())] or list(units)[:1]
        costs = {unit: {o: draw(NUMBERS) for o in units[unit]} for unit in touched}
        least, greatest = Limit(name="", costs=costs, most=0.0).reach
        most = least + (greatest - least) * draw(st.floats(0.0, 1.1))
        limits.append(Limit(name=f"budget {k}", costs=costs, most=most))
    if not pairs:
        return losses, limits, {}
    terms = {}
    for u, v in itertools.combinations(units, 2):
        if draw(st.booleans()):
            terms[u, v] = {(o, p): draw(st.floats(-500.0, 500.0)) for o in units[u] for p in units[v]}
    return losses, limits, terms


def brute(losses, limits, pairs) -> float | None:
    """The least loss over every assignment."""
    best = math.inf
    for taken in itertools.product(*losses.values()):
        chosen = dict(zip(losses, taken, strict=True))
        if all(sum(c[chosen[u]] for u, c in limit.costs.items()) <= limit.most * (1 + 1e-9) for limit in limits):
            loss = sum(losses[u][o] for u, o in chosen.items())
            loss += sum(terms.get((chosen[u], chosen[v]), 0.0) for (u, v), terms in pairs.items())
            best = min(best, loss)
    return None if best == math.inf else best


def check(losses, limits, pairs) -> None:
    expected = brute(losses, limits, pairs)
    if expected is None:
        with pytest.raises(InfeasibleBudgetError) as caught:
            choose_options(losses, limits, pairs)
        assert caught.value.reach.keys() == {limit.name for limit in limits}
        return
    found = choose_options(losses, limits, pairs)
    size = sum(max(map(abs, terms.values())) for terms in [*losses.values(), *pairs.values()])
    assert found.loss == pytest.approx(expected, rel=1e-9, abs=1e-9 * size)
    assert found.bound <= found.loss
    assert found.bound == pytest.approx(expected, rel=1e-7, abs=1e-7 * size)
    assert all(found.spent[limit.name] <= limit.most * (1 + 1e-9) for limit in limits)
    assert choose_options(losses, limits, pairs) == found


@settings(deadline=None, max_examples=80)
@given(programs())
def test_nothing_within_the_budgets_is_better(program) -> None:
    check(*program)


@settings(deadline=None, max_examples=40)
@given(programs(pairs=True))
def test_pairs_are_exact_beside_any_budgets(program) -> None:
    check(*program)


def test_of_equal_options_the_first_is_taken() -> None:
    losses = {"a": {8: 1.0, 4: 1.0, 2: 3.0}, "b": {8: 0.0, 4: 1.0, 2: 3.0}}
    times = {unit: {8: 5.0, 4: 5.0, 2: 1.0} for unit in losses}
    # Four is as good as eight and no faster: nobody gets it for speed's sake.
    assert choose_options(losses, [Limit(name="ms", costs=times, most=10.0)]).options == {"a": 8, "b": 8}
    assert choose_options(losses, [Limit(name="ms", costs=times, most=6.0)]).options == {"a": 2, "b": 8}
    assert choose_options(losses).options == {"a": 8, "b": 8}


def test_larger_programs_are_exact_and_a_gap_is_kept() -> None:
    import numpy as np

    rng = np.random.default_rng(3)
    losses = {i: {b: 4.0**-b * rng.lognormal() for b in (8, 4, 2)} for i in range(150)}
    costs = {i: {b: float(b * rng.integers(1, 500)) for b in (8, 4, 2)} for i in losses}
    other = {i: {b: float(rng.random() + b) for b in (8, 4, 2)} for i in losses}
    limits = [
        Limit(name=name, costs=c, most=0.5 * sum(Limit(name=name, costs=c, most=0.0).reach))
        for name, c in (("bytes", costs), ("ms", other))
    ]
    single = choose_options(losses, limits[:1])
    assert single.gap == 0.0
    both = choose_options(losses, limits, gap=1e-3)
    assert 0.0 <= both.gap <= 1e-3
    # A second budget can only cost.
    assert both.loss >= single.loss * (1 - 1e-9)


@pytest.mark.parametrize("seed", [1, 7, 9, 10])
def test_where_nothing_need_be_lost_nothing_is_missed(seed) -> None:
    import numpy as np

    rng = np.random.default_rng(seed)
    losses = {i: {16: 0.0, 8: float(rng.lognormal(-3.0, 2.0)), 4: float(rng.lognormal(-3.0, 2.0))} for i in range(16)}
    costs = {i: {o: float(rng.lognormal()) for o in losses[i]} for i in losses}
    pairs = {
        (i, j): {
            (a, b): 0.3 * float(rng.normal()) * math.sqrt(losses[i][a] * losses[j][b]) for a in (8, 4) for b in (8, 4)
        }
        for i, j in itertools.pairwise(losses)
    }
    limit = Limit(name="ms", costs=costs, most=sum(of[16] for of in costs.values()))
    for terms in ({}, pairs):
        found = choose_options(losses, [limit], terms, gap=1e-4)
        assert set(found.options.values()) == {16}
        assert (found.loss, found.gap) == (0.0, 0.0)


def test_budgets_that_exclude_each_other_are_named_with_what_each_can_be() -> None:
    losses = {"a": {1: 0.0, 2: 0.0}}
    limits = [
        Limit(name="bytes", costs={"a": {1: 1.0, 2: 9.0}}, most=5.0),
        Limit(name="ms", costs={"a": {1: 8.0, 2: 2.0}}, most=4.0),
    ]
    with pytest.raises(InfeasibleBudgetError, match=r"bytes = 5, ms = 4: no assignment .* each can be: bytes 6") as got:
        choose_options(losses, limits)
    assert got.value.reach["ms"][0] == pytest.approx(5.0)
    with pytest.raises(InfeasibleBudgetError, match="ms = 1 is out of reach: the choices give 2 to 8") as got:
        choose_options(losses, [Limit(name="ms", costs=limits[1].costs, most=1.0)])
    assert got.value.reach == {"ms": (2.0, 8.0)}


def test_losses_must_be_numbers() -> None:
    with pytest.raises(NonFiniteError, match="measure it again"):
        choose_options({"a": {8: math.inf}})
