import dataclasses

import pytest

from mixdq.allocation.plans import mean_bits, uniform_plan, weight_bytes
from mixdq.allocation.sweep import MAX_PLANS, allocate
from mixdq.errors import ConfigError, InfeasibleBudgetError, PlanError
from mixdq.types.layers import LayerTable
from mixdq.types.plan import Budget
from mixdq.types.scores import SensitivityTable

BOTH = [Budget(weight_bits=4.0), Budget(weight_bits=5.0, activation_bits=6.5, protect=0.1, keep=("block.7",))]
SQNR_ALONE = {"content": "sqnr", "quality": "sqnr"}


@pytest.mark.parametrize("objective", ["raw", "linear"])
@pytest.mark.parametrize("budget", BOTH)
def test_every_plan_meets_the_budget_and_spends_most_of_it(table, sensitivity, budget, objective) -> None:
    plans = allocate(table, sensitivity, budget, objective=objective)
    assert 1 < len(plans) <= MAX_PLANS
    for plan in plans:
        weight, activation = mean_bits(plan, table)
        # Two groups, each within WINDOW of its share where widths are fine enough; half a bit allows for coarse ones.
        assert budget.weight_bits - 0.5 < weight <= budget.weight_bits * (1 + 1e-8)
        assert budget.activation_bits - 0.5 < activation <= budget.activation_bits * (1 + 1e-8)
        for layer in table:
            bits = plan.layers[layer.name]
            assert bits.weight in (*budget.weight_choices[layer.group], 16)
            assert bits.activation in (*budget.activation_choices[layer.group], 16)
        assert plan.solver.values["weight_mean_bits"] == weight


def test_kept_layers_stay_and_protected_activations_are_the_share_of_each_group(table, sensitivity) -> None:
    plan = allocate(table, sensitivity, BOTH[1])[0]
    assert str(plan.layers["block.7"]) == "W16A16"
    floating = [layer.group for layer in table if plan.layers[layer.name].activation == 16]
    # 20 quality layers: ceil(2); 19 content layers that are not kept: ceil(1.9), and the kept one.
    assert (floating.count("quality"), floating.count("content")) == (2, 3)
    assert [name for name, bits in plan.layers.items() if bits.weight == 16] == ["block.7"]


def test_plans_differ_and_are_named_in_order(table, sensitivity) -> None:
    plans = allocate(table, sensitivity, BOTH[0], name_prefix="W4A8", origin={"sensitivity": "abc"})
    assert [plan.name for plan in plans] == [f"W4A8-{i + 1:02d}" for i in range(len(plans))]
    assert len({tuple(map(str, plan.layers.values())) for plan in plans}) == len(plans)
    assert plans[0].origin == {"model": table.digest, "sensitivity": "abc"}
    ratios = [plan.solver.content_quality_ratio for plan in plans]
    assert ratios == sorted(ratios)


def test_same_inputs_give_the_same_plans(table, sensitivity) -> None:
    assert allocate(table, sensitivity, BOTH[0]) == allocate(table, sensitivity, BOTH[0])


def test_first_ratio_gives_quality_its_most(table, sensitivity) -> None:
    plan = allocate(table, sensitivity, Budget(weight_bits=7.0, activation_bits=16.0))[0]
    quality = LayerTable(**{**vars(table), "layers": tuple(x for x in table if x.group == "quality")})
    part = dataclasses.replace(plan, layers={x.name: plan.layers[x.name] for x in quality})
    assert mean_bits(part, quality)[0] == pytest.approx(8.0, rel=0.0025)


def test_ratio_of_one_gives_both_groups_the_same_mean(table, sensitivity) -> None:
    (plan,) = allocate(table, sensitivity, Budget(weight_bits=6.0, activation_bits=16.0), ratios=[1.0])
    for group in ("content", "quality"):
        members = LayerTable(**{**vars(table), "layers": tuple(x for x in table if x.group == group)})
        part = dataclasses.replace(plan, layers={x.name: plan.layers[x.name] for x in members})
        assert mean_bits(part, members)[0] == pytest.approx(6.0, rel=0.0026)


def test_ratios_out_of_reach_are_skipped_unless_all_are(table, sensitivity) -> None:
    budget = Budget(weight_bits=4.0, activation_bits=16.0)
    plans = allocate(table, sensitivity, budget, ratios=[0.9, 50.0])
    assert len(plans) == 1
    with pytest.raises(InfeasibleBudgetError, match="no weight ratio of") as caught:
        allocate(table, sensitivity, budget, ratios=[50.0])
    assert caught.value.least < plans[0].solver.content_quality_ratio <= caught.value.greatest
    with pytest.raises(ConfigError, match="positive"):
        allocate(table, sensitivity, budget, ratios=[0.0])


def test_sixteen_bits_leave_a_role_in_floating_point(table, sensitivity) -> None:
    weight_only = allocate(table, sensitivity, Budget(weight_bits=4.0, activation_bits=16.0))
    assert {bits.activation for plan in weight_only for bits in plan.layers.values()} == {16}
    assert len(weight_only) > 4
    activation_only = allocate(table, sensitivity, Budget(weight_bits=16.0, activation_bits=8.0))
    assert {bits.weight for plan in activation_only for bits in plan.layers.values()} == {16}


def test_single_widths_give_the_uniform_plan_without_scores(table) -> None:
    choices = {"content": (8,), "quality": (8,)}
    budget = Budget(weight_bits=8.0, protect=0.0, weight_choices=choices, activation_choices=choices)
    (plan,) = allocate(table, SensitivityTable(scores=(), origin={}), budget)
    assert plan.layers == uniform_plan(table, 8, 8).layers


def test_protected_activations_must_be_paid_for(table, sensitivity) -> None:
    choices = {"content": (8,), "quality": (8,)}
    with pytest.raises(InfeasibleBudgetError, match="activation_bits = 8 is out of reach: with 2 layers") as caught:
        allocate(table, sensitivity, Budget(weight_bits=8.0, activation_choices=choices))
    budget = Budget(weight_bits=8.0, activation_choices=choices, activation_bits=caught.value.least)
    plan = allocate(table, sensitivity, budget)[0]
    assert mean_bits(plan, table)[1] == pytest.approx(caught.value.least)


def test_budget_in_bytes_is_met_to_the_byte(table, sensitivity) -> None:
    limit = weight_bytes(uniform_plan(table, 5, 8), table)
    plans = allocate(table, sensitivity, Budget(weight_bytes=limit, activation_bits=16.0))
    assert all(0.95 * limit < weight_bytes(plan, table) <= limit for plan in plans)
    assert len(plans) > 4
    with pytest.raises(InfeasibleBudgetError, match=r"weight_bytes = 1000 is out of reach") as caught:
        allocate(table, sensitivity, Budget(weight_bytes=1000))
    (plan,) = allocate(table, sensitivity, Budget(weight_bytes=int(caught.value.least), activation_bits=16.0))
    assert weight_bytes(plan, table) == caught.value.least


def test_zero_points_are_paid_from_a_budget_in_bytes(table, sensitivity) -> None:
    limit = weight_bytes(uniform_plan(table, 5, 8), table)
    plans = allocate(table, sensitivity, Budget(weight_bytes=limit, activation_bits=16.0), symmetric=False)
    spent = [weight_bytes(plan, table, symmetric=False) for plan in plans]
    assert all(0.95 * limit < each <= limit for each in spent)


def test_one_metric_makes_one_program_without_sweep(table, sensitivity) -> None:
    (plan,) = allocate(table, sensitivity, BOTH[0], metric_of=SQNR_ALONE)
    assert plan.solver.content_quality_ratio is None
    assert {"weight_all", "activation_all"} <= set(plan.solver.values)


def test_generous_budget_gives_every_layer_its_widest(table, sensitivity) -> None:
    rising = {(s.layer, s.role, s.num_bits, s.metric): s for s in sensitivity.scores}
    scores = tuple(dataclasses.replace(s, value=s.num_bits / 20) for s in rising.values())
    budget = Budget(weight_bits=12.0, activation_bits=12.0, protect=0.0)
    (plan,) = allocate(table, SensitivityTable(scores=scores, origin={}), budget)
    assert plan.layers == uniform_plan(table, 8, 8).layers


def test_fewer_plans_where_fewer_are_asked_for(table, sensitivity) -> None:
    assert len(allocate(table, sensitivity, BOTH[0], max_plans=4)) <= 4
    assert len(allocate(table, sensitivity, BOTH[0], max_plans=1)) == 1


def test_unfit_inputs_are_refused(table, sensitivity) -> None:
    with pytest.raises(ConfigError, match=r"no layer 'nowhere'"):
        allocate(table, sensitivity, Budget(weight_bits=4.0, keep=("nowhere",)))
    half = SensitivityTable(scores=sensitivity.scores[: len(sensitivity.scores) // 2], origin={})
    with pytest.raises(PlanError, match="continue to measure"):
        allocate(table, half, BOTH[0])
    with pytest.raises(InfeasibleBudgetError, match="weight_bits = 2 is out of reach"):
        allocate(table, sensitivity, Budget(weight_bits=2.0))
