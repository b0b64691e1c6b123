"""Quantized layers made from small random float ones."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from mixdq.quant.bos import BosRow
from mixdq.quant.qparams import activation_qparams
from mixdq.quant.weights import quantize_weight
from mixdq.runtime.conv2d import QuantizedConv2d
from mixdq.runtime.layout import LayerLayout
from mixdq.runtime.linear import QuantizedLinear
from mixdq.types.plan import FLOAT_BITS, LayerBits
from mixdq.types.tensors import ActivationRange

RANGES = (ActivationRange(min=-3.0, max=2.5, batches=1), ActivationRange(min=-0.5, max=4.0, batches=1))

Quantize = Callable[..., QuantizedLinear | QuantizedConv2d]


@pytest.fixture
def quantized() -> Quantize:
    """Return a function (module, "W4A8", splits=, symmetric=, bos=, dynamic=, backend=) -> its quantized successor."""

    def make(
        module: nn.Linear | nn.Conv2d,
        bits: str,
        *,
        splits: tuple[int, ...] = (),
        symmetric: bool = True,
        bos: BosRow | None = None,
        dynamic: bool = False,
        backend: str = "reference",
    ) -> QuantizedLinear | QuantizedConv2d:
        widths = LayerBits.parse(bits)
        layout = LayerLayout(
            name="layer", bits=widths, symmetric=symmetric, splits=splits, bos=bos is not None, dynamic=dynamic
        )
        parts = quantize_weight(module.weight, widths.weight, symmetric=symmetric, number=widths.number, splits=splits)
        activation = None
        if widths.activation != FLOAT_BITS and not dynamic:
            ranges = RANGES[: len(parts)]
            activation = [activation_qparams(rng, widths.activation, widths.number) for rng in ranges]
        if isinstance(module, nn.Conv2d):
            return QuantizedConv2d.from_float(module, layout, parts, activation, backend=backend)
        return QuantizedLinear.from_float(module, layout, parts, activation, bos, backend=backend)

    return make


@pytest.fixture
def ranges() -> tuple[ActivationRange, ...]:
    """The ranges of the first and the second input part in `quantized`."""
    return RANGES


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
