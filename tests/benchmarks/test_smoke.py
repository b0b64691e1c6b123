"""Every benchmark runs in its smallest size, and SDXL's layers are counted right."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mixdq.runtime.kernels import native

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(native.trouble() is not None, reason=str(native.trouble()))
def test_kernels(tmp_path) -> None:
    done = run("-m", "benchmarks.kernels", "--smoke", "--runs", "1", "--json", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert {"torch", "cores", "threads"} <= written["machine"].keys()
    assert len(written["rows"]) == 2
    assert all(rate > 0 for row in written["rows"] for rate in row["gop_per_second"].values())


@pytest.mark.skipif(native.trouble() is not None, reason=str(native.trouble()))
def test_unet(tmp_path) -> None:
    names = ["bfloat16", "W8A8", "W4A8", "W4A16"]
    done = run("-m", "benchmarks.unet", "--smoke", "--runs", "1", "--json", str(tmp_path / "o.json"), "--only", *names)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))["rows"]
    assert [row["name"] for row in rows] == names
    assert all(row["seconds"] > 0 and row["peak_bytes"] > row["weight_bytes"] > 0 for row in rows)
    # Two bytes, one, half of one; scales and what is no layer come on top.
    plain, *quantized = (row["weight_bytes"] for row in rows)
    assert [size / plain for size in quantized] == pytest.approx([0.5, 0.25, 0.25], abs=0.04)


def test_sdxl_is_made_of_its_published_parts() -> None:
    program = (
        "from benchmarks.sdxl import shapes\n"
        "found = shapes(1, 64)\n"
        "for op in ('linear', 'conv2d'):\n"
        "    mine = {shape: count for shape, count in found.items() if shape.op == op}\n"
        "    print(sum(mine.values()), sum(shape.operations * count for shape, count in mine.items()))\n"
    )
    done = run("-c", program)
    assert done.returncode == 0, done.stderr
    (linears, linear_operations), (convolutions, convolution_operations) = (
        map(int, line.split()) for line in done.stdout.splitlines()
    )
    # 794 layers in all, as the paper's released plans list them; 1.128 and 0.406 TFLOP at 512 px.
    assert linears + convolutions == 794
    assert linear_operations == pytest.approx(1.128e12, rel=0.01)
    assert convolution_operations == pytest.approx(0.406e12, rel=0.01)
