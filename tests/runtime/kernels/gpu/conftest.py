"""Kernels compiled for cards that are not here."""

from collections.abc import Callable, Mapping
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
