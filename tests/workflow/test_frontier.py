import csv
import json

import pytest

from mixdq.errors import ConfigError
from mixdq.workflow.frontier import frontier
from mixdq.workflow.settings import with_budget


def test_table_and_picture_of_every_budget_are_the_same_every_time(run) -> None:
    run.config = with_budget(run.config, weight_bits=5.0, program="joint")
    found = frontier(run, 6)
    table, picture = (run.paths.root / "frontier.csv"), (run.paths.root / "frontier.svg")
    first = table.read_bytes(), picture.read_bytes()
    schema, origin, reach, *lines = first[0].decode().splitlines()
    assert schema == "# mixdq.frontier/1"
    assert set(json.loads(origin.removeprefix("# origin "))) == {"sensitivity", "allocation"}
    ends = json.loads(reach.removeprefix("# reach "))
    assert ends == {"setting": "weight_bits", "least": found.least, "greatest": found.greatest}
    rows = list(csv.DictReader(lines))
    assert [float(row["budget_weight_bits"]) for row in rows] == list(found.plans)
    assert all(float(row["weight_mean_bits"]) <= float(row["budget_weight_bits"]) * (1 + 1e-8) for row in rows)
    assert [row["latency_ms"] for row in rows] == [""] * 6
    assert first[1].startswith(b"<?xml")
    frontier(run, 6)
    assert (table.read_bytes(), picture.read_bytes()) == first


def test_the_split_program_has_no_frontier(run) -> None:
    with pytest.raises(ConfigError, match="--program joint"):
        frontier(run, 6)
