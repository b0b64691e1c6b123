"""The joint program at the size of the real thing: 794 layers with the sensitivities that the authors measured.

Their files are read where they lie and never copied; where they are absent, these tests skip.
"""

import time
from importlib import import_module
from pathlib import Path

import pytest

from mixdq.allocation import joint, sweep
from mixdq.allocation.error_model import loss_sums
from mixdq.allocation.frontier import FRONTIER_GAP, find_frontier
from mixdq.allocation.plans import mean_bits
from mixdq.types.plan import Budget

HERE = Path(__file__).resolve()
FOLDERS = [up / "shared" / "data" / "sdxl_turbo" for up in HERE.parents[2:4]]
DATA = next((folder for folder in FOLDERS if folder.is_dir()), None)

pytestmark = pytest.mark.skipif(
    DATA is None, reason="needs shared/data/sdxl_turbo (the authors' tables) in or above the checkout; not distributed"
)


@pytest.fixture(scope="module")
def tables():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE.parents[2])
        return import_module("benchmarks.released").released_tables(DATA)


def test_a_hundred_points_take_seconds_and_never_lose_more_for_more(tables) -> None:
    started = time.process_time()
    found = find_frontier(joint.build_program(*tables, Budget(weight_bits=4.0)), 100)
    assert time.process_time() - started < 60
    losses = [plan.solver.values["loss"] for plan in found.plans.values()]
    assert len(losses) == 100
    assert losses == sorted(losses, reverse=True)
    assert max(plan.solver.gap for plan in found.plans.values()) <= FRONTIER_GAP
    for most, plan in list(found.plans.items())[::20]:
        assert mean_bits(plan, tables[0])[0] <= most * (1 + 1e-8)
        assert mean_bits(plan, tables[0])[1] <= 8.0 * (1 + 1e-8)


def test_one_program_loses_less_than_four_within_what_they_spend(tables) -> None:
    table, sensitivity = tables
    (split,) = sweep.allocate(
        table, sensitivity, Budget(weight_bits=4.0), objective="linear", ratios=[0.62], max_plans=1
    )[:1]
    weight, activation = mean_bits(split, table)
    plan = joint.allocate(table, sensitivity, Budget(weight_bits=weight, activation_bits=activation))
    assert plan.solver.gap == 0.0
    assert plan.solver.values["loss"] < float(loss_sums(table, sensitivity, [split]).sum())
