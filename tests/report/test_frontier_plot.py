import pytest

from mixdq.report.frontier_plot import LABELS, frontier_plot
from mixdq.report.theme import DARK, LIGHT
from mixdq.types.plan import BitPlan, LayerBits, SolverFacts


def plan(error: float) -> BitPlan:
    facts = SolverFacts(solver="HiGHS", objective="linear", values={"predicted_error": error})
    return BitPlan(name="x", layers={"a": LayerBits(weight=4, activation=8)}, solver=facts)


@pytest.mark.parametrize("setting", LABELS)
def test_curve_is_the_same_every_time_and_survives_no_error_at_all(setting) -> None:
    plans = {3.0: plan(0.5), 4.0: plan(0.01), 5.0: plan(0.0)}
    drawn = frontier_plot(setting, plans, LIGHT)
    assert drawn.startswith(b"<?xml")
    assert frontier_plot(setting, plans, LIGHT) == drawn
    assert frontier_plot(setting, plans, DARK) != drawn
    assert frontier_plot(setting, {**plans, 5.0: plan(0.001)}, LIGHT) != drawn
