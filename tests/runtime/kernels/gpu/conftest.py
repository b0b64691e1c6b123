"""Kernels compiled for cards that are not here."""

import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mixdq.runtime.kernels.gpu import available

Compile = Callable[..., Any]


@pytest.fixture
def compiled() -> Compile:
    """Return a function (kernel, capability, constants, pointers, ones, warps, stages) -> what Triton made of it.

    `pointers` maps names of arguments to their types; all others that are no constants are int32, multiples of 16
    where a call would find them to be. `ones` are those that are 1.
    """
    triton = pytest.importorskip("triton")
    if available.interpreted():
        pytest.skip("kernels are interpreted, not compiled")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def compile_it(
        kernel: Any,
        capability: int,
        constants: Mapping[str, Any],
        pointers: Mapping[str, str],
        *,
        ones: tuple[str, ...] = (),
        warps: int = 4,
        stages: int = 2,
    ) -> Any:
        constants = {**constants, **dict.fromkeys(ones, 1)}
        plain = {param.name for param in kernel.params if param.do_not_specialize}
        assert not plain & set(ones)
        signature = {}
        hints = {}
        for i, name in enumerate(kernel.arg_names):
            signature[name] = "constexpr" if name in constants else pointers.get(name, "i32")
            if name not in constants and name not in plain:
                hints[(i,)] = [["tt.divisibility", 16]]
        options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False}
        source = ASTSource(kernel, signature, constants, hints)
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)

    return compile_it


@pytest.fixture
def stack_and_registers(tmp_path: Path) -> Callable[[Any], tuple[int, int]]:
    """Return a function: what Triton made of a kernel -> bytes of stack and registers of a thread, as ptxas gave."""
    triton = pytest.importorskip("triton")

    def find(kernel: Any) -> tuple[int, int]:
        (tmp_path / "kernel.cubin").write_bytes(kernel.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        command = [tool, "-res-usage", tmp_path / "kernel.cubin"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return int(*re.findall(r"STACK:(\d+)", said)), int(*re.findall(r"REG:(\d+)", said))

    return find
