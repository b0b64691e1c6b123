import json
import subprocess
import sys
from pathlib import Path

import pytest

from mixdq.evaluation.memory import resident_bytes
from mixdq.runtime.kernels import native

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.skipif(native.trouble() is not None, reason=str(native.trouble())),
    pytest.mark.skipif(resident_bytes() is None, reason="this system does not say what is resident"),
]


def test_it_runs_and_counts_packed_weights(tmp_path: Path) -> None:
    words = ["-m", "benchmarks.conversion", "--smoke", "--json", str(tmp_path / "out.json")]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written["bits"] == "W4A8"
    (row,) = written["rows"]
    assert row["peak while converting"] >= row["after"] > 0
    # Four bits of sixteen, and what is no code on top.
    assert row["quantized weights"] / row["float weights"] == pytest.approx(0.25, abs=0.04)
