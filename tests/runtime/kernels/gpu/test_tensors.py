from dataclasses import replace

import pytest
import torch

from mixdq.runtime.kernels.gpu.tensors import LayerTensors, Window, stacked
from mixdq.runtime.kernels.gpu.weights import weight_order

TENSORS = LayerTensors(
    planes=(torch.zeros(1, 32, dtype=torch.int8),),
    order=weight_order(8, 3, 1, of_floats=False),
    zero_points=None,
    sums=torch.zeros(1, dtype=torch.int32),
    scale=torch.ones(1),
    bias=None,
    input_scale=torch.ones(1),
    input_zero_point=torch.zeros(1, dtype=torch.int32),
    low=-8,
    high=7,
)


def test_who_is_dynamic_has_codes_but_no_scale() -> None:
    assert TENSORS.of_codes
    assert not TENSORS.dynamic
    assert replace(TENSORS, input_scale=None).dynamic
    assert not replace(TENSORS, input_scale=None, low=0, high=0).dynamic


def test_only_a_window_of_one_pixel_in_its_place_is_a_pixel() -> None:
    assert Window().is_pixel
    assert Window(dilation=(2, 2)).is_pixel
    for other in (Window(kernel=(1, 3)), Window(stride=(1, 2)), Window(padding=(1, 0))):
        assert not other.is_pixel


def test_stacked_layers_are_each_others_neighbours_in_one_memory() -> None:
    layers = [replace(TENSORS, scale=torch.full((1,), float(i)), bias=torch.full((1,), -float(i))) for i in range(3)]
    whole = stacked(layers)
    assert whole.scale.tolist() == [0.0, 1.0, 2.0]
    for i, layer in enumerate(layers):
        own = whole.rows(i, i + 1)
        assert own.bias is not None
        assert layer.bias is not None
        assert [own.scale.item(), own.bias.item()] == [layer.scale.item(), layer.bias.item()]
        assert own.scale.data_ptr() == whole.scale[i:].data_ptr()
    with pytest.raises(ValueError, match="others that have none"):
        stacked([*layers, TENSORS])
