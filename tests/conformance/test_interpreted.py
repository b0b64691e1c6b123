"""The GPU's kernels in Triton's interpreter, on the CPU, under every suite that a GPU has to pass.

In a process of its own: Triton reads the variable when it is imported.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mixdq.runtime.kernels.gpu import available

TESTS = Path(__file__).resolve().parents[1]
SUITES = (
    *("conformance/test_backends.py", "conformance/test_dynamic.py", "conformance/test_whole_model.py"),
    *("conformance/diffusers/test_offload.py", "runtime/test_binding.py", "runtime/test_another_text.py"),
)
KERNELS = (
    *("test_activations.py", "test_bos.py", "test_e4m3.py", "test_floats.py", "test_layers.py", "test_norms.py"),
    "test_together.py",
)
OURS = (
    *(f"runtime/kernels/gpu/{name}" for name in KERNELS),
    *("conformance/test_floats.py", "runtime/backends/test_cuda.py", "runtime/backends/test_fp8.py"),
    *("runtime/test_folding.py", "runtime/test_blocks.py"),
    *("runtime/test_together.py", "runtime/test_reading.py", "runtime/test_unet_blocks.py"),
)


@pytest.mark.skipif(available.interpreted(), reason="this is the interpreter's process")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels themselves run under the same suites")
def test_interpreted_kernels_pass() -> None:
    # Older interpreters fail beside newer versions of numpy.
    pytest.importorskip("triton", minversion="3.9")
    # Of the suites, what is of these kernels; of their own tests, all.
    chosen = " or ".join(["cuda", "reference_draws", "gpus_kernels", *(Path(name).name for name in OURS)])
    files = [str(TESTS / name) for name in (*SUITES, *OURS)]
    command = [sys.executable, "-m", "pytest", "-rp", "-p", "no:xdist", "-p", "no:cacheprovider", *files, "-k", chosen]
    environment = {**os.environ, available.INTERPRETER: "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=TESTS.parent)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = {line.partition("::")[0] for line in done.stdout.splitlines() if line.startswith("PASSED ")}
    assert passed == {f"PASSED tests/{name}" for name in (*SUITES, *OURS)}
