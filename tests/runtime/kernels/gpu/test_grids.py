"""Inputs of more texts or pictures than a grid's second and third axis hold; no kernel runs, but grids are read."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from mixdq.quant.weights import quantize_weight
from mixdq.runtime.backends.cuda import CudaBackend
from mixdq.runtime.before import group_norm
from mixdq.runtime.kernel import KernelRequest
from mixdq.runtime.kernels.gpu import activations, bos, norms, product
from mixdq.runtime.kernels.gpu.configurations import Configuration
from mixdq.types.plan import LayerBits

BATCH = 70_000
FIRST, OTHERS = 2**31 - 1, 2**16 - 1
"""What CUDA's first axis holds, and each of the others."""
LINEAR = KernelRequest(
    layer="mid.to_k",
    op="linear",
    bits=LayerBits(weight=8, activation=8),
    weight_shape=(5, 128),
    dynamic=True,
    device="cpu",
    dtype=torch.float16,
    output_dtype=torch.float16,
)
CONV = replace(LINEAR, op="conv2d", weight_shape=(4, 2, 3, 3), padding=(1, 1))
KERNELS = (
    *((activations, name) for name in ("prepare", "find_ranges")),
    *((norms, name) for name in ("find_moments", "join_moments")),
    *((product, name) for name in ("product", "finish")),
    (bos, "bos_rows"),
)


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, ...]]:
    """The last grid that each kernel was asked for."""
    asked: dict[str, tuple[int, ...]] = {}

    class Spy:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            asked[self.name] = grid
            return lambda *args, **options: None

    for module, name in KERNELS:
        monkeypatch.setattr(module, name, Spy(name))
    return asked


def layer_of(request: KernelRequest) -> Any:
    (part,) = quantize_weight(torch.ones(request.weight_shape), 8)
    layer = CudaBackend().bind(request, part, None, None).layer
    layer.forced = Configuration(rows=16, columns=64, split=2, warps=4, stages=2)
    return layer


def test_a_huge_batch_goes_along_the_first_axis_of_every_grid(grids) -> None:
    texts = torch.zeros(1, 2, 128, dtype=torch.float16).expand(BATCH, -1, -1)
    layer_of(LINEAR).linear_beside_bos(texts, torch.ones(128), torch.ones(5))
    pictures = torch.zeros(1, 2, 1, 1, dtype=torch.float16).expand(BATCH, -1, -1, -1)
    layer_of(CONV).conv2d(pictures, None, None, group_norm(nn.GroupNorm(1, 2), silu=False))
    large = torch.zeros(1, 2, 200, 200).expand(BATCH, -1, -1, -1)
    norms.affine_of(large, 2, torch.ones(2), torch.ones(2), 1e-5)
    assert grids.keys() == {name for _, name in KERNELS}
    for name, (first, *others) in grids.items():
        assert BATCH / 32 <= first <= FIRST, name
        assert all(other <= OTHERS for other in others), name
