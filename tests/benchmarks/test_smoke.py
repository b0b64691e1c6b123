"""Every benchmark runs in its smallest size, and SDXL's layers are counted right."""

import json
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mixdq.runtime.kernels import native

ROOT = Path(__file__).resolve().parents[2]
PEERS = {"OpenVINO int8+float32": ("openvino", "nncf"), "SDNQ int8, convolutions too": ("sdnq", "openvino")}
"""Candidate -> the packages without which it cannot run; torchao's is compiled, which takes too long here."""

needs_kernels = pytest.mark.skipif(native.trouble() is not None, reason=str(native.trouble()))


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch):
    """A module of `benchmarks`, which is no part of the installed package."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: import_module(f"benchmarks.{name}")


def unet(tmp_path: Path, *names: str) -> dict[str, Any]:
    """What `benchmarks.unet` writes; in a process of its own, for it forks, which a process with threads may not."""
    out = tmp_path / "out.json"
    words = ["-m", "benchmarks.unet", "--smoke", "--runs", "1", "--json", str(out), "--only", *names]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    written: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return written


@needs_kernels
def test_unet_measures_ours_and_names_the_peers_that_are_not_installed(tmp_path) -> None:
    names = ["bfloat16", "W8A8", "W4A8", "W4A16"]
    absent = {name for name, packages in PEERS.items() if not all(map(find_spec, packages))}
    written = unet(tmp_path, *names, *absent)
    rows = written["rows"]
    assert [row["name"] for row in rows] == names
    assert all(row["seconds"][0] > 0 and row["peak_bytes"] > row["weight_bytes"] > 0 for row in rows)
    assert rows[0]["times_as_fast"] == 1
    # Two bytes, one, half of one; scales and what is no layer come on top.
    plain, *quantized = (row["weight_bytes"] for row in rows)
    assert [size / plain for size in quantized] == pytest.approx([0.5, 0.25, 0.25], abs=0.04)
    assert written["not_run"].keys() == absent
    assert all("not installed" in reason for reason in written["not_run"].values())


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_runs_where_it_is_installed(name, tmp_path) -> None:
    missing = [package for package in PEERS[name] if not find_spec(package)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    written = unet(tmp_path, name)
    assert written["not_run"] == {}
    (row,) = written["rows"]
    assert row["seconds"][0] > 0


@needs_kernels
def test_kernels(benchmark_module, tmp_path) -> None:
    out = tmp_path / "out.json"
    benchmark_module("kernels").main(["--smoke", "--runs", "1", "--json", str(out)])
    written = json.loads(out.read_text(encoding="utf-8"))
    assert {"torch", "cores", "threads"} <= written["machine"].keys()
    assert len(written["rows"]) == 2
    assert all(rate > 0 for row in written["rows"] for rate in row["gop_per_second"].values())
    # The ceiling is the best rate seen, so nobody is above it, and who is well below has a reason.
    assert all(0 < row["share"] <= 1 for row in written["rows"])
    assert all(bool(row["reason"]) == (row["share"] < 0.8) for row in written["rows"])


@needs_kernels
def test_pictures(benchmark_module, tmp_path) -> None:
    out = tmp_path / "out.json"
    benchmark_module("pictures").main(["--smoke", "--json", str(out)])
    (row,) = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert row["seconds"]["1"][0] > 0
    assert min(row[key] for key in ("start", "load", "first")) > 0


def test_sensitivity(benchmark_module, tmp_path) -> None:
    out = tmp_path / "out.json"
    benchmark_module("sensitivity").main(["--smoke", "--json", str(out)])
    written = json.loads(out.read_text(encoding="utf-8"))
    published, exact, sketch, hybrid = written["rows"]
    assert [row["name"] for row in written["rows"]] == ["published", "exact", "sketch", "hybrid"]
    assert published["calls"] > exact["calls"] > 0
    assert hybrid["calls"] > sketch["calls"] > 0
    assert published["measured"] == exact["measured"] > hybrid["measured"] > sketch["measured"] == 0
    assert all(row["spearman"] > 0.8 for row in written["agreement"])
    assert [row["name"] for row in written["pictures"]] == ["floating point", "plain", "exact", "sketch", "hybrid"]
    assert all(row["ssim"] <= 1 for row in written["pictures"])


def test_what_searching_costs_at_sdxls_shape(benchmark_module, tmp_path) -> None:
    out = tmp_path / "out.json"
    benchmark_module("sensitivity").main(
        ["--sdxl", "smoke", "--side", "16", "--prompts", "2", "--checkpointing", "--json", str(out)]
    )
    (row,) = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert row["published_hours"] > row["hybrid_hours"] > row["sketch_hours"]
    assert min(row["ssim_peak_bytes"], row["sqnr_peak_bytes"]) >= row["resident_bytes"] > 0


def test_allocation(benchmark_module, tmp_path) -> None:
    out = tmp_path / "out.json"
    benchmark_module("allocation").main(["--smoke", "--pairs", "3", "--json", str(out)])
    written = json.loads(out.read_text(encoding="utf-8"))
    raw, weighted, *others = written["correlations"]
    assert (raw, weighted, *others[:2], others[-1]) == (
        "raw",
        "raw, weighted",
        "linear",
        "calibrated",
        "linear, all pairs",
    )
    assert list(written["spreads"]) == others
    split, *others = written["rows"]
    assert [row["way"] for row in others[:3]] == ["split, linear", "joint, linear", "joint, calibrated"]
    assert others[3]["way"].endswith("pairs")
    # Equal at most, and nearly so.
    assert all(0.95 < row["weight_bytes"] / split["weight_bytes"] <= 1 for row in others)
    assert all(row["activation_bits"] <= split["activation_bits"] * (1 + 1e-8) for row in others)
    assert written["frontier"]["points"] == 5


@needs_kernels
def test_latency_budget(benchmark_module, tmp_path) -> None:
    out = tmp_path / "out.json"
    benchmark_module("latency_budget").main(["--smoke", "--json", str(out)])
    (row,) = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert 0 < row["foretold_ms"] <= row["asked_ms"] * (1 + 1e-6)
    assert row["measured_ms"] > 0


def test_candidates_that_do_not_fit_in_memory_together_are_split(benchmark_module, tmp_path) -> None:
    case = benchmark_module("case").Case(size="full", batch=1, side=64, cache=tmp_path)
    turns, candidates = benchmark_module("turns"), benchmark_module("candidates").CANDIDATES
    everything = list(candidates)
    assert turns.groups(everything, "bfloat16", case, None) == [everything]
    for limit in (0, 8e9, 16e9, 24e9, 64e9):
        groups = turns.groups(everything, "bfloat16", case, limit)
        measured = [name for group in groups for name in group]
        assert sorted(set(measured)) == sorted(everything)
        assert all(measured.count(name) == 1 for name in everything if name != "bfloat16")
        assert all(len(group) == 1 or turns.fits(group, case, limit) for group in groups)
        # Whoever shares memory is compared with the same one.
        assert all(len(group) == 1 or group[0] == "bfloat16" for group in groups)


def test_sdxl_is_made_of_its_published_parts(benchmark_module) -> None:
    found = benchmark_module("sdxl").shapes(1, 64)
    layers = {op: sum(count for shape, count in found.items() if shape.op == op) for op in ("linear", "conv2d")}
    operations = {
        op: sum(shape.operations * count for shape, count in found.items() if shape.op == op)
        for op in ("linear", "conv2d")
    }
    # 794 layers in all, as the paper's released plans list them; 1.128 and 0.406 TFLOP at 512 px.
    assert sum(layers.values()) == 794
    assert operations["linear"] == pytest.approx(1.128e12, rel=0.01)
    assert operations["conv2d"] == pytest.approx(0.406e12, rel=0.01)
