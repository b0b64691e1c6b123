"""Kernels compiled for a card that is not here, with the arguments of real calls."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

ONE_LAYER = """
import torch
from benchmarks.cuda.launches import absent
from mixdq.quant.weights import quantize_weight
from mixdq.runtime.backends.cuda import CudaBackend
from mixdq.runtime.kernel import KernelRequest
from mixdq.runtime.kernels.gpu.configurations import Configuration
from mixdq.types.plan import LayerBits

with absent("9.0") as seen:
    (weight,) = quantize_weight(torch.randn(64, 64), 8)
    more = {"dtype": torch.float16, "output_dtype": torch.float16, "dynamic": True, "device": "cpu"}
    bits = LayerBits.parse("W8A8")
    request = KernelRequest(layer="q", op="linear", bits=bits, weight_shape=(64, 64), **more)
    backend = CudaBackend()
    assert backend.refusals(request) == []
    kernel = backend.bind(request, weight, None, None)
    for _ in range(2):
        kernel(torch.randn(5, 64, dtype=torch.float16))
    assert seen.counts == {"prepare": 2, "product": 2}, seen
    assert {name: len(made) for name, made in seen.compiled.items()} == {"prepare": 1, "product": 1}, seen
    (made,) = seen.compiled["product"].values()
    assert "wgmma" in made.asm["ptx"]
    assert not seen.failed
    # A tile of three rows is none that Triton compiles.
    kernel.layer.forced = Configuration(rows=3, columns=64, split=1, warps=4, stages=2)
    kernel(torch.randn(5, 64, dtype=torch.float16))
    assert list(seen.failed.values()) == ["product"], seen
"""


def test_what_would_be_launched_is_counted_and_compiled_and_what_fails_is_told() -> None:
    pytest.importorskip("triton")
    # In a process of its own, whose Triton believes in the card.
    command = [sys.executable, "-c", ONE_LAYER]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
