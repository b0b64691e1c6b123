"""frontier.csv: the best that every budget buys, a row a budget, cheapest first.

    # mixdq.frontier/1
    # origin {"allocation": "...", "sensitivity": "..."}
    # reach {"setting": "weight_bits", "least": 2.62, "greatest": 7.98}
    budget_weight_bits,loss,predicted_error,weight_mean_bits,activation_mean_bits,weight_bytes,latency_ms,gap

Below the least no plan is within the budgets; above the greatest none is better.
"""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

from mixdq.store.artifact import Schema, atomic_write
from mixdq.types.plan import BitPlan

FRONTIER = Schema("frontier", "mixdq allocate")

COLUMNS = ("loss", "predicted_error", "weight_mean_bits", "activation_mean_bits", "weight_bytes", "latency_ms")


def write_frontier(
    path: Path, setting: str, reach: tuple[float, float], plans: Mapping[float, BitPlan], origin: Mapping[str, str]
) -> None:
    """Write the table, atomically; equal frontiers give equal bytes."""
    facts = {"setting": setting, "least": reach[0], "greatest": reach[1]}
    text = io.StringIO()
    text.write(f"# {FRONTIER}\n# origin {json.dumps(dict(origin), sort_keys=True)}\n# reach {json.dumps(facts)}\n")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow((f"budget_{setting}", *COLUMNS, "gap"))
    for budget, plan in plans.items():
        assert plan.solver is not None
        values = (plan.solver.values.get(name) for name in COLUMNS)
        rows.writerow([repr(budget), *("" if value is None else repr(value) for value in values), plan.solver.gap])
    atomic_write(path, text.getvalue().encode("utf-8"))
