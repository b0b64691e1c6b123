import numpy as np
import pytest

from mixdq.allocation.error_model import LEAST_WEIGHT, TERMS, fit_error_model, loss_sums, predicted_error, random_plans
from mixdq.allocation.plans import mean_bits, uniform_plan
from mixdq.types.plan import Budget


def errors_of(sums, weights, noise=0.0, seed=0):
    """Pictures' errors that follow the law, give or take."""
    loss = sums @ weights * np.exp(noise * np.random.default_rng(seed).normal(size=len(sums)))
    return [predicted_error(float(one)) for one in loss]


@pytest.fixture(scope="module")
def plans(table, sensitivity):
    return random_plans(table, sensitivity, Budget(weight_bits=4.0, keep=("block.3",)), 48, seed=0)


def test_weights_that_made_the_errors_are_found(table, sensitivity, plans) -> None:
    sums = loss_sums(table, sensitivity, plans)
    weights = np.array([1.0, 0.9, 0.5, 1.8])
    exact = fit_error_model(sums, errors_of(sums, weights))
    assert [exact.weights[group][role] for group, role in TERMS] == pytest.approx(weights, rel=0.25)
    assert exact.correlation > 0.98
    assert exact.plans == 48
    noisy = fit_error_model(sums, errors_of(sums, weights, noise=0.3))
    assert 0.8 < noisy.correlation < exact.correlation


def test_what_the_plans_say_nothing_of_keeps_its_weight() -> None:
    rng = np.random.default_rng(1)
    sums = rng.lognormal(size=(30, 4)) * 0.01
    sums[:, 3] = 0.0
    fitted = fit_error_model(sums, errors_of(sums, np.array([2.0, 0.0, 2.0, 5.0])))
    assert fitted.weights["quality"]["activation"] == pytest.approx(1.0)
    assert fitted.weights["content"]["activation"] >= LEAST_WEIGHT


def test_errors_without_any_order_have_no_correlation() -> None:
    assert fit_error_model(np.ones((8, 4)), [0.1] * 8).correlation == 0.0


def test_plans_to_fit_on_are_of_all_budgets_and_the_same_every_time(table, sensitivity, plans) -> None:
    budget = Budget(weight_bits=4.0, keep=("block.3",))
    assert random_plans(table, sensitivity, budget, 48, seed=0) == plans
    assert random_plans(table, sensitivity, budget, 8, seed=0) == plans[:8]
    assert random_plans(table, sensitivity, budget, 8, seed=1) != plans[:8]
    means = np.array([mean_bits(plan, table) for plan in plans])
    assert means[:, 0].min() < 3.7
    assert means[:, 0].max() > 5.5
    assert np.ptp(means[:, 1]) > 3
    assert {str(plan.layers["block.3"]) for plan in plans} == {"W16A16"}
    allowed = {(w, a) for w in (2, 4, 8) for a in (4, 8, 16)} | {(16, 16)}
    assert {(bits.weight, bits.activation) for plan in plans for bits in plan.layers.values()} <= allowed


def test_sums_are_those_of_single_losses(table, sensitivity) -> None:
    (sums,) = loss_sums(table, sensitivity, [uniform_plan(table, 8, 16)])
    scores = sensitivity.by_layer("weight", "ssim")
    expected = sum(1.0 - scores[layer.name][8] for layer in table if layer.group == "content")
    assert sums[TERMS.index(("content", "weight"))] == pytest.approx(expected)
    assert sums[TERMS.index(("content", "activation"))] == 0.0


def test_error_ends_where_similarity_does() -> None:
    assert [predicted_error(loss) for loss in (-1e-9, 0.0, 1.0)] == [0.0, 0.0, 0.5]
    assert predicted_error(1e9) <= 1.0
