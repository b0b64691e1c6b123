import pytest

from mixdq.allocation.problem import (
    activation_bits_cost,
    build_problem,
    check_feasible,
    weight_bits_cost,
    weight_bytes_cost,
)
from mixdq.errors import InfeasibleBudgetError

CHOICES = {"content": (2, 4, 8), "quality": (4, 8)}


def scores(table):
    return {layer.name: dict.fromkeys(CHOICES[layer.group], 1.0) for layer in table}


def build(table, fixed=None, limit=1e9, cost=weight_bits_cost, joint=False):
    size = (lambda x: x.input_numel) if cost is activation_bits_cost else (lambda x: x.weight_numel)
    return build_problem(table, scores(table), fixed or {}, limit, cost, size, joint=joint)


@pytest.mark.parametrize("cost", [weight_bits_cost, weight_bytes_cost, activation_bits_cost])
def test_parts_hold_every_free_layer_once(table, cost) -> None:
    problem = build(table, {"block.0": 16}, cost=cost)
    members = [name for part in problem.parts.values() for name in part.scores]
    assert sorted(members) == sorted(layer.name for layer in table if layer.name != "block.0")
    assert problem.parts["content"].least < problem.parts["content"].greatest


def test_fixed_layers_are_paid_in_advance(table) -> None:
    first = table.layers[0]
    problem = build(table, {first.name: 16}, limit=1e6)
    assert problem.fixed_cost == 16 * first.weight_numel
    assert problem.limit == 1e6 - problem.fixed_cost
    assert problem.size == sum(layer.weight_numel for layer in table)


def test_joint_problem_is_one_part(table) -> None:
    assert list(build(table, joint=True).parts) == ["all"]


def test_group_without_free_layers_has_no_part(table) -> None:
    fixed = {layer.name: 16 for layer in table if layer.group == "content"}
    assert list(build(table, fixed).parts) == ["quality"]
    assert build(table, {layer.name: 16 for layer in table}).parts == {}


def test_budget_below_the_cheapest_widths_says_what_is_possible(table) -> None:
    total = sum(layer.weight_numel for layer in table)
    problem = build(table, {"block.1": 16}, limit=2.0 * total)
    with pytest.raises(InfeasibleBudgetError, match=r"weight_bits = 2 is out of reach: with 1 layers kept") as caught:
        check_feasible(problem, setting="weight_bits", per_size=True, choices=CHOICES)
    cheapest = sum((16 if x.name == "block.1" else min(CHOICES[x.group])) * x.weight_numel for x in table)
    assert caught.value.least == pytest.approx(cheapest / total)
    check_feasible(build(table, limit=cheapest), setting="weight_bits", per_size=True, choices=CHOICES)
