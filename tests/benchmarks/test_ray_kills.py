"""The benchmark of kills runs, and one worker killed on two nodes changes no byte of a sketch or a table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")

ROOT = Path(__file__).resolve().parents[2]


def test_a_worker_killed_on_two_nodes_changes_no_byte(tmp_path: Path) -> None:
    words = ["-m", "benchmarks.ray_kills", "--smoke", "--method", "hybrid", "--json", str(tmp_path / "out.json")]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["rows"]
    assert row["killed"] == "a worker"
    assert row["equal"]
    assert row["vectors"] + row["scores"] > 0
