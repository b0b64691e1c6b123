import itertools
from dataclasses import replace

import numpy as np
import pytest

from mixdq.allocation import joint, sweep
from mixdq.allocation.error_model import loss_sums, predicted_error
from mixdq.allocation.plans import mean_bits, uniform_plan, weight_bytes
from mixdq.errors import ConfigError, InfeasibleBudgetError, PlanError
from mixdq.types.latency import LatencyTable
from mixdq.types.plan import BitPlan, Budget, LayerBits
from mixdq.types.scores import ErrorModel, SensitivityTable

FLOAT = LayerBits(weight=16, activation=16)
MODEL = ErrorModel(
    weights={"content": {"weight": 1.0, "activation": 0.5}, "quality": {"weight": 3.0, "activation": 0.2}},
    plans=1,
    correlation=0.0,
)


def part(table, count):
    return replace(table, layers=table.layers[:count])


def scores_of(sensitivity, table) -> SensitivityTable:
    names = {layer.name for layer in table}
    return replace(sensitivity, scores=tuple(score for score in sensitivity.scores if score.layer in names))


def loss_of(table, sensitivity, plan, weights=(1.0, 1.0, 1.0, 1.0)) -> float:
    return float(loss_sums(table, sensitivity, [plan])[0] @ np.array(weights))


def every_plan(table, budget):
    """All plans that a table of few layers can have."""
    options = []
    for layer in table:
        weights = {*budget.weight_choices[layer.group], *([16] if budget.latency_ms else [])}
        pairs = itertools.product(weights, {*budget.activation_choices[layer.group], 16})
        options.append([LayerBits(weight=w, activation=a) for w, a in pairs if w < 16 or a == 16])
    for bits in itertools.product(*options):
        yield BitPlan(name="x", layers=dict(zip((layer.name for layer in table), bits, strict=True)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["bits", "bytes and bits", "time", "everything"])
def test_no_plan_within_all_budgets_is_better(table, sensitivity, latencies, kind, seed) -> None:
    few = replace(table, layers=table.layers[4 * seed : 4 * seed + 4])
    scores, times = scores_of(sensitivity, few), latencies(few, seed)
    like = uniform_plan(few, 4, 8)
    asked = {
        "bits": {"weight_bits": 5.0, "activation_bits": 7.0},
        "bytes and bits": {"weight_bits": 4.5, "weight_bytes": weight_bytes(like, few) + 1000},
        "time": {"latency_ms": times.of(like), "activation_bits": 16.0},
        "everything": {"weight_bits": 5.0, "activation_bits": 9.0, "latency_ms": times.of(like) * 1.1},
    }[kind]
    choices = (
        {"content": (2, 4, 8), "quality": (4, 8, 16)} if kind == "everything" else Budget(weight_bits=4).weight_choices
    )
    budget = Budget(**asked, weight_choices=choices)
    candidates = every_plan(few, budget)

    def within(plan) -> bool:
        weight, activation = mean_bits(plan, few)
        return (
            weight <= (budget.weight_bits or 16.0) * (1 + 1e-9)
            and activation <= budget.activation_bits * (1 + 1e-9)
            and weight_bytes(plan, few) <= (budget.weight_bytes or np.inf)
            and times.of(plan) <= (budget.latency_ms or np.inf) * (1 + 1e-9)
        )

    losses = [loss_of(few, scores, plan) for plan in candidates if within(plan)]
    if not losses:
        with pytest.raises(InfeasibleBudgetError):
            joint.allocate(few, scores, budget, latency=times)
        return
    plan = joint.allocate(few, scores, budget, latency=times, gap=0.0)
    assert within(plan)
    assert loss_of(few, scores, plan) == pytest.approx(min(losses), rel=1e-9, abs=1e-12)
    assert plan.solver.values["loss"] == pytest.approx(min(losses), rel=1e-9, abs=1e-12)
    assert plan.solver.values["predicted_error"] == predicted_error(plan.solver.values["loss"])
    assert plan.solver.values["latency_ms"] == times.of(plan)
    assert plan.solver.gap == 0.0


@pytest.mark.parametrize("bits", [(4.0, 8.0), (5.0, 6.5), (6.0, 16.0)])
def test_four_programs_are_never_better_at_what_they_spend(table, sensitivity, bits) -> None:
    split = sweep.allocate(table, sensitivity, Budget(weight_bits=bits[0], activation_bits=bits[1]), objective="linear")
    for plan in split[::3]:
        weight, activation = mean_bits(plan, table)
        one = joint.allocate(table, sensitivity, Budget(weight_bits=weight, activation_bits=activation))
        assert one.solver.values["loss"] <= loss_of(table, sensitivity, plan) * (1 + 1e-9)
        assert one.solver.gap == 0.0


def test_error_model_decides_what_a_group_and_a_role_are_worth(table, sensitivity) -> None:
    budget = Budget(weight_bits=4.5, activation_bits=7.0)
    plain = joint.allocate(table, sensitivity, budget)
    fitted = joint.allocate(table, sensitivity, budget, error_model=MODEL)
    weights = [MODEL.weights[g][r] for g in ("content", "quality") for r in ("weight", "activation")]
    assert fitted.solver.objective == "calibrated"
    assert fitted.solver.values["loss"] == pytest.approx(loss_of(table, sensitivity, fitted, weights))
    assert loss_of(table, sensitivity, fitted, weights) < loss_of(table, sensitivity, plain, weights)
    assert loss_of(table, sensitivity, plain) < loss_of(table, sensitivity, fitted)


def test_the_most_sensitive_inputs_stay_in_floating_point_as_long_as_that_pays(table, sensitivity) -> None:
    plan = joint.allocate(table, sensitivity, Budget(weight_bits=6.0, activation_bits=6.0))
    assert {bits.activation for bits in plan.layers.values()} == {4, 8, 16}
    scores = tuple(s for s in sensitivity.scores if s.role == "weight" or s.num_bits != 8)
    with pytest.raises(PlanError, match="at 8 bits"):
        joint.allocate(table, replace(sensitivity, scores=scores), Budget(weight_bits=6.0))
    only = {"content": (8,), "quality": (8,)}
    eight = joint.allocate(table, sensitivity, Budget(weight_bits=6.0, activation_choices=only))
    assert {bits.activation for bits in eight.layers.values()} == {8}


def test_floating_weights_are_candidates_with_floating_inputs_alone(table, sensitivity) -> None:
    choices = {"content": (2, 4, 8, 16), "quality": (4, 16)}
    budget = Budget(weight_bits=9.0, activation_bits=10.0, weight_choices=choices, keep=("block.7",))
    plan = joint.allocate(table, sensitivity, budget)
    assert plan.layers["block.7"] == FLOAT
    floating = [bits for bits in plan.layers.values() if bits.weight == 16]
    assert len(floating) > 1
    assert set(floating) == {FLOAT}
    weight, activation = mean_bits(plan, table)
    assert weight <= 9.0
    assert activation <= 10.0
    sixteen = joint.allocate(table, sensitivity, Budget(weight_bits=16.0, activation_bits=16.0))
    assert set(sixteen.layers.values()) == {FLOAT}


def test_no_layer_gets_a_lower_width_that_is_no_faster(table, sensitivity, latencies) -> None:
    times = latencies(table)
    slow = "block.2"
    # Four bits score as well as eight there, and take as long.
    flat = dict.fromkeys(times.layers[slow], 30.0)
    best = max(s.value for s in sensitivity.scores if s.layer == slow and s.metric == "sqnr")
    scores = tuple(replace(s, value=best) if s.layer == slow and s.metric == "sqnr" else s for s in sensitivity.scores)
    times = replace(times, layers={**times.layers, slow: flat})
    limit = times.of(uniform_plan(table, 4, 8))
    plan = joint.allocate(
        table, replace(sensitivity, scores=scores), Budget(latency_ms=limit, activation_bits=16.0), latency=times
    )
    assert times.of(plan) <= limit * (1 + 1e-9)
    assert plan.solver.gap <= joint.LATENCY_GAP
    assert plan.layers[slow] == FLOAT


def test_what_integers_do_not_make_faster_stays_in_16_bits(table, sensitivity, caplog) -> None:
    few = part(table, 3)
    scores, (*fast, slow) = scores_of(sensitivity, few), [layer.name for layer in few]
    pairs = [str(bits) for bits in joint.candidates(few.layers[1], Budget(latency_ms=1.0))]
    integers = {bits: 1.0 if bits == "W8A8" else 1.5 for bits in pairs}
    layers = {**dict.fromkeys(fast, integers | {"W16A16": 2.0}), slow: dict.fromkeys(pairs, 3.0) | {"W16A16": 2.0}}
    times = LatencyTable(layers=layers, rest=10.0)
    budget = Budget(latency_ms=14.0, activation_bits=16.0)
    plan = joint.allocate(few, scores, budget, latency=times)
    assert plan.layers == {**dict.fromkeys(fast, LayerBits.parse("W8A8")), slow: FLOAT}
    # Nobody has to take what bytes, or whoever keeps bits, forbid.
    small = replace(budget, latency_ms=15.0, weight_bytes=weight_bytes(plan, few) - 1)
    assert FLOAT not in joint.allocate(few, scores, small, latency=times).layers.values()
    # A table of before has no such times, says so, and gives the plans that it gave.
    before = replace(
        times, layers={name: {b: ms for b, ms in own.items() if b != "W16A16"} for name, own in layers.items()}
    )
    with pytest.raises(InfeasibleBudgetError, match="latency_ms = 14 is out of reach: the choices give 15 to"):
        joint.allocate(few, scores, budget, latency=before)
    assert "3 layers have no milliseconds at W16A16" in caplog.text
    with pytest.raises(PlanError, match="no milliseconds at W16A16"):
        joint.allocate(few, scores, replace(budget, keep=(slow,)), latency=before)


def test_pairs_of_layers_count_together(table, sensitivity) -> None:
    few = part(table, 4)
    scores, budget = scores_of(sensitivity, few), Budget(weight_bits=5.0, activation_bits=16.0)
    names = [layer.name for layer in few]
    rng = np.random.default_rng(0)
    widths = {layer.name: budget.weight_choices[layer.group] for layer in few}
    pairs = {
        (a, b): {
            (LayerBits(weight=v, activation=16), LayerBits(weight=w, activation=16)): float(rng.normal()) * 0.1
            for v in widths[a]
            for w in widths[b]
        }
        for a, b in itertools.combinations(names, 2)
    }

    def loss(plan) -> float:
        both = sum(terms[plan.layers[a], plan.layers[b]] for (a, b), terms in pairs.items())
        return loss_of(few, scores, plan) + both

    plans = [
        plan
        for plan in every_plan(few, budget)
        if all(bits.activation == 16 for bits in plan.layers.values()) and mean_bits(plan, few)[0] <= 5.0
    ]
    plan = joint.allocate(few, scores, budget, pairs=pairs, gap=0.0)
    assert loss(plan) == pytest.approx(min(map(loss, plans)), abs=1e-9)
    assert loss(plan) < loss(joint.allocate(few, scores, budget))
    assert plan.solver.gap == 0.0


def test_same_inputs_give_the_same_plan_with_its_origin(table, sensitivity, latencies) -> None:
    budget = Budget(latency_ms=latencies(table).of(uniform_plan(table, 4, 8)), activation_bits=9.0)
    plans = [
        joint.allocate(table, sensitivity, budget, latency=latencies(table), origin={"sensitivity": "abc"})
        for _ in range(2)
    ]
    assert plans[0] == plans[1]
    assert plans[0].origin == {"model": table.digest, "sensitivity": "abc"}
    assert plans[0].budget == budget


def test_unfit_inputs_are_refused(table, sensitivity, latencies) -> None:
    with pytest.raises(ConfigError, match="no layer 'nowhere'"):
        joint.allocate(table, sensitivity, Budget(weight_bits=4.0, keep=("nowhere",)))
    with pytest.raises(ConfigError, match="nothing has been measured"):
        joint.allocate(table, sensitivity, Budget(latency_ms=4.0))
    with pytest.raises(PlanError, match=r"no milliseconds at W8A16") as caught:
        joint.allocate(table, sensitivity, Budget(latency_ms=4.0), latency=latencies(part(table, 39)))
    assert len(caught.value.disagreements) == 9
    with pytest.raises(InfeasibleBudgetError, match="latency_ms = 4 is out of reach") as infeasible:
        joint.allocate(table, sensitivity, Budget(latency_ms=4.0), latency=latencies(table))
    assert infeasible.value.reach["latency_ms"] == (infeasible.value.least, infeasible.value.greatest)
    assert infeasible.value.least > 7.0
    with pytest.raises(InfeasibleBudgetError, match="weight_bits = 2 is out of reach"):
        joint.allocate(table, sensitivity, Budget(weight_bits=2.0))
