import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mixdq.quant.simulate import simulated_layer
from mixdq.quant.weights import fake_quantize_weight
from mixdq.runtime.conv2d import QuantizedConv2d
from mixdq.types.plan import LayerBits
from mixdq.types.tensors import ActivationRange

Quantize = Callable[..., QuantizedConv2d]

GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2, "dilation": 2, "bias": False},
    {"kernel_size": (3, 1), "padding": (0, 1), "groups": 3},
    {"kernel_size": 4, "padding": "same"},
    {"kernel_size": 3, "padding": (1, 2), "padding_mode": "circular"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("bits", ["W8A8", "W4A8", "W2A4", "W5A16"])
@pytest.mark.parametrize(("symmetric", "dynamic"), [(True, False), (False, False), (True, True), (False, True)])
def test_it_computes_what_was_simulated(
    quantized: Quantize,
    ranges: tuple[ActivationRange, ...],
    geometry: dict[str, Any],
    bits: str,
    symmetric: bool,
    dynamic: bool,
) -> None:
    module = nn.Conv2d(6, 9, **geometry)
    layer = quantized(module, bits, symmetric=symmetric, dynamic=dynamic)
    x = torch.randn(2, 6, 9, 7)
    known = () if dynamic else ranges[:1]
    with simulated_layer(module, LayerBits.parse(bits), ranges=known, symmetric=symmetric, dynamic=dynamic):
        expected = module(x)
    # Sums of at most 6 x 16 float32 products below 8 x 1, in two orders.
    assert torch.allclose(layer(x), expected, rtol=0.0, atol=2 * 97 * 8 * 2.0**-24)


@pytest.mark.parametrize("bits", ["W8A8", "W3A8", "W4A16"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_joined_inputs_are_quantized_part_by_part(
    quantized: Quantize, ranges: tuple[ActivationRange, ...], bits: str, dynamic: bool
) -> None:
    module = nn.Conv2d(11, 4, 1)
    layer = quantized(module, bits, splits=(7, 4), dynamic=dynamic)
    x = torch.randn(2, 11, 5, 5)
    with simulated_layer(module, LayerBits.parse(bits), ranges=ranges, splits=(7, 4), dynamic=dynamic):
        expected = module(x)
    assert torch.allclose(layer(x), expected, rtol=0.0, atol=2 * 12 * 8 * 2.0**-24)
    assert torch.equal(
        layer.float_weight(), fake_quantize_weight(module.weight, layer.layout.bits.weight, splits=(7, 4))
    )


def test_memory_order_batch_and_size_may_change_between_calls(quantized: Quantize) -> None:
    layer = quantized(nn.Conv2d(6, 4, 3, padding=1), "W4A8")
    x = torch.randn(4, 6, 8, 8)
    y = layer(x)
    assert torch.equal(layer(x.contiguous(memory_format=torch.channels_last)), y)
    assert torch.equal(layer(x[1:2]), y[1:2])
    assert torch.equal(layer(x[1]), y[1])
    # Away from the new border, a smaller picture gives the same.
    assert torch.equal(layer(x[..., :6, :7])[..., :5, :6], y[..., :5, :6])


def test_a_dynamic_picture_does_not_depend_on_the_others(quantized: Quantize) -> None:
    layer = quantized(nn.Conv2d(6, 4, 3, padding=1), "W4A8", dynamic=True)
    x = torch.randn(4, 6, 8, 8) * torch.tensor([0.01, 1.0, 50.0, 0.0]).reshape(4, 1, 1, 1)
    y = layer(x)
    assert torch.equal(layer(x.contiguous(memory_format=torch.channels_last)), y)
    for i in range(4):
        assert torch.equal(layer(x[i : i + 1])[0], y[i])
        assert torch.equal(layer(x[i]), y[i])


def test_tiling_code_that_sets_the_padding_mode_is_heard(quantized: Quantize) -> None:
    module = nn.Conv2d(6, 4, 3, padding=1)
    layer = quantized(module, "W4A8")
    x = torch.randn(1, 6, 8, 8)
    layer(x)
    layer.padding_mode = "circular"
    circular = nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular")
    circular.load_state_dict(module.state_dict())
    assert torch.equal(layer(x), quantized(circular, "W4A8")(x))


def test_copies_states_and_casts(quantized: Quantize) -> None:
    module = nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect")
    layer = quantized(module, "W3A8", symmetric=False)
    x = torch.randn(1, 6, 8, 8)
    y = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), y)
    empty = QuantizedConv2d.empty(module, layer.layout, backend="reference")
    empty.load_state_dict(layer.state_dict())
    assert torch.equal(empty(x), y)
    back = layer.to_float(torch.float32)
    assert type(back) is nn.Conv2d
    assert back.padding_mode == "reflect"
    assert torch.equal(back.weight, layer.float_weight())
    scale = layer.weight_scale.clone()
    layer.bfloat16()
    assert torch.equal(layer.weight_scale, scale)
    assert layer(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(6,), (6, 8), (1, 5, 8, 8), (1, 1, 6, 8, 8)])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_an_input_of_other_channels_or_axes_is_refused_with_the_layers_name(
    quantized: Quantize, shape: tuple[int, ...], backend: str
) -> None:
    layer = quantized(nn.Conv2d(6, 4, 3, padding=1), "W4A8", backend=backend)
    with pytest.raises(ValueError, match=r"layer: expected an input \[\(batch,\) 6, height, width\], found \["):
        layer(torch.ones(shape))
