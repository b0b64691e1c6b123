import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from mixdq.allocation.program import SLACK, solve, solve_costs
from mixdq.errors import InfeasibleBudgetError, NonFiniteError

WIDTHS = (2, 4, 8)
SCORES = st.floats(-100, 100) | st.sampled_from([0.0, 1.0, 83.8])
WHOLE_SIZES = st.integers(1, 2000).map(float)
ODD_SIZES = st.floats(0.1, 2000)


@st.composite
def problems(draw, sizes=WHOLE_SIZES | ODD_SIZES):
    names = [f"layer{i}" for i in range(draw(st.integers(1, 5)))]
    choices = [draw(st.lists(st.sampled_from(WIDTHS), min_size=1, unique=True)) for _ in names]
    scores = {name: {bits: draw(SCORES) for bits in widths} for name, widths in zip(names, choices, strict=True)}
    return scores, {name: draw(sizes) for name in names}, draw(st.floats(2, 8))


def assignments(scores, sizes):
    """All assignments as (objective, mean bits): the definition of the problem, by enumeration."""
    total = sum(sizes.values())
    for bits in itertools.product(*(choices for choices in scores.values())):
        pairs = list(zip(scores, bits, strict=True))
        yield math.fsum(scores[n][b] for n, b in pairs), math.fsum(sizes[n] * b for n, b in pairs) / total


@settings(deadline=None, max_examples=150)
@given(problems())
def test_no_assignment_is_better(problem) -> None:
    scores, sizes, most = problem
    everything = list(assignments(scores, sizes))
    within = [objective for objective, mean in everything if mean <= most]
    if not within:
        reach = [mean for _, mean in everything]
        with pytest.raises(InfeasibleBudgetError) as caught:
            solve(scores, sizes, most * (1 - 2 * SLACK))
        assert caught.value.least == pytest.approx(min(reach))
        assert caught.value.greatest == pytest.approx(max(reach))
        return
    found = solve(scores, sizes, most)
    # What HiGHS may not see: an absolute gap of 1e-6 in a span scaled to 1e6.
    span = max(max(c.values()) - min(c.values()) for c in scores.values())
    assert found.objective >= max(within) - 1e-11 * span - 1e-12
    assert found.mean_bits <= most * (1 + 2 * SLACK) + 1e-6 * min(sizes.values()) / sum(sizes.values())
    assert any(found.objective == pytest.approx(o, abs=1e-9) for o, _ in everything)
    assert list(found.bits) == list(scores)


@settings(deadline=None, max_examples=60)
@given(problems(sizes=WHOLE_SIZES), st.floats(0, 2))
def test_lower_limit_is_met_too(problem, width) -> None:
    scores, sizes, most = problem
    least = most - width
    within = [o for o, mean in assignments(scores, sizes) if least <= mean <= most]
    try:
        found = solve(scores, sizes, most, least)
    except InfeasibleBudgetError:
        assert not within
        return
    assert found.objective >= max(within, default=-math.inf) - 1e-9
    assert least * (1 - 2 * SLACK) <= found.mean_bits <= most * (1 + 2 * SLACK)


@pytest.mark.parametrize("seed", range(4))
def test_objective_lies_between_greedy_and_the_linear_bound(seed) -> None:
    rng = np.random.default_rng(seed)
    count, most = 60, 5.0
    sizes = {f"l{i}": float(rng.integers(1, 1000)) for i in range(count)}
    scores = {name: dict(zip(WIDTHS, rng.normal(size=3) * 10, strict=True)) for name in sizes}
    found = solve(scores, sizes, most)
    columns = [(i, n, b) for i, n in enumerate(scores) for b in WIDTHS]
    ones = np.zeros((count, len(columns)))
    for column, (row, _, _) in enumerate(columns):
        ones[row, column] = 1
    relaxed = linprog(
        [-scores[n][b] for _, n, b in columns],
        A_ub=[[sizes[n] * b for _, n, b in columns]],
        b_ub=[most * sum(sizes.values())],
        A_eq=ones,
        b_eq=np.ones(count),
        bounds=(0, 1),
    )
    assert relaxed.status == 0
    assert found.objective <= -relaxed.fun + 1e-6
    # The relaxation splits one layer at most, so it is worth at most one layer's spread more.
    assert found.objective >= -relaxed.fun - max(max(s.values()) - min(s.values()) for s in scores.values())


@settings(deadline=None, max_examples=40)
@given(problems(sizes=WHOLE_SIZES), st.floats(0, 3))
def test_more_budget_never_hurts(problem, extra) -> None:
    scores, sizes, most = problem
    try:
        tight = solve(scores, sizes, most)
    except InfeasibleBudgetError:
        return
    assert solve(scores, sizes, most + extra).objective >= tight.objective - 1e-9


@pytest.mark.parametrize("factor", [1e-6, 1 / 3, 7.0, 1e9])
def test_units_of_size_and_score_do_not_matter(factor) -> None:
    rng = np.random.default_rng(7)
    sizes = {f"l{i}": float(rng.integers(1, 500)) for i in range(40)}
    scores = {name: dict(zip(WIDTHS, np.sort(rng.normal(size=3)), strict=True)) for name in sizes}
    plain = solve(scores, sizes, 4.5)
    resized = solve(scores, {name: size * factor for name, size in sizes.items()}, 4.5)
    rescored = solve({n: {b: s * factor + 3 for b, s in c.items()} for n, c in scores.items()}, sizes, 4.5)
    assert plain.bits == resized.bits == rescored.bits


def test_order_of_layers_and_widths_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    sizes = {f"l{i}": float(rng.integers(1, 50)) for i in range(30)}
    scores = {name: {bits: float(rng.integers(0, 4)) for bits in WIDTHS} for name in sizes}  # many ties
    turned = {name: dict(reversed(scores[name].items())) for name in reversed(scores)}
    assert solve(scores, sizes, 4.3).bits == solve(turned, sizes, 4.3).bits


def test_tiny_layer_beside_a_huge_one_still_counts() -> None:
    # The budget lacks one element's bits of what all at 8 bits would take: less than HiGHS' own tolerance of the row.
    sizes = {"huge": 1e9, "tiny": 1.0}
    scores = {"huge": {4: 0.0, 8: 1.0}, "tiny": {4: 0.0, 8: 1e-3}}
    costs = {name: {bits: size * bits for bits in (4, 8)} for name, size in sizes.items()}
    assert solve_costs(scores, costs, 8e9 + 8).bits == {"huge": 8, "tiny": 8}
    assert solve_costs(scores, costs, (8e9 + 7) / (1 + SLACK)).bits == {"huge": 8, "tiny": 4}


def test_small_scores_are_told_apart() -> None:
    # Noise powers near the floor, 10^-8.4: far below HiGHS' absolute gap, were they not scaled.
    scores = {name: {4: -4e-9, 8: -3e-9 - i * 1e-10} for i, name in enumerate("abc")}
    assert solve(scores, dict.fromkeys("abc", 1.0), 4 + 4 / 3).bits == {"a": 8, "b": 4, "c": 4}


def test_narrower_width_wins_where_it_scores_better() -> None:
    assert solve({"a": {4: 2.0, 8: 1.0}}, {"a": 1.0}, 8.0).bits == {"a": 4}


def test_infinite_score_counts_as_the_greatest_finite_one() -> None:
    found = solve({"a": {4: 1.0, 8: math.inf}, "b": {4: 0.0, 8: 50.0}}, {"a": 1.0, "b": 1.0}, 8.0)
    assert found.bits == {"a": 8, "b": 8}
    assert found.objective == 100.0
    assert solve({"a": {4: math.inf, 8: math.inf}}, {"a": 1.0}, 4.0).objective == 0.0


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_score_that_is_no_number_is_refused_with_its_layer(bad) -> None:
    with pytest.raises(NonFiniteError, match="b: the score of 8 bits") as caught:
        solve({"a": {8: 1.0}, "b": {8: bad}}, {"a": 1.0, "b": 1.0}, 8.0)
    assert caught.value.where == "b"


@pytest.mark.parametrize(
    ("scores", "sizes", "most", "says"),
    [
        ({}, {}, 8.0, "no layers"),
        ({"a": {}}, {"a": 1.0}, 8.0, "a: no choices"),
        ({"a": {8: 1.0}}, {"a": 0.0}, 8.0, "a: size 0.0"),
        ({"a": {8: 1.0}}, {"a": math.nan}, 8.0, "a: size nan"),
        ({"a": {8: 1.0}}, {"a": -1.0}, 8.0, "a: size -1.0"),
        ({"a": {8: 1.0}}, {"a": 1.0, "b": 1.0}, 8.0, r"only one of them has \['b'\]"),
        ({"a": {8: 1.0}, "b": {8: 1.0}}, {"a": 1.0}, 8.0, r"only one of them has \['b'\]"),
        ({"a": {8: 1.0}}, {"a": 1.0}, math.nan, "not a number"),
    ],
)
def test_senseless_input_is_refused(scores, sizes, most, says) -> None:
    with pytest.raises(ValueError, match=says):
        solve(scores, sizes, most)


def test_budget_out_of_reach_carries_least_and_greatest() -> None:
    scores = {"a": {4: 0.0, 8: 1.0}, "b": {2: 0.0, 8: 1.0}}
    with pytest.raises(InfeasibleBudgetError, match=r"give 3\.0000 to 8\.0000") as caught:
        solve(scores, {"a": 1.0, "b": 1.0}, 2.9)
    assert (caught.value.least, caught.value.greatest) == (3.0, 8.0)
    with pytest.raises(InfeasibleBudgetError, match="at least 9"):
        solve(scores, {"a": 1.0, "b": 1.0}, 12.0, 9.0)
    with pytest.raises(InfeasibleBudgetError):  # inside the reach, but between two assignments
        solve(scores, {"a": 1.0, "b": 1.0}, 4.9, 4.1)


def test_budgets_exactly_at_the_ends_are_met() -> None:
    sizes = {"a": 0.1, "b": 0.2, "c": 0.7}
    scores = {name: {4: 0.0, 8: 1.0} for name in sizes}
    assert set(solve(scores, sizes, 4.0).bits.values()) == {4}
    assert set(solve(scores, sizes, 8.0, 8.0).bits.values()) == {8}
    assert set(solve(scores, sizes, math.inf).bits.values()) == {8}


def test_room_works_without_torch() -> None:
    code = "import sys, mixdq.allocation.sweep, mixdq.allocation.plans; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
