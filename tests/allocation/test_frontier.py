import pytest

from mixdq.allocation import joint
from mixdq.allocation.frontier import FRONTIER_GAP, find_frontier
from mixdq.allocation.plans import mean_bits, uniform_plan, weight_bytes
from mixdq.errors import ConfigError, InfeasibleBudgetError
from mixdq.types.plan import Budget


@pytest.mark.parametrize(
    "budget",
    [
        Budget(weight_bits=4.0, keep=("block.3",)),
        Budget(weight_bytes=10**9, activation_bits=6.0),
        Budget(latency_ms=1e6, activation_bits=8.0),
    ],
)
def test_every_budget_is_met_and_more_never_loses_more(table, sensitivity, latencies, budget) -> None:
    times = latencies(table)
    program = joint.build_program(table, sensitivity, budget, latency=times if budget.latency_ms else None)
    found = find_frontier(program, 12)
    losses = [plan.solver.values["loss"] for plan in found.plans.values()]
    assert losses == sorted(losses, reverse=True)
    assert len(found.plans) == 12
    # Up to the rounding of a step.
    assert (min(found.plans), max(found.plans)) == pytest.approx((found.least, found.greatest), rel=1e-15)
    for most, plan in found.plans.items():
        spent = {
            "weight_bits": mean_bits(plan, table)[0],
            "weight_bytes": weight_bytes(plan, table),
            "latency_ms": times.of(plan),
        }[found.setting]
        assert spent <= most * (1 + 1e-8)
        assert mean_bits(plan, table)[1] <= budget.activation_bits * (1 + 1e-8)
        assert 0.0 <= plan.solver.gap <= FRONTIER_GAP
    # The ends are what they are said to be.
    for most, fits in ((found.least, True), (found.least * 0.999, False)):
        at = Budget(**{**vars(budget), found.setting: int(most) if found.setting == "weight_bytes" else most})
        if fits:
            joint.allocate(table, sensitivity, at, latency=times)
        else:
            with pytest.raises(InfeasibleBudgetError):
                joint.allocate(table, sensitivity, at, latency=times)
    beyond = Budget(**{**vars(budget), found.setting: int(found.greatest * 2)})
    best = joint.allocate(table, sensitivity, beyond, latency=times)
    assert losses[-1] == pytest.approx(best.solver.values["loss"], rel=2 * FRONTIER_GAP)


def test_points_lie_on_what_single_programs_find(table, sensitivity) -> None:
    program = joint.build_program(table, sensitivity, Budget(weight_bits=4.0, activation_bits=7.0))
    for most, plan in list(find_frontier(program, 5).plans.items())[1:]:
        alone = joint.allocate(table, sensitivity, Budget(weight_bits=most, activation_bits=7.0))
        assert alone.solver.values["loss"] <= plan.solver.values["loss"] * (1 + 1e-9)
        assert plan.solver.values["loss"] <= alone.solver.values["loss"] * (1 + 2 * FRONTIER_GAP)


def test_where_nothing_is_to_be_chosen_the_frontier_is_one_point_and_says_so(table, sensitivity, caplog) -> None:
    eight = {"content": (8,), "quality": (8,)}
    budget = Budget(weight_bits=8.0, activation_bits=8.0, weight_choices=eight, activation_choices=eight)
    found = find_frontier(joint.build_program(table, sensitivity, budget), 12)
    assert list(found.plans) == [found.least] == [found.greatest]
    assert "weight_bits that is possible: the frontier is one point" in caplog.text


def test_what_no_frontier_goes_along_is_refused(table, sensitivity) -> None:
    floating = joint.build_program(table, sensitivity, Budget(weight_bits=16.0, activation_bits=16.0))
    with pytest.raises(ConfigError, match="along a budget below 16 bits"):
        find_frontier(floating, 5)
    program = joint.build_program(table, sensitivity, Budget(weight_bits=4.0))
    with pytest.raises(ConfigError, match="two or more"):
        find_frontier(program, 1)
    with pytest.raises(InfeasibleBudgetError, match="activation_bits = 3"):
        find_frontier(joint.build_program(table, sensitivity, Budget(weight_bits=4.0, activation_bits=3.0)), 5)
    assert (
        find_frontier(program, 2).plans[program.limits["weight_bits"].reach[0]].layers.keys()
        == uniform_plan(table, 4, 8).layers.keys()
    )
