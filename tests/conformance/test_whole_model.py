"""A whole model on the GPU's kernels, every width of bits in it: the reference's picture. Interpreted, or on a GPU."""

from itertools import cycle

import pytest
import torch

import mixdq
from mixdq.runtime.kernels.gpu import available
from mixdq.testing import tiny_sdxl_pipeline
from mixdq.types.plan import BitPlan, LayerBits

pytestmark = pytest.mark.skipif(available.trouble() is not None, reason=str(available.trouble()))

BITS = ("W8A8", "W4A8", "W2A8", "W3A6", "W4A16")


def test_it_draws_what_the_reference_draws() -> None:
    device = "cpu" if available.interpreted() else "cuda"
    prompts = ["a red apple"]
    pictures = []
    for backend in ("reference", "cuda"):
        pipe = tiny_sdxl_pipeline().to(device)
        table, record = mixdq.inspect(pipe), mixdq.calibrate(pipe, prompts)
        layers = {spec.name: LayerBits.parse(bits) for spec, bits in zip(table, cycle(BITS), strict=False)}
        pipe = mixdq.apply(pipe, BitPlan(name="all", layers=layers), record, table, backend=backend)
        pictures.append(mixdq.generate(pipe, prompts))
    # Weight-only layers sum floats in another order.
    assert torch.allclose(pictures[0], pictures[1], atol=1e-3)
