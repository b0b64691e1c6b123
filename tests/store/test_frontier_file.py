import csv
import json

from mixdq.store.frontier_file import write_frontier
from mixdq.types.plan import BitPlan, LayerBits, SolverFacts


def test_every_budget_has_its_row_beneath_schema_origin_and_reach(tmp_path) -> None:
    path = tmp_path / "frontier.csv"
    values = {"loss": 0.1, "predicted_error": 1 / 3, "weight_mean_bits": 4.0, "activation_mean_bits": 8.0}
    plan = BitPlan(
        name="frontier-001",
        layers={"a": LayerBits(weight=4, activation=8)},
        solver=SolverFacts(solver="HiGHS", objective="linear", values={**values, "weight_bytes": 7.0}, gap=1e-4),
    )
    write_frontier(path, "weight_bits", (2.5, 8.0), {4.0: plan, 5.0: plan}, {"sensitivity": "ab"})
    schema, origin, reach, *rows = path.read_text(encoding="utf-8").splitlines()
    assert schema == "# mixdq.frontier/1"
    assert json.loads(origin.removeprefix("# origin ")) == {"sensitivity": "ab"}
    assert json.loads(reach.removeprefix("# reach ")) == {"setting": "weight_bits", "least": 2.5, "greatest": 8.0}
    first, second = csv.DictReader(rows)
    assert (first["budget_weight_bits"], second["budget_weight_bits"]) == ("4.0", "5.0")
    assert float(first["predicted_error"]) == 1 / 3
    assert (first["latency_ms"], first["gap"]) == ("", "0.0001")
